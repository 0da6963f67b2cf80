"""The allow-list for configs inside checkpoints: classes, their arguments, and the values of each argument.

A validator is a function of (value, dotted key) that returns the value to build with, or raises :class:`Refused`. No
validator accepts strings other than a fixed set of words, so that no argument can name a file, a URL, a module or a
registry scope other than this package's. Numbers and lists are bounded. Arguments that are not listed are refused,
those in ``IGNORED`` are removed, and None is always accepted. The code of each listed class was reviewed: with these
arguments and their defaults, its constructor only builds layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from volo_seg.imageio import BACKENDS, COLOR_TYPES

Validator = Callable[[Any, str], Any]
Arguments = Mapping[str, Validator]

IGNORED = frozenset(
    (
        'init_cfg',
        'pretrained',
        'loss_decode',
        'sampler',
        'train_cfg',
        'batch_augments',
        'frozen_exclude',
        'backend_args',
    )
)
"""Arguments that prediction does not need; they are removed, whatever their values."""
LABEL_STEPS = ('LoadAnnotations', 'LoadLabels')
"""Pipeline steps that prediction does not need; they are removed."""
MIN_STRIDE = 16
"""Smallest stride in pixels; a stride also has at least an eighth of the window. It bounds the number of windows."""


class Refused(ValueError):
    """A value that the allow-list does not accept: its dotted key, the value, and what is accepted."""

    def __init__(self, place: str, value: Any, wanted: str) -> None:
        super().__init__(place)
        self.place, self.value, self.wanted = place, value, wanted


def integer(low: int, high: int) -> Validator:
    """Accept integers from ``low`` to ``high``."""

    def check(value: Any, place: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise Refused(place, value, f'a whole number from {low} to {high}')
        return value

    return check


def number(low: float, high: float) -> Validator:
    """Accept finite numbers from ``low`` to ``high``."""

    def check(value: Any, place: str) -> float:
        # a huge int compares exactly, and NaN compares false
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise Refused(place, value, f'a number from {low:g} to {high:g}')
        return value

    return check


def flag(value: Any, place: str) -> bool:
    """Accept True and False."""
    if not isinstance(value, bool):
        raise Refused(place, value, 'True or False')
    return value


def word(*words: str) -> Validator:
    """Accept the strings in ``words``."""

    def check(value: Any, place: str) -> str:
        if not isinstance(value, str) or value not in words:
            raise Refused(place, value, f'one of {", ".join(words)}')
        return value

    return check


def many(validator: Validator, *, least: int = 1, most: int = 8) -> Validator:
    """Accept lists and tuples of ``least`` to ``most`` values that ``validator`` accepts."""

    def check(value: Any, place: str) -> list[Any] | tuple[Any, ...]:
        if not isinstance(value, (list, tuple)) or not least <= len(value) <= most:
            raise Refused(place, value, f'a list of {least} to {most} values')
        found = [validator(item, f'{place}.{index}') for index, item in enumerate(value)]
        return tuple(found) if isinstance(value, tuple) else found

    return check


def pair(validator: Validator) -> Validator:
    """Accept two values that ``validator`` accepts, and convert them to a tuple, because some classes need one."""
    both = many(validator, least=2, most=2)
    return lambda value, place: tuple(both(value, place))


def one_or_many(validator: Validator) -> Validator:
    """Accept a value that ``validator`` accepts, or a list of such values."""
    several = many(validator)
    return lambda value, place: (several if isinstance(value, (list, tuple)) else validator)(value, place)


def one_or_pair(validator: Validator) -> Validator:
    """Accept a value that ``validator`` accepts, or two such values."""
    both = pair(validator)
    return lambda value, place: (both if isinstance(value, (list, tuple)) else validator)(value, place)


def either(first: Validator, second: Validator, *, when: type | tuple[type, ...]) -> Validator:
    """Apply ``first`` to values of the types ``when``, and ``second`` to others."""
    return lambda value, place: (first if isinstance(value, when) else second)(value, place)


def fields(arguments: Arguments) -> Validator:
    """Accept dicts with the keys and values of ``arguments``."""

    def check(value: Any, place: str) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise Refused(place, value, 'a dict')
        found = {}
        for key, item in value.items():
            if not isinstance(key, str) or (key not in arguments and key not in IGNORED):
                raise Refused(f'{place}.{_name(key)}', item, 'an argument that is known here')
            if key in arguments:
                found[key] = None if item is None else arguments[key](item, f'{place}.{key}')
        return found

    return check


def part(classes: Mapping[str, Arguments]) -> Validator:
    """Accept dicts whose ``type`` is in ``classes``, with its arguments."""

    def check(value: Any, place: str) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise Refused(place, value, 'a dict')
        kind = value.get('type')
        if not isinstance(kind, str) or kind not in classes:
            raise Refused(f'{place}.type', kind, 'a part that is known here')
        rest = {key: item for key, item in value.items() if key != 'type'}
        return {'type': kind, **fields(classes[kind])(rest, place)}

    return check


def _name(key: Any) -> str:
    """A key of a config for a message: printable, at most 40 characters."""
    text = key if isinstance(key, str) else type(key).__name__
    return text if text.isprintable() and len(text) <= 40 else ascii(text[:37] + '...')


def _windows(value: Any, place: str) -> dict[str, Any]:
    """Accept a ``test_cfg`` whose strides give a bounded number of windows."""
    found = _test_cfg(value, place)
    for crop, stride in zip(found.get('crop_size') or (), found.get('stride') or (), strict=False):
        least = max(MIN_STRIDE, crop // 8)
        if stride < least:
            raise Refused(f'{place}.stride', found['stride'], f'at least {least} pixels for a window of {crop}')
    return found


_side = integer(1, 8192)
_width = integer(1, 4096)
_depth = integer(0, 64)
_small = integer(1, 64)
_stage = integer(-16, 64)
_classes = integer(1, 65536)
_share = number(0, 1)
_any = number(-1e6, 1e6)
_epsilon = number(0, 1)
_ratio = number(0.125, 16)
_widths, _depths, _smalls = many(_width), many(_depth), many(_small)
_out_indices = many(_stage, most=32)
_test_cfg = fields(
    {
        'mode': word('whole', 'slide'),
        'crop_size': pair(_side),
        'stride': pair(_side),
        'window_weights': word('uniform', 'hann', 'gaussian'),
        'batch_windows': either(word('auto'), _small, when=str),
        'logits_budget': number(1, 65536),
        'keep_logits': flag,
    }
)

BATCH_NORM: Arguments = {
    'requires_grad': flag,
    'eps': _epsilon,
    'momentum': _share,
    'affine': flag,
    'track_running_stats': flag,
}
NORMS: dict[str, Arguments] = {
    **dict.fromkeys(('BN', 'BN2d', 'SyncBN', 'IN', 'IN2d'), BATCH_NORM),
    'GN': {'requires_grad': flag, 'eps': _epsilon, 'num_groups': _width, 'affine': flag},
    'LN': {'requires_grad': flag, 'eps': _epsilon, 'elementwise_affine': flag},
}
ACTIVATIONS: dict[str, Arguments] = {
    **dict.fromkeys(('ReLU', 'ReLU6', 'SiLU', 'HSwish'), {'inplace': flag}),
    **dict.fromkeys(('Sigmoid', 'Tanh', 'Swish'), {}),
    'LeakyReLU': {'inplace': flag, 'negative_slope': _any},
    'ELU': {'inplace': flag, 'alpha': _any},
    'PReLU': {'num_parameters': _width},
    'GELU': {'approximate': word('none', 'tanh')},
    'HSigmoid': {'bias': _any, 'divisor': _any, 'min_value': _any, 'max_value': _any},
}
CONVS: dict[str, Arguments] = dict.fromkeys(('Conv', 'Conv2d', 'ConvWS', 'Conv2dAdaptivePadding'), {})
UPSAMPLINGS: dict[str, Arguments] = {
    'InterpConv': {'conv_first': flag, 'kernel_size': integer(1, 8)},
    'DeconvModule': {'kernel_size': integer(1, 16), 'scale_factor': integer(1, 8)},
}
_norm, _act, _conv = part(NORMS), part(ACTIVATIONS), part(CONVS)
_layers: Arguments = {'conv_cfg': _conv, 'norm_cfg': _norm, 'act_cfg': _act}

_resnet: Arguments = {
    'depth': integer(1, 200),
    'in_channels': _width,
    'stem_channels': _width,
    'base_channels': integer(1, 512),
    'num_stages': _small,
    'strides': _smalls,
    'dilations': _smalls,
    'out_indices': _out_indices,
    'style': word('pytorch', 'caffe'),
    'frozen_stages': _stage,
    'conv_cfg': _conv,
    'norm_cfg': _norm,
    'norm_eval': flag,
    'multi_grid': _smalls,
    'contract_dilation': flag,
    'with_cp': flag,
    'zero_init_residual': flag,
}
_transformer: Arguments = {
    'in_channels': _width,
    'out_indices': _out_indices,
    'qkv_bias': flag,
    'drop_rate': _share,
    'attn_drop_rate': _share,
    'drop_path_rate': _share,
    'act_cfg': _act,
    'norm_cfg': _norm,
    'with_cp': flag,
}
_hr_stage = fields(
    {
        'num_modules': _small,
        'num_branches': _small,
        'block': word('BASIC', 'BOTTLENECK'),
        'num_blocks': _depths,
        'num_channels': _widths,
    }
)
BACKBONES: dict[str, Arguments] = {
    'VOLO': {
        'arch': either(
            word('nano', 'd1', 'd2', 'd3', 'd4', 'd5'),
            fields(
                {
                    'depths': _depths,
                    'embed_dims': _widths,
                    'num_heads': _smalls,
                    'mlp_ratio': _ratio,
                    'stem_channels': integer(1, 512),
                }
            ),
            when=str,
        ),
        'img_size': one_or_pair(integer(1, 4096)),
        'out_indices': _out_indices,
        'drop_path_rate': _share,
        'drop_path_rule': word('official', 'linear'),
        'with_cp': flag,
        'norm_cfg': _norm,
        'frozen_stages': _stage,
    },
    'VOLONano': {
        'num_outlookers': integer(1, 32),
        'expand_ratio': integer(1, 16),
        'out_indices': _out_indices,
        'norm_cfg': _norm,
        'frozen_stages': _stage,
    },
    'ResNet': {**_resnet, 'deep_stem': flag, 'avg_down': flag},
    'ResNetV1c': _resnet,
    'ResNetV1d': _resnet,
    'ResNeXt': {**_resnet, 'deep_stem': flag, 'avg_down': flag, 'groups': _small, 'base_width': _small},
    'HRNet': {
        'extra': fields({f'stage{index}': _hr_stage for index in (1, 2, 3, 4)}),
        'in_channels': _width,
        'conv_cfg': _conv,
        'norm_cfg': _norm,
        'norm_eval': flag,
        'with_cp': flag,
        'frozen_stages': _stage,
        'zero_init_residual': flag,
        'multiscale_output': flag,
    },
    'SwinTransformer': {
        **_transformer,
        'pretrain_img_size': one_or_pair(integer(1, 4096)),
        'embed_dims': _width,
        'patch_size': _small,
        'window_size': integer(1, 32),
        'mlp_ratio': _ratio,
        'depths': _depths,
        'num_heads': _smalls,
        'strides': _smalls,
        'qk_scale': _any,
        'patch_norm': flag,
        'use_abs_pos_embed': flag,
        'frozen_stages': _stage,
    },
    'MixVisionTransformer': {
        **_transformer,
        'embed_dims': _width,
        'num_stages': _small,
        'num_layers': _depths,
        'num_heads': _smalls,
        'patch_sizes': _smalls,
        'strides': _smalls,
        'sr_ratios': _smalls,
        'mlp_ratio': integer(1, 16),
    },
    'VisionTransformer': {
        **_transformer,
        'img_size': one_or_pair(integer(1, 4096)),
        'patch_size': integer(4, 64),
        'patch_pad': word('same', 'corner'),
        'embed_dims': _width,
        'num_layers': _depth,
        'num_heads': _small,
        'mlp_ratio': integer(1, 16),
        'out_origin': flag,
        'out_indices': either(_out_indices, _stage, when=(list, tuple)),
        'with_cls_token': flag,
        'output_cls_token': flag,
        'patch_norm': flag,
        'patch_bias': flag,
        'pre_norm': flag,
        'final_norm': flag,
        'interpolate_mode': word('nearest', 'bilinear', 'bicubic'),
        'num_fcs': integer(2, 8),
        'norm_eval': flag,
    },
    'MSCAN': {
        'in_channels': _width,
        'embed_dims': _widths,
        'mlp_ratios': many(_ratio),
        'drop_rate': _share,
        'drop_path_rate': _share,
        'depths': _depths,
        'num_stages': _small,
        'attention_kernel_sizes': many(either(_smalls, _small, when=(list, tuple))),
        'attention_kernel_paddings': many(either(many(_depth), _depth, when=(list, tuple))),
        'act_cfg': _act,
        'norm_cfg': _norm,
    },
    'FastSCNN': {
        'in_channels': _width,
        'downsample_dw_channels': _widths,
        'global_in_channels': _width,
        'global_block_channels': _widths,
        'global_block_strides': _smalls,
        'global_out_channels': _width,
        'higher_in_channels': _width,
        'lower_in_channels': _width,
        'fusion_out_channels': _width,
        'out_indices': _out_indices,
        'align_corners': flag,
        'dw_act_cfg': _act,
        **_layers,
    },
    'MobileNetV2': {
        'widen_factor': _ratio,
        'strides': _smalls,
        'dilations': _smalls,
        'out_indices': _out_indices,
        'frozen_stages': _stage,
        'norm_eval': flag,
        'with_cp': flag,
        **_layers,
    },
    'UNet': {
        'in_channels': _width,
        'base_channels': integer(1, 512),
        'num_stages': integer(1, 8),
        'strides': _smalls,
        'enc_num_convs': _smalls,
        'dec_num_convs': _smalls,
        'downsamples': many(flag),
        'enc_dilations': _smalls,
        'dec_dilations': _smalls,
        'with_cp': flag,
        'upsample_cfg': part(UPSAMPLINGS),
        'norm_eval': flag,
        **_layers,
    },
}

NECKS: dict[str, Arguments] = {
    'VOLOPyramid': {'in_channels': _widths, 'norm_cfg': _norm},
    'FPN': {
        'in_channels': _widths,
        'out_channels': _width,
        'num_outs': integer(1, 8),
        'start_level': _stage,
        'end_level': _stage,
        'add_extra_convs': either(word('on_input', 'on_lateral', 'on_output'), flag, when=str),
        'extra_convs_on_inputs': flag,
        'relu_before_extra_convs': flag,
        'no_norm_on_lateral': flag,
        'upsample_cfg': fields(
            {'mode': word('nearest', 'bilinear', 'bicubic'), 'scale_factor': integer(1, 8), 'align_corners': flag}
        ),
        **_layers,
    },
    'Feature2Pyramid': {'embed_dim': _width, 'rescales': many(_ratio), 'norm_cfg': _norm},
    'MultiLevelNeck': {
        'in_channels': _widths,
        'out_channels': _width,
        'scales': many(_ratio),
        'norm_cfg': _norm,
        'act_cfg': _act,
    },
}

_head: Arguments = {
    'in_channels': one_or_many(_width),
    'channels': integer(1, 2048),
    'num_classes': _classes,
    'out_channels': _classes,
    'threshold': _share,
    'dropout_ratio': _share,
    'in_index': one_or_many(_stage),
    'ignore_index': integer(-1, 65535),
    'align_corners': flag,
    **_layers,
}
_choosing_head: Arguments = {**_head, 'input_transform': word('resize_concat', 'multiple_select')}
_fcn_head: Arguments = {
    **_choosing_head,
    'num_convs': integer(0, 16),
    'kernel_size': integer(1, 15),
    'concat_input': flag,
    'dilation': _small,
}
_scales = many(integer(1, 32))
HEADS: dict[str, Arguments] = {
    'VOLOUPerHead': {**_head, 'pool_scales': _scales},
    'UPerHead': {**_head, 'pool_scales': _scales},
    'VOLOFCNHead': _fcn_head,
    'FCNHead': _fcn_head,
    'DepthwiseSeparableFCNHead': {**_fcn_head, 'dw_act_cfg': _act},
    'PSPHead': {**_choosing_head, 'pool_scales': _scales},
    'ASPPHead': {**_choosing_head, 'dilations': _smalls},
    'DepthwiseSeparableASPPHead': {
        **_choosing_head,
        'dilations': _smalls,
        'c1_in_channels': integer(0, 4096),
        'c1_channels': integer(0, 2048),
    },
    'FPNHead': {**_head, 'feature_strides': _smalls},
    'SegformerHead': {**_head, 'interpolate_mode': word('nearest', 'bilinear', 'bicubic', 'area')},
    'LightHamHead': {
        **_head,
        'ham_channels': integer(1, 2048),
        'ham_kwargs': fields(
            {
                'MD_S': _small,
                'MD_R': integer(1, 1024),
                'train_steps': _small,
                'eval_steps': _small,
                'inv_t': _any,
                'rand_init': flag,
            }
        ),
    },
}

_statistics = many(_any, most=3)
_divisor = integer(1, 1024)
PREPROCESSORS: dict[str, Arguments] = {
    'SegDataPreProcessor': {
        'mean': _statistics,
        'std': many(number(1e-6, 1e6), most=3),
        'size': pair(_side),
        'size_divisor': _divisor,
        'pad_val': _any,
        'seg_pad_val': _any,
        'bgr_to_rgb': flag,
        'rgb_to_bgr': flag,
        'test_cfg': fields({'size': pair(_side), 'size_divisor': _divisor}),
    }
}

_head_part = part(HEADS)
_segmentor: Arguments = {
    'data_preprocessor': part(PREPROCESSORS),
    'backbone': part(BACKBONES),
    'neck': part(NECKS),
    'decode_head': _head_part,
    'auxiliary_head': one_or_many(_head_part),
    'test_cfg': _windows,
}
SEGMENTORS: dict[str, Arguments] = {'VOLOSegmentor': _segmentor, 'EncoderDecoder': _segmentor}

_interpolation = word('nearest', 'bilinear', 'bicubic', 'area', 'lanczos')
STEPS: dict[str, Arguments] = {
    # the step is not built: it says how the files that the user gives are decoded
    'LoadImageFromFile': {
        '_scope_': word('volo_seg'),
        'range': pair(number(-1e12, 1e12)),
        'to_float32': flag,
        'color_type': word(*COLOR_TYPES),
        'imdecode_backend': word(*BACKENDS),
        'ignore_empty': flag,
    },
    'Resize': {
        'scale': one_or_pair(_side),
        'scale_factor': either(pair(_ratio), number(0.01, 4), when=(list, tuple)),
        'keep_ratio': flag,
        'clip_object_border': flag,
        'backend': word('cv2', 'pillow'),
        'interpolation': _interpolation,
    },
    'ResizeShortestEdge': {'scale': one_or_pair(_side), 'max_size': _side},
    'ResizeToMultiple': {'size_divisor': one_or_pair(_divisor), 'interpolation': _interpolation},
    'Pad': {
        'size': pair(_side),
        'size_divisor': _divisor,
        'pad_to_square': flag,
        'pad_val': either(fields({'img': _any, 'seg': _any}), _any, when=Mapping),
        'padding_mode': word('constant', 'edge', 'reflect', 'symmetric'),
    },
    'Normalize': {'mean': _statistics, 'std': many(number(1e-6, 1e6), most=3), 'to_rgb': flag},
    'PackSegInputs': {},
}
MODEL: Validator = part(SEGMENTORS)
STEP: Validator = part(STEPS)

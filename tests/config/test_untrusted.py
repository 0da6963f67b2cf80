"""A config that came along with weights builds networks from the allow-list and does nothing else."""

import copy
import ctypes
import http.server
import importlib
import json
import os
import pickle
import random
import socket
import subprocess
import sys
import threading
import urllib.request

import numpy as np
import pytest
import torch
from mmengine import fileio
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS, TRANSFORMS

import volo_seg.models  # noqa: F401  (registers what the shipped configs name)
from volo_seg.checkpoints import save_file
from volo_seg.config import untrusted_parts
from volo_seg.config.load import load_config, shipped_configs
from volo_seg.config.text import parse_config_text
from volo_seg.config.untrusted import FIX, refuse_access, safe_model_config
from volo_seg.config.untrusted_parts import IGNORED, LABEL_STEPS
from volo_seg.config.validation import accepted_keys, find_type
from volo_seg.errors import UserError
from volo_seg.inference import Predictor, load_predictor
from volo_seg.inference.loaded_model import build_model

NANO = 'volo-nano_upernet_1xb4-1200_toyscapes-256x256'
CLASSES = ['a', 'b', 'c']
DESCRIBED = {'classes': CLASSES, 'palette': [[0, 0, 0], [1, 2, 3], [4, 5, 6]]}
IMAGE = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
NORM = {'type': 'SyncBN', 'requires_grad': True}
ARCH = {'depths': [1, 1, 1, 1], 'embed_dims': [8, 16, 16, 16], 'num_heads': [1, 2, 2, 2], 'mlp_ratio': 1}
ARCH['stem_channels'] = 4
HR_STAGES = {
    f'stage{branches}': {
        'num_modules': 1,
        'num_branches': branches,
        'block': 'BOTTLENECK' if branches == 1 else 'BASIC',
        'num_blocks': (1,) * branches,
        'num_channels': (8,) if branches == 1 else tuple(4 * 2**i for i in range(branches)),
    }
    for branches in (1, 2, 3, 4)
}
RESNET = {'depth': 18, 'base_channels': 8, 'stem_channels': 8}
BACKBONES = {
    'VOLO': ({'arch': ARCH, 'img_size': 64}, [8, 16, 16, 16]),
    'VOLONano': ({'num_outlookers': 1, 'norm_cfg': NORM}, [48, 64, 64, 128]),
    'ResNet': ({**RESNET, 'norm_cfg': NORM, 'style': 'pytorch'}, [8, 16, 32, 64]),
    'ResNetV1c': ({**RESNET, 'strides': (1, 2, 1, 1), 'dilations': (1, 1, 2, 4)}, [8, 16, 32, 64]),
    'ResNetV1d': (RESNET, [8, 16, 32, 64]),
    'ResNeXt': ({**RESNET, 'depth': 50, 'groups': 2, 'base_width': 4}, [32, 64, 128, 256]),
    'HRNet': ({'extra': HR_STAGES}, [4, 8, 16, 32]),
    'SwinTransformer': (
        {
            'embed_dims': 8,
            'depths': [1] * 4,
            'num_heads': [1, 1, 2, 2],
            'window_size': 4,
            'pretrain_img_size': [64, 64],
        },
        [8, 16, 32, 64],
    ),
    'MixVisionTransformer': ({'embed_dims': 8, 'num_layers': [1] * 4, 'num_heads': [1, 2, 4, 8]}, [8, 16, 32, 64]),
    'VisionTransformer': (
        {'img_size': (64, 64), 'embed_dims': 16, 'num_layers': 4, 'num_heads': 2, 'out_indices': [0, 1, 2, 3]},
        [16] * 4,
    ),
    'MSCAN': ({'embed_dims': [8, 8, 16, 16], 'depths': [1] * 4, 'norm_cfg': NORM}, [8, 8, 16, 16]),
    'FastSCNN': (
        {'downsample_dw_channels': (8, 8), 'global_block_channels': (8, 8, 8), 'fusion_out_channels': 8}
        | dict.fromkeys(('global_in_channels', 'global_out_channels', 'higher_in_channels', 'lower_in_channels'), 8),
        [8, 8, 8],
    ),
    'MobileNetV2': ({'widen_factor': 0.25}, [8, 8, 24, 80]),
    'UNet': ({'base_channels': 4, 'upsample_cfg': {'type': 'InterpConv'}}, [64, 32, 16, 8, 4]),
}
SEVERAL_MAPS = ('VOLOUPerHead', 'UPerHead', 'FPNHead', 'SegformerHead', 'LightHamHead')
HEADS = {
    'VOLOUPerHead': {},
    'UPerHead': {'act_cfg': {'type': 'GELU'}},
    'VOLOFCNHead': {},
    'FCNHead': {'loss_decode': {'type': 'DiceLoss'}, 'sampler': {'type': 'OHEMPixelSampler'}},
    'DepthwiseSeparableFCNHead': {'concat_input': False},
    'PSPHead': {},
    'ASPPHead': {'dilations': (1, 2)},
    'DepthwiseSeparableASPPHead': {'dilations': (1, 2), 'c1_in_channels': 8, 'c1_channels': 4},
    'FPNHead': {'feature_strides': [4, 8, 16, 32]},
    'SegformerHead': {},
    'LightHamHead': {'ham_channels': 8, 'ham_kwargs': {'MD_R': 4}},
}
NECKS = {
    'VOLOPyramid': ('VOLO', {'norm_cfg': NORM}, [8, 16, 16, 16]),
    'FPN': ('ResNet', {'out_channels': 16, 'num_outs': 4}, [16] * 4),
    'Feature2Pyramid': ('VisionTransformer', {'embed_dim': 16, 'rescales': [4, 2, 1, 0.5]}, [16] * 4),
    'MultiLevelNeck': ('ResNet', {'out_channels': 16, 'scales': [4, 2, 1, 0.5]}, [16] * 4),
}


@pytest.fixture
def content():
    return load_config(NANO).to_dict()


def described(backbone='VOLO', head='UPerHead', neck=None, **model):
    """A config of a small network, as a dict."""
    arguments, channels = BACKBONES[backbone]
    maps = channels
    parts = {}
    if neck:
        _, more, maps = NECKS[neck]
        parts['neck'] = {'type': neck, **more}
        if neck != 'Feature2Pyramid':
            parts['neck']['in_channels'] = list(channels)
    several = head in SEVERAL_MAPS
    decode_head = {
        'type': head,
        'channels': 8,
        'num_classes': len(CLASSES),
        'norm_cfg': NORM,
        'in_channels': list(maps) if several else maps[-1],
        'in_index': list(range(len(maps))) if several else len(maps) - 1,
        **HEADS[head],
    }
    statistics = {'mean': [123.0, 116.0, 103.0], 'std': [58.0, 57.0, 57.0]}
    steps = [
        {'type': 'LoadImageFromFile'},
        {'type': 'Resize', 'scale': [64, 64], 'keep_ratio': False},
        {'type': 'LoadAnnotations'},
        {'type': 'PackSegInputs'},
    ]
    return {
        'default_scope': 'mmseg',
        'model': {
            'type': 'EncoderDecoder',
            'data_preprocessor': {'type': 'SegDataPreProcessor', 'bgr_to_rgb': True, **statistics},
            'backbone': {'type': backbone, **arguments},
            'decode_head': decode_head,
            'test_cfg': {'mode': 'whole'},
            **parts,
            **model,
        },
        'test_dataloader': {'dataset': {'type': 'BaseSegDataset', 'pipeline': steps}},
    }


def weights_of(config):
    init_default_scope('mmseg')
    torch.manual_seed(0)
    return MODELS.build(Config(copy.deepcopy(config)).model).state_dict()


def segmented(network):
    torch.manual_seed(0)
    predictor = Predictor(network, device='cpu', probabilities=True)
    return predictor(IMAGE).probabilities


def built(config, weights, *, name='weights.pth'):
    return build_model(
        safe_model_config(config, name=name), {'state_dict': weights}, name=name, dataset_meta=DESCRIBED, trusted=False
    )


def publish(folder, config, weights):
    folder.mkdir(exist_ok=True)
    (folder / 'config.json').write_text(json.dumps({**config, **DESCRIBED}))
    save_file(weights, folder / 'model.safetensors')
    return folder


def checkpoint(path, config, weights, **meta):
    text = Config(copy.deepcopy(config), format_python_code=False).pretty_text
    torch.save({'meta': {'cfg': text, 'dataset_meta': DESCRIBED, **meta}, 'state_dict': weights}, path)
    return path


# what goes on working


def test_every_shipped_config_passes():
    names = list(shipped_configs())
    assert len(names) > 10
    for name in names:
        whole = load_config(name).to_dict()
        taken = safe_model_config(whole, name='weights.pth')
        for key in ('backbone', 'neck', 'decode_head', 'auxiliary_head', 'data_preprocessor', 'test_cfg'):
            given = whole['model'].get(key)
            kept = {k: v for k, v in given.items() if k not in IGNORED} if given else None
            assert taken.model.get(key) == kept
        assert set(taken) == {'default_scope', 'model', 'test_dataloader'}
        steps = [s for s in whole['test_dataloader']['dataset']['pipeline'] if s['type'] not in LABEL_STEPS]
        assert taken.test_dataloader.dataset.pipeline == [
            {**step, 'scale': tuple(step['scale'])} if 'scale' in step else step for step in steps
        ]


CASES = [
    *(described(name, 'FCNHead') for name in BACKBONES),
    *(described('ResNet', name) for name in HEADS),
    *(
        described(NECKS[name][0], neck=name, test_cfg={'mode': 'slide', 'crop_size': [64, 64], 'stride': [32, 32]})
        for name in NECKS
    ),
    described(type='VOLOSegmentor', auxiliary_head=[{**described('ResNet', 'FCNHead')['model']['decode_head']}]),
]


def test_the_cases_are_the_whole_list():
    for mine, listed in (
        (BACKBONES, untrusted_parts.BACKBONES),
        (HEADS, untrusted_parts.HEADS),
        (NECKS, untrusted_parts.NECKS),
    ):
        assert set(mine) == set(listed)


@pytest.mark.parametrize(
    'config',
    CASES,
    ids=lambda c: '-'.join(c['model'][k]['type'] for k in ('backbone', 'neck', 'decode_head') if k in c['model']),
)
def test_parts_of_the_list_predict_as_with_their_own_config(config):
    if isinstance(config['model'].get('auxiliary_head'), list):
        config['model']['auxiliary_head'][0] |= {'in_channels': 16, 'in_index': 3}
    weights = weights_of(config)
    given = build_model(
        Config(copy.deepcopy(config)), {'state_dict': weights}, name='weights.pth', dataset_meta=DESCRIBED
    )
    np.testing.assert_array_equal(segmented(given), segmented(built(config, weights)))


def test_every_step_of_the_list_works():
    config = described()
    weights = weights_of(config)
    config['test_dataloader']['dataset']['pipeline'] = [
        {'type': 'LoadImageFromFile', 'backend_args': None},
        {'type': 'Resize', 'scale_factor': [0.5, 0.5]},
        {'type': 'ResizeShortestEdge', 'scale': 32, 'max_size': 64},
        {'type': 'ResizeToMultiple', 'size_divisor': 16},
        {'type': 'Pad', 'size_divisor': 32, 'pad_val': {'img': 0, 'seg': 255}},
        {'type': 'Normalize', 'mean': [0.0, 0.0, 0.0], 'std': [1.0, 1.0, 1.0], 'to_rgb': False},
        {'type': 'PackSegInputs'},
    ]
    assert {s['type'] for s in config['test_dataloader']['dataset']['pipeline']} == set(untrusted_parts.STEPS)
    assert built(config, weights).pipeline({'img': IMAGE})['inputs'].shape[0] == 3


def test_both_ways_in_predict_like_the_given_config(tmp_path):
    config = described()
    weights = weights_of(config)
    file = checkpoint(tmp_path / 'w.pth', config, weights)
    expected = Predictor(Config(copy.deepcopy(config)), file, device='cpu')(IMAGE).labels
    for opened in (file, publish(tmp_path / 'published', config, weights)):
        np.testing.assert_array_equal(load_predictor(opened, device='cpu')(IMAGE).labels, expected)


# what is refused


class Payload:
    """Unpickling it makes a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


class Trap:
    """A pickle that makes a folder, at a path and at a loopback address, and what was tried with them."""

    opened: list[str] = []

    def __init__(self, folder):
        self.executed = folder / 'executed'
        self.file = folder / 'trap.pkl'
        self.file.write_bytes(pickle.dumps(Payload(self.executed)))
        self.hits = hits = []
        data = self.file.read_bytes()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                hits.append(self.path)
                self.send_response(200)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f'http://127.0.0.1:{self.server.server_port}/trap.pkl'
        Trap.opened.clear()

    def check(self):
        assert not self.executed.exists() and not self.hits
        assert not [path for path in Trap.opened if path == str(self.file)]


def _watch(event, arguments, opened=Trap.opened):
    if event == 'open':
        opened.append(str(arguments[0]))


@pytest.fixture(scope='module')
def watching():
    sys.addaudithook(_watch)  # stays for the rest of the process, as hooks do


@pytest.fixture
def trap(tmp_path, watching):
    made = Trap(tmp_path)
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_the_trap_works(trap):
    with open(trap.file, 'rb') as file:
        pickle.load(file)
    assert trap.executed.exists() and str(trap.file) in Trap.opened
    fileio.get(trap.url)
    assert trap.hits
    with pytest.raises(AssertionError):
        trap.check()


def _set(*path):
    def place(content, node):
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = node

    return place


GROUPS = {
    'SEGMENTORS': lambda content, node: content.update(model={**content['model'], **node}),
    'BACKBONES': _set('model', 'backbone'),
    'NECKS': _set('model', 'neck'),
    'HEADS': _set('model', 'decode_head'),
    'PREPROCESSORS': _set('model', 'data_preprocessor'),
    'STEPS': lambda content, node: content['test_dataloader']['dataset']['pipeline'].append(node),
    'NORMS': _set('model', 'decode_head', 'norm_cfg'),
    'ACTIVATIONS': _set('model', 'decode_head', 'act_cfg'),
    'CONVS': _set('model', 'decode_head', 'conv_cfg'),
    'UPSAMPLINGS': lambda content, node: _set('model', 'backbone')(content, {'type': 'UNet', 'upsample_cfg': node}),
}


def test_the_walk_reaches_every_table():
    tables = {name for name, value in vars(untrusted_parts).items() if name.isupper() and isinstance(value, dict)}
    assert tables - {'BATCH_NORM'} == set(GROUPS)


@pytest.mark.parametrize('group', GROUPS)
def test_no_argument_names_anything(group, trap, record_property):
    """Each argument of the list, and of the constructors, gets the trap in several forms."""
    pairs = 0
    for kind, listed in getattr(untrusted_parts, group).items():
        # a loader of this package has the name of one of MMCV's
        known = {**accepted_keys(find_type(kind)), **accepted_keys(find_type(kind, 'volo_seg'))}
        assert set(listed) <= set(known) | {'requires_grad', '_scope_'}, f'{kind} takes no {set(listed) - set(known)}'
        for key in sorted({*listed, *known, 'type', '_scope_', 'unheard_of'}):
            pairs += 1
            for text in (str(trap.file), trap.url, 'torch.hub.load', 'volo_seg.models.VOLO'):
                for value in (text, [text], (text, text), {'type': text}, {'type': 'Pretrained', 'checkpoint': text}):
                    content = described()
                    GROUPS[group](content, {'type': kind, key: value})
                    try:
                        taken = safe_model_config(content, name='weights.pth')
                    except UserError as error:
                        assert f'.{key}' in str(error) and str(error).endswith(f'is refused: {FIX}')
                    else:
                        assert key in IGNORED and text not in str(taken)
    record_property('pairs', pairs)
    assert pairs >= 3 * len(getattr(untrusted_parts, group)) > 0
    trap.check()


def test_the_number_of_pairs():
    count = sum(
        len({*listed, *accepted_keys(find_type(kind)), 'type', '_scope_', 'unheard_of'})
        for group in GROUPS
        for kind, listed in getattr(untrusted_parts, group).items()
    )
    assert count > 700


def test_nothing_else_that_is_registered_is_built(trap):
    listed = {kind for group in GROUPS for kind in getattr(untrusted_parts, group)}
    tried = 0
    for registry, put in ((MODELS, _set('model', 'backbone')), (TRANSFORMS, GROUPS['STEPS'])):
        names = set()
        while registry is not None:
            names |= set(registry.module_dict)
            registry = registry.parent
        for name in names - listed - set(LABEL_STEPS):
            for arguments in ({}, {'filename': str(trap.file)}, {'backend_args': {'backend': trap.url}}):
                content = described()
                put(content, {'type': name, **arguments})
                with pytest.raises(UserError, match='asks for .*type=.*refused'):
                    safe_model_config(content, name='weights.pth')
            tried += 1
    assert tried > 100
    trap.check()


@pytest.mark.parametrize(
    'kind', ['subprocess.Popen', 'os.system', 'mmseg.VPD', 'VPD', 'torch.nn.Identity', 7, None, []]
)
@pytest.mark.parametrize('place', ['model', 'model.backbone', 'model.decode_head.norm_cfg'])
def test_other_types_are_refused(content, kind, place):
    node = content
    for key in place.split('.'):
        node = node[key]
    node['type'] = kind
    with pytest.raises(UserError, match=rf'weights\.pth asks for {place}\.type=.*refused'):
        safe_model_config(content, name='weights.pth')


def test_what_training_needs_is_left_out(content):
    content['model']['pretrained'] = '/etc/passwd'
    content['model']['decode_head']['init_cfg'] = {'type': 'Pretrained', 'checkpoint': '/etc/passwd'}
    content['model']['decode_head']['sampler'] = {'type': 'os.system'}
    content['custom_imports'] = {'imports': ['antigravity']}
    content['custom_hooks'] = [{'type': 'subprocess.Popen'}]
    content['_base_'] = '/etc/passwd'
    before = copy.deepcopy(content)
    taken = safe_model_config(content, name='weights.pth')
    for word in ('passwd', 'antigravity', 'os.system', 'Loss', 'LoadAnnotations'):
        assert word not in str(taken)
    assert content == before


@pytest.mark.parametrize('missing', ['model', 'test_dataloader'])
def test_missing_parts(content, missing):
    del content[missing]
    with pytest.raises(UserError, match=f'has no {missing}: give the config'):
        safe_model_config(content, name='weights.pth')


@pytest.mark.parametrize('pipeline', [None, [], 'abc', {}, [{'type': 'PackSegInputs'}] * 17])
def test_no_pipeline(content, pipeline):
    content['test_dataloader'] = {'dataset': {'pipeline': pipeline}}
    with pytest.raises(UserError, match=r'has no test_dataloader\.dataset\.pipeline: give the config file'):
        safe_model_config(content, name='weights.pth')


@pytest.mark.parametrize(
    ('crop', 'stride', 'ok'),
    [
        ((1, 1), (1, 1), False),
        ((32, 32), (15, 16), False),
        ((512, 512), (64, 63), False),
        ((64, 64), (16, 16), True),
        ((512, 512), (64, 64), True),
        ((9000, 512), (512, 512), False),
        ((512,), (512,), False),
        ((0, 512), (0, 512), False),
    ],
)
def test_windows_are_not_too_many(content, crop, stride, ok):
    content['model']['test_cfg'] = {'mode': 'slide', 'crop_size': crop, 'stride': stride}
    if ok:
        assert safe_model_config(content, name='w').model.test_cfg.stride == stride
        return
    with pytest.raises(UserError, match=r'model\.test_cfg\.(crop_size|stride)'):
        safe_model_config(content, name='w')


def test_a_network_larger_than_its_weights_is_not_built():
    config = described()
    weights = weights_of(config)
    large = {'depths': [64] * 4, 'embed_dims': [512, 4096, 4096, 4096], 'num_heads': [1] * 4, 'mlp_ratio': 16}
    config['model']['backbone']['arch'] = {**large, 'stem_channels': 512}
    with pytest.raises(UserError, match='more than its weights have'):
        built(config, weights)
    # a tensor that repeats one number over and over stores just that
    weights['decode_head.conv_seg.bias'] = torch.zeros(1).expand(10**12)
    with pytest.raises(UserError, match='more than its weights have'):
        built(config, weights)


# the ways in that were shown, by a checkpoint and by a published folder

LOSSES = ('CrossEntropyLoss', 'FocalLoss', 'DiceLoss', 'LovaszLoss', 'TverskyLoss')


def _class_weights(config, source):
    head = config['model']['decode_head']
    head['loss_decode'] = [{'type': kind, 'class_weight': source} for kind in LOSSES]
    config['model']['auxiliary_head'] = {
        **described(head='FCNHead')['model']['decode_head'],
        'loss_decode': {'type': 'CrossEntropyLoss', 'class_weight': source},
    }


def _resize_type(config, source):
    step = {'type': 'RandomResize', 'scale': (64, 64), 'resize_type': 'torch.hub.load', 'repo_or_dir': source}
    config['test_dataloader']['dataset']['pipeline'].insert(1, step)


def _choice_resize_type(config, source):
    step = {'type': 'RandomChoiceResize', 'scales': [(64, 64)], 'resize_type': 'torch.hub.load', 'source': source}
    config['test_dataloader']['dataset']['pipeline'].insert(1, step)


def _key_mapper(config, source):
    load = {'type': 'LoadBiomedicalImageFromFile', 'decode_backend': 'pickle'}
    config['test_dataloader']['dataset']['pipeline'][1:1] = [
        {'type': 'Resize', 'scale': (64, 64), 'keep_ratio': source},
        {'type': 'KeyMapper', 'mapping': {'img_path': 'keep_ratio'}, 'transforms': [load]},
    ]


def _broadcaster(config, source):
    load = {'type': 'LoadBiomedicalData', 'decode_backend': 'pickle', 'backend_args': {'backend': source}}
    config['test_dataloader']['dataset']['pipeline'].insert(
        1, {'type': 'TransformBroadcaster', 'mapping': {'img_path': [source]}, 'transforms': [load]}
    )


def _norm_layer(config, source):
    config['model']['backbone'] = {'type': 'TIMMBackbone', 'model_name': 'resnet18', 'norm_layer': source}


def _model_name(config, source):
    config['model']['backbone'] = {'type': 'TIMMBackbone', 'model_name': f'hf-hub:{source}'}


ATTACKS = [_class_weights, _resize_type, _choice_resize_type, _key_mapper, _broadcaster, _norm_layer, _model_name]


@pytest.mark.parametrize('attack', ATTACKS, ids=lambda a: a.__name__.strip('_'))
@pytest.mark.parametrize('by_url', [False, True], ids=['file', 'url'])
@pytest.mark.parametrize('way', ['checkpoint', 'published'])
def test_shown_attacks(attack, by_url, way, trap, tmp_path):
    config = described()
    if attack is _class_weights:
        config['model']['auxiliary_head'] = described(head='FCNHead')['model']['decode_head']
    weights = weights_of(config)
    attack(config, trap.url if by_url else str(trap.file))
    if way == 'checkpoint':
        sent = checkpoint(tmp_path / 'sent.pth', config, weights)
    else:
        sent = publish(tmp_path / 'sent', config, weights)
    if attack is _class_weights:  # losses are left out, so the model predicts
        assert load_predictor(sent, device='cpu')(IMAGE).labels.shape == IMAGE.shape[:2]
    else:
        with pytest.raises(UserError, match=r'asks for (model\.backbone|test_dataloader)\..*is refused'):
            load_predictor(sent, device='cpu')
    trap.check()


def _layer_types(config, source):
    config['model']['decode_head']['norm_cfg'] = {'type': 'BN', 'eps': source}
    config['model']['decode_head']['conv_cfg'] = {'type': 'DCNv2', 'im2col_step': source}


def _keyed_block(config, source):
    stages = copy.deepcopy(HR_STAGES)
    stages['stage4']['block'] = source
    config['model']['backbone'] = {'type': 'HRNet', 'extra': stages}


def _nested_in_ignored_step(config, source):
    steps = config['test_dataloader']['dataset']['pipeline']
    steps[2] = {'type': 'LoadAnnotations', 'transforms': [{'type': 'LoadImageFromNpyFile', 'filename': source}]}
    steps[3] = {'type': 'PackSegInputs', 'meta_keys': [source]}


def _step_of_bytes(config, source):
    config['test_dataloader']['dataset']['pipeline'].insert(1, {'type': 'Pad', 'size': (64, 64), 'pad_val': source})


def _batch_augments_and_more(config, source):
    config['model']['data_preprocessor'] |= {'batch_augments': [{'type': source}], 'size': (source, 64)}


FURTHER = [_layer_types, _keyed_block, _nested_in_ignored_step, _step_of_bytes, _batch_augments_and_more]


@pytest.mark.parametrize('attack', FURTHER, ids=lambda a: a.__name__.strip('_'))
def test_further_ways_in_are_refused(attack, trap, tmp_path):
    config = described()
    weights = weights_of(config)
    for number, source in enumerate((str(trap.file), trap.url, 'torch.hub.load', trap.url.encode())):
        attack(config, source)
        with pytest.raises(UserError, match='is refused'):
            load_predictor(checkpoint(tmp_path / f'{number}.pth', config, weights), device='cpu')
    trap.check()


def test_keys_that_configs_resolve_are_values_here(trap, tmp_path, monkeypatch):
    """``_base_``, environment variables and paths in braces, ``_delete_``: what Config.fromfile would follow."""
    monkeypatch.setenv('SECRET', 'told')
    config = described()
    file = checkpoint(tmp_path / 'w.pth', config, weights_of(config))
    content = torch.load(file, weights_only=True)
    content['meta']['cfg'] += f'\n_base_ = {str(trap.file)!r}\ncustom_imports = dict(imports=["trap_module"])\n'
    torch.save(content, file)
    assert load_predictor(file, device='cpu')(IMAGE).labels.shape == IMAGE.shape[:2]
    for text in ('{{$SECRET:x}}', '{{ fileDirname }}', '{{_base_.model}}'):
        content['meta']['cfg'] += f'\nmodel = dict(type="EncoderDecoder", backbone=dict(type={text!r}))\n'
        torch.save(content, file)
        with pytest.raises(UserError, match='is refused') as caught:
            load_predictor(file, device='cpu')
        assert text in str(caught.value) and 'told' not in str(caught.value)
    trap.check()


# the second line of defence


def _read_directly(descriptor_of):
    os.close(os.open(descriptor_of, os.O_RDONLY))


ACCESS = {
    'open': lambda trap: open(trap.file),  # noqa: SIM115
    'write': lambda trap: open(f'{trap.file}.py', 'w'),  # noqa: SIM115
    'os.open': lambda trap: _read_directly(trap.file),
    'unpickle': lambda trap: pickle.loads(pickle.dumps(Payload(trap.executed))),
    'np.load': lambda trap: np.load(trap.file, allow_pickle=True),
    'torch.load': lambda trap: torch.load(trap.file, weights_only=False),
    'torch.hub': lambda trap: torch.hub.load_state_dict_from_url(trap.url, model_dir=str(trap.file.parent)),
    'file of mmengine': lambda trap: fileio.load(str(trap.file)),
    'address of mmengine': lambda trap: fileio.get(trap.url),
    'socket': lambda trap: socket.create_connection(('127.0.0.1', trap.server.server_port)),
    'name look-up': lambda trap: socket.getaddrinfo('localhost', 80),
    'urllib': lambda trap: urllib.request.urlopen(trap.url),
    'subprocess': lambda trap: subprocess.run(['mkdir', trap.executed], check=True),
    'os.system': lambda trap: os.system(f'mkdir {trap.executed}'),
    'spawn': lambda trap: os.posix_spawn('/bin/mkdir', ['mkdir', str(trap.executed)], {}),
    'mkdir': lambda trap: os.mkdir(trap.executed),
    'rename': lambda trap: os.rename(trap.file, trap.executed),
    'import': lambda trap: importlib.import_module('trap_module'),
    'fork': lambda trap: os.fork() or os._exit(0),
    'library': lambda trap: ctypes.CDLL('libm.so.6'),
}


@pytest.mark.parametrize('swallowed', [False, True])
@pytest.mark.parametrize('way', ACCESS)
def test_nothing_is_touched_while_a_network_is_built(way, swallowed, trap, monkeypatch):
    monkeypatch.syspath_prepend(trap.file.parent)
    (trap.file.parent / 'trap_module.py').write_text(f'import os; os.mkdir({str(trap.executed)!r})')
    with (
        pytest.raises(UserError, match=r'^the config in sent\.pth makes its network call .*refused: if you trust it'),
        refuse_access('sent.pth', most_parameters=0),
    ):
        try:
            ACCESS[way](trap)
        except Exception:
            if not swallowed:
                raise
    assert not trap.executed.exists() and not trap.hits and trap.file.is_file()
    assert len(trap.file.read_bytes()) > 0  # and afterwards all is as before


def test_the_guard_is_for_its_own_thread():
    read, code = [], __file__
    with refuse_access('sent.pth', most_parameters=0):
        pass
    started, done = threading.Event(), threading.Event()

    def elsewhere():
        started.wait(10)
        read.append(len(open(code).read()))  # noqa: SIM115
        done.set()

    thread = threading.Thread(target=elsewhere)
    thread.start()
    with refuse_access('sent.pth', most_parameters=0):
        started.set()
        assert done.wait(10)
    thread.join()
    assert read and read[0] > 0


def test_python_still_imports_what_torch_needs():
    sys.modules.pop('colorsys', None)
    with refuse_access('sent.pth', most_parameters=0):
        importlib.import_module('colorsys')
    assert 'colorsys' in sys.modules


@pytest.mark.parametrize('way', ['open', 'address of mmengine', 'subprocess'])
def test_what_the_list_missed_is_named(way, trap, monkeypatch):
    """A class that was listed by mistake."""

    class Careless(find_type('VOLO')):
        def __init__(self, **arguments):
            super().__init__(**arguments)
            ACCESS[way](trap)

    config = described()
    weights = weights_of(config)
    monkeypatch.setitem(MODELS.module_dict, 'Careless', Careless)
    monkeypatch.setitem(untrusted_parts.BACKBONES, 'Careless', untrusted_parts.BACKBONES['VOLO'])
    config['model']['backbone']['type'] = 'Careless'
    with pytest.raises(UserError, match=r'makes its network call (open|urllib|socket|subprocess).*which is refused'):
        built(config, weights)
    assert not trap.executed.exists() and not trap.hits


FRESH = """
import sys
from volo_seg.inference import Predictor
import numpy as np
predictor = Predictor.from_checkpoint(sys.argv[1], device='cpu')
print(predictor(np.zeros((50, 70, 3), np.uint8)).labels.shape)
"""


@pytest.mark.parametrize('backbone', ['VOLO', 'SwinTransformer'])
def test_a_fresh_process_can_build(backbone, tmp_path):
    """All that is imported on first use is imported before access is refused, or is Python's own."""
    config = described(backbone, 'UPerHead')
    file = checkpoint(tmp_path / 'w.pth', config, weights_of(config))
    done = subprocess.run([sys.executable, '-c', FRESH, str(file)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert '(50, 70)' in done.stdout


# odd files: one sentence or success, nothing else


def _paths(node, path=()):
    yield path
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield from _paths(value, (*path, key))


def _deep(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


ODD = [
    *(None, True, 0, -1, 1, 2, 3, 17, 10**6, 10**40, -(10**40), 1e308, 0.5, float('nan'), float('inf'), '', 'whole'),
    *(
        'x' * 10_000,
        '\x1b[31m\n',
        '\ud800',
        '\0',
        'VOLO',
        'BN',
        'GN',
        'slide',
        [],
        {},
        [None],
        [[1, 2]],
        {'type': None},
    ),
    *({'type': 'BN'}, {'type': 'ReLU'}, {'type': 'UNet'}, {'': ''}, [1, 2, 3, 4] * 3, _deep(200), [0.5] * 4),
]


def _mutated(config, rng):
    config = copy.deepcopy(config)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        *path, key = rng.choice([path for path in _paths(config) if path])
        node = config
        for step in path:
            node = node[step]
        match rng.randrange(4):
            case 0:
                del node[key]
            case 1 if isinstance(node, dict):
                node[rng.choice(['further', 'in_index', 'size', 'type', '_scope_', 'init_cfg', 'out_indices'])] = (
                    rng.choice(ODD)
                )
            case 2:
                node[key] = [node[key], rng.choice(ODD)]
            case _:
                node[key] = rng.choice(ODD)
    return config


def _outcome(call):
    try:
        call()
    except UserError as error:
        assert '\n' not in str(error) and str(error).isprintable() and len(str(error)) < 700
        return 'refused'
    return 'fine'


def test_mutated_folders_give_one_sentence(tmp_path):
    config = {**described(type='VOLOSegmentor'), **DESCRIBED}
    folder = publish(tmp_path / 'published', config, weights_of(config))
    rng = random.Random(11)
    outcomes = []
    for _ in range(400):
        (folder / 'config.json').write_text(json.dumps(_mutated(config, rng)))
        outcomes.append(_outcome(lambda: Predictor.from_pretrained(folder, device='cpu')(IMAGE)))
    assert outcomes.count('refused') > 200 and outcomes.count('fine') > 10


def test_damaged_json_gives_one_sentence(tmp_path):
    config = described()
    folder = publish(tmp_path / 'published', config, weights_of(config))
    whole = (folder / 'config.json').read_bytes()
    rng = random.Random(12)
    texts = [
        b'\xff\xfe',
        b'null',
        b'[]',
        b'1e999',
        b'"',
        b'[' * 10**5,
        b'{"a":' * 10**5,
        b'9' * 5000,
        b'NaN',
        b'\0' * 9,
    ]
    texts += [
        whole.replace(b'"VOLO"', b'"VOLO", "type": "ResNet"'),
        whole.replace(b'[8, 16, 16, 16]', b'[' * 900 + b']' * 900),
    ]
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        texts.append(bytes(data))
    outcomes = []
    for text in texts:
        (folder / 'config.json').write_bytes(text)
        outcomes.append(_outcome(lambda: Predictor.from_pretrained(folder, device='cpu')(IMAGE)))
    assert outcomes[:12] == ['refused'] * 12


def test_damaged_text_gives_one_sentence():
    text = Config(described(), format_python_code=False).pretty_text
    rng = random.Random(13)
    texts = [
        'x = ' + '[' * 10**5,
        'x = ' + '-' * 10**5 + '1',
        'x = a' + '.b' * 10**5,
        'x = {[]: 1}',
        'x = {[]}',
        '\0',
        '\ud800',
    ]
    texts += [
        'model = 0x' + 'f' * 10**5,
        text.replace("'VOLO'", '0x' + 'f' * 10**5),
        text.replace("'VOLO'", '(' * 90 + ')' * 90),
    ]
    for _ in range(400):
        characters = list(text)
        for _ in range(rng.randrange(1, 4)):
            characters[rng.randrange(len(characters))] = rng.choice('(){}[],=\'"\\\n 0a-*.é\x00')
        texts.append(''.join(characters))
    outcomes = [_outcome(lambda t=t: safe_model_config(parse_config_text(t, name='w'), name='w')) for t in texts]
    assert outcomes[:10] == ['refused'] * 10 and outcomes.count('fine') > 5


@pytest.mark.parametrize(
    ('classes', 'told'),
    [
        ([], 'names no classes'),
        ({'a': 1}, 'names no classes'),
        (['a', None, 'c'], 'names no classes'),
        (['a', 'b', 'c' * 10**6], 'longer than 256 characters'),
        (['a', 'b', '\x1b]0;title\x07'], 'cannot be printed'),
        (['a', 'b', 'line\nline'], 'cannot be printed'),
        (['x'] * 10**5, 'names 100000 classes, more than 65536'),
        (['a', 'b'], 'names 2 classes, but its model has 3'),
    ],
)
def test_odd_classes(classes, told, tmp_path):
    config = described()
    weights = weights_of(config)
    file = checkpoint(tmp_path / 'w.pth', config, weights, dataset_meta={'classes': classes})
    with pytest.raises(UserError, match=told) as caught:
        load_predictor(file, device='cpu')
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500
    folder = publish(tmp_path / 'published', config, weights)
    (folder / 'config.json').write_text(
        json.dumps({**config, 'classes': classes, 'palette': [[0, 0, 0]] * len(classes)})
    )
    with pytest.raises(UserError):
        load_predictor(folder, device='cpu')


@pytest.mark.parametrize('meta', [None, [], ['a', 'b', 'c'], 'abc', 3, torch.zeros(3)])
def test_odd_dataset_meta(meta, tmp_path):
    config = described()
    file = checkpoint(tmp_path / 'w.pth', config, weights_of(config), dataset_meta=meta)
    with pytest.raises(UserError, match='names no classes'):
        load_predictor(file, device='cpu')


@pytest.mark.parametrize(
    'palette',
    [None, 3, 'abc', [], [[1, 2]], [[1, 2, 3]], [[1, 2, 10**40]] * 3, [[float('nan')] * 3] * 3, [[-1, 0, 0]] * 3]
    + [_deep(100), {'a': 1}, [['a', 'b', 'c']] * 3, torch.zeros(3, 4), np.zeros((3, 4)), [{1: 2}] * 3],
)
def test_an_odd_palette_is_replaced(palette, tmp_path):
    config = described()
    meta = {'classes': CLASSES, 'palette': palette}
    file = checkpoint(tmp_path / 'w.pth', config, weights_of(config), dataset_meta=meta)
    assert load_predictor(file, device='cpu')(IMAGE).palette.tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0]]

"""The UPerNet decode head with fewer multiply-adds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmseg.models.decode_heads import UPerHead
from mmseg.models.decode_heads.psp_head import PPM
from mmseg.registry import MODELS
from torch import Tensor, nn

from volo_seg.models.decode_heads.resized_loss import ResizedLossMixin, is_stock
from volo_seg.models.resize.matrices import adaptive_avg_pools
from volo_seg.models.resize.split_conv import conv3x3_of_maps, same_size
from volo_seg.ops import exporting, why_plain


@MODELS.register_module()
class VOLOUPerHead(ResizedLossMixin, UPerHead):
    """A drop-in ``UPerHead`` that gives equal results with about half the multiply-adds.

    Arguments and parameter names are those of MMSegmentation's ``UPerHead``, whose checkpoints load. The fusion
    convolution and the bottleneck of the pooling pyramid take maps that are resized to a common size. Resizing and
    mixing of channels commute, so maps that would be enlarged are convolved at their own size where that costs less.
    3x3 convolutions of many channels use :func:`volo_seg.models.winograd.conv3x3`.

    That is chosen by measurements on a CPU. On a device whose type is not in ``optimized_devices``, ``UPerHead`` itself
    computes; ``optimized_devices=('cpu', 'cuda')`` turns the other order on for GPUs too.

    Maps are channels_last in memory at inference and contiguous where gradients are recorded (benchmarks/uper_head.py).
    A submodule that has hooks, is parametrised, or is not the one that ``UPerHead`` builds is called as it is. Where
    :func:`volo_seg.ops.why_plain` gives a reason, ``UPerHead`` itself computes. Hooks that are registered for all
    modules at once see those modules that are called. Losses are computed as in :class:`VOLOFCNHead`.

    Shapes: maps (B, C_i, H_i, W_i), NCHW in any memory format, to (B, classes, H_0, W_0).

    Source: arXiv 1807.10221.
    """

    def __init__(
        self,
        pool_scales: Sequence[int] = (1, 2, 3, 6),
        *,
        optimized_devices: Sequence[str] = ('cpu',),
        **kwargs: Any,
    ) -> None:
        super().__init__(pool_scales, **kwargs)
        self.optimized_devices = tuple(optimized_devices)

    def _is_plain(self, *maps: Tensor) -> bool:
        """Whether ``UPerHead`` itself computes."""
        if why_plain(*maps):
            return True
        return not exporting() and maps[0].device.type not in self.optimized_devices

    def psp_forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Pyramid pooling of the last map, and its bottleneck: (B, channels, H_last, W_last)."""
        x = inputs[-1]
        if self._is_plain(x) or not _is_stock_ppm(self.psp_modules):
            return super().psp_forward(inputs)
        scales = [s if isinstance(s, tuple) else (s, s) for s in self.psp_modules.pool_scales]
        pools = adaptive_avg_pools(x, scales)
        maps = [x, *(stage[1](pool) for stage, pool in zip(self.psp_modules, pools, strict=True))]
        return self._fuse(self.bottleneck, maps, x)

    def _forward_feature(self, inputs: Sequence[Tensor]) -> Tensor:
        """Features before the classifier, (B, channels, H_0, W_0)."""
        if self._is_plain(*inputs):
            return super()._forward_feature(inputs)
        maps = [_to_memory_format(m) for m in self._transform_inputs(inputs)]
        levels = [_pointwise(conv, m) for conv, m in zip(self.lateral_convs, maps[:-1], strict=True)]
        levels.append(self.psp_forward(maps))
        del maps
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + self._resize(levels[i], levels[i - 1].shape[2:])
        for i, conv in enumerate(self.fpn_convs):
            levels[i] = self._fuse(conv, [levels[i]], levels[i])
        return self._fuse(self.fpn_bottleneck, levels, levels[0])

    def cls_seg(self, feat: Tensor) -> Tensor:
        """Class logits of features (B, channels, H, W)."""
        if self._is_plain(feat) or not _runs_as_linear(self.conv_seg, feat):
            return super().cls_seg(feat)
        return _linear(self.conv_seg, feat if self.dropout is None else self.dropout(feat))

    def _fuse(self, module: nn.Module, maps: Sequence[Tensor], like: Tensor) -> Tensor:
        """Apply ``module`` to ``maps``, resized to the size of ``like`` and concatenated."""
        size = (like.shape[2], like.shape[3])
        if not is_stock(module, ConvModule) or not _is_stock_conv(module.conv, 3):
            return module(torch.cat([self._resize(m, size) for m in maps], dim=1))
        x = conv3x3_of_maps(maps, module.conv.weight, size, align_corners=self.align_corners)
        if module.conv.bias is not None:
            x = x + module.conv.bias[:, None, None]
        return _norm_and_activate(module, x)

    def _resize(self, x: Tensor, size: Sequence[int]) -> Tensor:
        if same_size(x, size):
            return x
        return F.interpolate(x, tuple(size), mode='bilinear', align_corners=self.align_corners)


def _norm_and_activate(module: Any, x: Tensor) -> Tensor:
    """Apply normalisation and activation of the ``ConvModule``."""
    if module.with_norm:
        x = module.norm(x)
    return module.activate(x) if module.with_activation else x


def _pointwise(module: nn.Module, x: Tensor) -> Tensor:
    """Apply ``module``, a 1x1 convolution with normalisation and activation."""
    if not is_stock(module, ConvModule) or not _runs_as_linear(module.conv, x):
        return module(x)
    return _norm_and_activate(module, _linear(module.conv, x))


def _is_stock_ppm(module: Any) -> bool:
    return is_stock(module, PPM) and all(
        is_stock(stage, nn.Sequential) and is_stock(stage[0], nn.AdaptiveAvgPool2d) for stage in module
    )


def _is_stock_conv(conv: nn.Module, side: int) -> bool:
    """Whether ``conv`` is a convolution of ``side`` x ``side`` that keeps the size and pads with zeros."""
    if not is_stock(conv, nn.Conv2d) or why_plain(conv.weight):
        return False
    geometry = (conv.kernel_size, conv.padding, conv.stride, conv.dilation)
    half = side // 2
    wanted = ((side, side), (half, half), (1, 1), (1, 1))
    return geometry == wanted and conv.groups == 1 and conv.padding_mode == 'zeros'


def _runs_as_linear(conv: nn.Module, x: Tensor) -> bool:
    """Whether to run a 1x1 convolution as a linear layer, three times as fast at inference on a CPU."""
    if x.device.type != 'cpu' or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    return _is_stock_conv(conv, 1)


def _linear(conv: Any, x: Tensor) -> Tensor:
    return F.linear(x.permute(0, 2, 3, 1), conv.weight.flatten(1), conv.bias).permute(0, 3, 1, 2)


def _to_memory_format(x: Tensor) -> Tensor:
    """channels_last at inference, contiguous in training; see :class:`VOLOUPerHead`."""
    if torch.compiler.is_compiling():
        return x
    return x.contiguous(memory_format=torch.contiguous_format if torch.is_grad_enabled() else torch.channels_last)

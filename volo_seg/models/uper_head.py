"""UPerNet's decode head, with every map mixed at its own resolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmseg.models.decode_heads import UPerHead
from mmseg.registry import MODELS
from torch import Tensor

from .pooling import adaptive_avg_pools
from .split_conv import Size, conv3x3_of_maps


@MODELS.register_module()
class VOLOUPerHead(UPerHead):
    """``UPerHead`` of MMSegmentation: the same arguments, parameters and results, at about half the arithmetic.

    The fusion convolution and the bottleneck behind the pooling pyramid see maps that were resized to a common size.
    A resize acts on space alone, so for maps that it enlarges the channels are mixed first, at the map's own size,
    wherever that costs less. Checkpoints of ``UPerHead`` load unchanged.

    Shapes: maps (B, C_i, H_i, W_i), NCHW in any memory layout; out (B, classes, H_0, W_0).

    Source: arXiv 1807.10221.
    """

    def psp_forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Pooling pyramid over the last map and its bottleneck, (B, channels, H_last, W_last)."""
        x = inputs[-1]
        scales = [s if isinstance(s, tuple) else (s, s) for s in self.psp_modules.pool_scales]
        pools = adaptive_avg_pools(x, scales)
        maps = [x, *(stage[1](pool) for stage, pool in zip(self.psp_modules, pools, strict=True))]
        return self._fuse(self.bottleneck, maps, tuple(x.shape[2:]))

    def _forward_feature(self, inputs: Sequence[Tensor]) -> Tensor:
        """Features before the classifier, (B, channels, H_0, W_0)."""
        maps = [_laid_out(m) for m in self._transform_inputs(inputs)]
        laterals = [_pointwise(conv, m) for conv, m in zip(self.lateral_convs, maps, strict=False)]
        laterals.append(self.psp_forward(maps))
        del maps
        for i in range(len(laterals) - 1, 0, -1):
            laterals[i - 1] = self._plus_resized(laterals[i - 1], laterals[i])
        for i, conv in enumerate(self.fpn_convs):
            laterals[i] = conv(laterals[i])
        return self._fuse(self.fpn_bottleneck, laterals, tuple(laterals[0].shape[2:]))

    def cls_seg(self, feat):
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or feat.device.type != 'cpu':
            return super().cls_seg(feat)
        return _linear(self.conv_seg, feat)

    def _plus_resized(self, fine: Tensor, coarse: Tensor) -> Tensor:
        size = fine.shape[2:]
        return fine + F.interpolate(coarse, size, mode='bilinear', align_corners=self.align_corners)

    def _fuse(self, module: ConvModule, maps: Sequence[Tensor], size: Size) -> Tensor:
        """``module`` on ``maps`` resized to ``size`` and concatenated."""
        x = conv3x3_of_maps(maps, module.conv.weight, size, align_corners=self.align_corners)
        if module.conv.bias is not None:
            x = x + module.conv.bias[:, None, None]
        return _finished(module, x)


def _finished(module: ConvModule, x: Tensor) -> Tensor:
    """Norm and activation of ``module``."""
    if module.with_norm:
        x = module.norm(x)
    return module.activate(x) if module.with_activation else x


def _linear(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return F.linear(x.permute(0, 2, 3, 1), conv.weight.flatten(1), conv.bias).permute(0, 3, 1, 2)


def _pointwise(module, x):
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or x.device.type != 'cpu':
        return module(x)
    return _finished(module, _linear(module.conv, x))


def _laid_out(x: Tensor) -> Tensor:
    """On a CPU: NHWC in memory at inference, NCHW where gradients are recorded, as measured; elsewhere as it came."""
    if x.device.type != 'cpu' or torch.compiler.is_compiling():
        return x
    return x.contiguous(memory_format=torch.contiguous_format if torch.is_grad_enabled() else torch.channels_last)

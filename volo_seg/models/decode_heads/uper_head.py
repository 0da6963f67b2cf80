"""UPerNet's decode head, with every map mixed at its own resolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmseg.models.decode_heads import UPerHead
from mmseg.registry import MODELS
from torch import Tensor, nn

from volo_seg.models.resize.pooling import adaptive_avg_pools
from volo_seg.models.resize.split_conv import conv3x3_of_maps, plus, same_size


@MODELS.register_module()
class VOLOUPerHead(UPerHead):
    """``UPerHead`` of MMSegmentation: the same arguments, parameters and results, at about half the arithmetic.

    The fusion convolution and the bottleneck behind the pooling pyramid see maps that were resized to a common size.
    A resize acts on space alone, so for maps that it enlarges the channels are mixed first, at the map's own size,
    wherever that costs less. Checkpoints of ``UPerHead`` load unchanged.

    On a CPU the maps lie as NHWC in memory at inference and as NCHW where gradients are recorded, as measured;
    elsewhere as they come. With a ``conv_cfg`` other than a plain convolution it computes as ``UPerHead`` does.

    Shapes: maps (B, C_i, H_i, W_i), NCHW in any memory layout; out (B, classes, H_0, W_0).

    Source: arXiv 1807.10221.
    """

    def psp_forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Pooling pyramid over the last map and its bottleneck, (B, channels, H_last, W_last)."""
        if not _is_plain(self.bottleneck.conv):
            return super().psp_forward(inputs)
        x = inputs[-1]
        scales = [s if isinstance(s, tuple) else (s, s) for s in self.psp_modules.pool_scales]
        pools = adaptive_avg_pools(x, scales)
        maps = [x, *(stage[1](pool) for stage, pool in zip(self.psp_modules, pools, strict=True))]
        return self._fuse(self.bottleneck, maps, x)

    def _forward_feature(self, inputs: Sequence[Tensor]) -> Tensor:
        """Features before the classifier, (B, channels, H_0, W_0)."""
        if not (_is_plain(self.bottleneck.conv) and _is_plain(self.fpn_bottleneck.conv)):
            return super()._forward_feature(inputs)
        maps = [_laid_out(m) for m in self._transform_inputs(inputs)]
        levels = [_pointwise(conv, m) for conv, m in zip(self.lateral_convs, maps[:-1], strict=True)]
        levels.append(self.psp_forward(maps))
        del maps
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = self._plus_resized(levels[i - 1], levels[i])
        for i, conv in enumerate(self.fpn_convs):
            levels[i] = conv(levels[i])
        return self._fuse(self.fpn_bottleneck, levels, levels[0])

    def cls_seg(self, feat: Tensor) -> Tensor:
        """Class logits of features (B, channels, H, W)."""
        if not _is_linear(self.conv_seg, feat):
            return super().cls_seg(feat)
        return _linear(self.conv_seg, feat if self.dropout is None else self.dropout(feat))

    def _plus_resized(self, fine: Tensor, coarse: Tensor) -> Tensor:
        size = fine.shape[2:]
        if not same_size(coarse, size):
            coarse = F.interpolate(coarse, size, mode='bilinear', align_corners=self.align_corners)
        return plus(fine, coarse)

    def _fuse(self, module: ConvModule, maps: Sequence[Tensor], like: Tensor) -> Tensor:
        """``module`` on ``maps`` resized to the size of ``like`` and concatenated."""
        size = (like.shape[2], like.shape[3])
        x = conv3x3_of_maps(maps, module.conv.weight, size, align_corners=self.align_corners)
        if module.conv.bias is not None:
            x = x + module.conv.bias[:, None, None]
        return _normalised(module, x)


def _normalised(module: ConvModule, x: Tensor) -> Tensor:
    """Normalisation and activation of ``module``."""
    if module.with_norm:
        x = module.norm(x)
    return module.activate(x) if module.with_activation else x


def _pointwise(module: ConvModule, x: Tensor) -> Tensor:
    """``module``, whose convolution is 1x1."""
    return _normalised(module, _linear(module.conv, x)) if _is_linear(module.conv, x) else module(x)


def _is_plain(conv: nn.Module) -> bool:
    return type(conv) is nn.Conv2d


def _is_linear(conv: nn.Module, x: Tensor) -> bool:
    """Whether a 1x1 convolution is better a linear layer: at inference on a CPU torch's own is three times slower."""
    return _is_plain(conv) and x.device.type == 'cpu' and not (torch.is_grad_enabled() or torch.compiler.is_compiling())


def _linear(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return F.linear(x.permute(0, 2, 3, 1), conv.weight.flatten(1), conv.bias).permute(0, 3, 1, 2)


def _laid_out(x: Tensor) -> Tensor:
    if x.device.type != 'cpu' or torch.compiler.is_compiling():
        return x
    return x.contiguous(memory_format=torch.contiguous_format if torch.is_grad_enabled() else torch.channels_last)

"""The UPerNet decode head with fewer multiply-adds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmseg.models.decode_heads import UPerHead
from mmseg.registry import MODELS
from torch import Tensor, nn

from volo_seg.models.resize.matrices import adaptive_avg_pools
from volo_seg.models.resize.split_conv import add, conv3x3_of_maps, same_size


@MODELS.register_module()
class VOLOUPerHead(UPerHead):
    """A drop-in ``UPerHead`` that gives equal results with about half the multiply-adds.

    Arguments and parameter names are those of MMSegmentation's ``UPerHead``, whose checkpoints load. The fusion
    convolution and the bottleneck of the pooling pyramid take maps that are resized to a common size. Resizing and
    mixing of channels commute, so maps that would be enlarged are convolved at their own size where that costs less.

    On a CPU, maps are channels_last in memory at inference and contiguous where gradients are recorded
    (benchmarks/uper_head.py). With ``conv_cfg`` of another layer than ``nn.Conv2d``, ``UPerHead`` itself computes.

    Shapes: maps (B, C_i, H_i, W_i), NCHW in any memory format, to (B, classes, H_0, W_0).

    Source: arXiv 1807.10221.
    """

    def psp_forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Pyramid pooling of the last map, and its bottleneck: (B, channels, H_last, W_last)."""
        if not _is_conv2d(self.bottleneck.conv):
            return super().psp_forward(inputs)
        x = inputs[-1]
        scales = [s if isinstance(s, tuple) else (s, s) for s in self.psp_modules.pool_scales]
        pools = adaptive_avg_pools(x, scales)
        maps = [x, *(stage[1](pool) for stage, pool in zip(self.psp_modules, pools, strict=True))]
        return self._fuse(self.bottleneck, maps, x)

    def _forward_feature(self, inputs: Sequence[Tensor]) -> Tensor:
        """Features before the classifier, (B, channels, H_0, W_0)."""
        if not (_is_conv2d(self.bottleneck.conv) and _is_conv2d(self.fpn_bottleneck.conv)):
            return super()._forward_feature(inputs)
        maps = [_to_memory_format(m) for m in self._transform_inputs(inputs)]
        levels = [_pointwise(conv, m) for conv, m in zip(self.lateral_convs, maps[:-1], strict=True)]
        levels.append(self.psp_forward(maps))
        del maps
        for i in range(len(levels) - 1, 0, -1):
            coarse, size = levels[i], levels[i - 1].shape[2:]
            if not same_size(coarse, size):
                coarse = F.interpolate(coarse, size, mode='bilinear', align_corners=self.align_corners)
            levels[i - 1] = add(levels[i - 1], coarse)
            del coarse
        for i, conv in enumerate(self.fpn_convs):
            levels[i] = conv(levels[i])
        return self._fuse(self.fpn_bottleneck, levels, levels[0])

    def cls_seg(self, feat: Tensor) -> Tensor:
        """Class logits of features (B, channels, H, W)."""
        if not _is_linear(self.conv_seg, feat):
            return super().cls_seg(feat)
        return _linear(self.conv_seg, feat if self.dropout is None else self.dropout(feat))

    def _fuse(self, module: ConvModule, maps: Sequence[Tensor], like: Tensor) -> Tensor:
        """Apply ``module`` to ``maps``, resized to the size of ``like`` and concatenated."""
        size = (like.shape[2], like.shape[3])
        x = conv3x3_of_maps(maps, module.conv.weight, size, align_corners=self.align_corners)
        if module.conv.bias is not None:
            x = x + module.conv.bias[:, None, None]
        return _norm_and_activate(module, x)


def _norm_and_activate(module: ConvModule, x: Tensor) -> Tensor:
    """Apply normalisation and activation of ``module``."""
    if module.with_norm:
        x = module.norm(x)
    return module.activate(x) if module.with_activation else x


def _pointwise(module: ConvModule, x: Tensor) -> Tensor:
    """Apply ``module``, whose convolution is 1x1."""
    return _norm_and_activate(module, _linear(module.conv, x)) if _is_linear(module.conv, x) else module(x)


def _is_conv2d(conv: nn.Module) -> bool:
    return type(conv) is nn.Conv2d


def _is_linear(conv: nn.Module, x: Tensor) -> bool:
    """Whether to run a 1x1 convolution as a linear layer, three times as fast at inference on a CPU."""
    return (
        _is_conv2d(conv) and x.device.type == 'cpu' and not (torch.is_grad_enabled() or torch.compiler.is_compiling())
    )


def _linear(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return F.linear(x.permute(0, 2, 3, 1), conv.weight.flatten(1), conv.bias).permute(0, 3, 1, 2)


def _to_memory_format(x: Tensor) -> Tensor:
    """channels_last at inference on a CPU, contiguous in training there; see :class:`VOLOUPerHead`."""
    if x.device.type != 'cpu' or torch.compiler.is_compiling():
        return x
    return x.contiguous(memory_format=torch.contiguous_format if torch.is_grad_enabled() else torch.channels_last)

"""Patch embedding, downsampling between stages 1 and 2, and resizing of the position embedding."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from volo_seg.ops import at_least_float32, why_plain


class PatchEmbed(nn.Module):
    """Three convolutions, the first of stride 2, and a 4x4 projection: stride 8 in all.

    Args:
        stem_channels: Output channels of each of the three convolutions.
        embed_dim: Channels C of the tokens.
        norm_layer: Builds the normalisation behind a convolution from its number of channels.

    Shapes: (B, 3, H, W) to tokens (B, H/8, W/8, C), NHWC; H and W are multiples of 8.
    """

    def __init__(
        self, stem_channels: int, embed_dim: int, *, norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for in_channels, kernel_size, stride in ((3, 7, 2), (stem_channels, 3, 1), (stem_channels, 3, 1)):
            conv = nn.Conv2d(in_channels, stem_channels, kernel_size, stride, kernel_size // 2, bias=False)
            layers += [conv, norm_layer(stem_channels), nn.ReLU(inplace=True)]
        self.conv = nn.Sequential(*layers)
        self.proj = nn.Conv2d(stem_channels, embed_dim, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Embed the image ``x``, (B, 3, H, W) to (B, H/8, W/8, C), contiguous."""
        if not why_plain(x) and x.device.type == 'cpu' and not torch.is_grad_enabled():
            # channels_last is 1.1 times as fast without gradients, half as fast with them (benchmarks/backbone.py)
            x = x.contiguous(memory_format=torch.channels_last)
        for layer in self.conv:  # a loop frees each map early; nn.Sequential would keep its input
            x = layer(x)
        return self.proj(x).permute(0, 2, 3, 1).contiguous()


class Downsample(nn.Module):
    """A 2x2 convolution of stride 2: (B, H, W, C) to (B, H/2, W/2, C'), NHWC, even H and W."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_dim, out_dim, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Merge each 2x2 cell of tokens into one token."""
        return self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def resize_pos_embed(pos_embed: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resize a (1, H, W, C) position embedding to ``grid`` = (H, W) tokens, bicubic, in float32 or better.

    The dtype is kept. Returns ``pos_embed`` itself if it already has that size.
    """
    if tuple(pos_embed.shape[1:3]) == tuple(grid):
        return pos_embed
    return resample_pos_embed(pos_embed, grid)


def resample_pos_embed(pos_embed: Tensor, grid: tuple[int, int]) -> Tensor:
    """:func:`resize_pos_embed` without comparing sizes, for a ``grid`` of symbolic integers."""
    maps = at_least_float32(pos_embed.permute(0, 3, 1, 2))
    maps = F.interpolate(maps, size=tuple(grid), mode='bicubic', align_corners=False)
    return maps.permute(0, 2, 3, 1).to(pos_embed.dtype)

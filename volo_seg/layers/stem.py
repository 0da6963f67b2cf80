"""From pixels to tokens, and from stride 8 to stride 16."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """Three 3-channel-to-``stem_channels`` convolutions at stride 2, then a 4x4 projection: stride 8 in all.

    Args:
        stem_channels: Channels of the three convolutions.
        embed_dim: Channels of the tokens.
        norm_layer: Builds the normalisation of a convolution from its channels.

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
        if x.device.type == 'cpu' and not torch.is_grad_enabled():
            # 1.1 times as fast without gradients, half as fast with them (measured)
            x = x.contiguous(memory_format=torch.channels_last)
        for layer in self.conv:  # one by one, so that no earlier map stays referenced
            x = layer(x)
        return self.proj(x).permute(0, 2, 3, 1).contiguous()


class Downsample(nn.Module):
    """Halve the token map by a 2x2 convolution: (B, H, W, C) to (B, H/2, W/2, C'), NHWC, even H and W."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_dim, out_dim, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Merge each 2x2 cell of ``x`` into one token."""
        return self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

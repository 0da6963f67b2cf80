"""Convolutional blocks of the small network: NCHW maps, each convolution followed by a normalisation."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from volo_seg.layers.outlook_attention import OutlookAttention

NormLayer = Callable[[int], nn.Module]


class ConvNorm(nn.Sequential):
    """A convolution without bias, a normalisation and, with ``relu``, a ReLU: (B, C, H, W) to (B, C', H/s, W/s).

    Args:
        in_channels: Channels C.
        out_channels: Channels C'.
        kernel_size: Side of the kernel in pixels, odd.
        norm_layer: Builds the normalisation from its number of channels.
        stride: Stride s.
        groups: Groups of the convolution.
        relu: Whether a ReLU follows.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        norm_layer: NormLayer,
        stride: int = 1,
        groups: int = 1,
        relu: bool = True,
    ) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False)
        self.norm = norm_layer(out_channels)
        if relu:
            self.act = nn.ReLU(inplace=True)


class SeparableConv(nn.Sequential):
    """A 3x3 convolution of each channel, then a 1x1 convolution, each with normalisation and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, *, norm_layer: NormLayer, stride: int = 1) -> None:
        super().__init__(
            ConvNorm(in_channels, in_channels, 3, norm_layer=norm_layer, stride=stride, groups=in_channels),
            ConvNorm(in_channels, out_channels, 1, norm_layer=norm_layer),
        )


class InvertedResidual(nn.Module):
    """Expansion to ``expand_ratio * C`` channels, a 3x3 convolution of each, projection: (B, C, H, W) to (B, C', ...).

    The input is added where the shape stays. Source: arXiv 1801.04381, section 3.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, expand_ratio: int, norm_layer: NormLayer, stride: int = 1
    ) -> None:
        super().__init__()
        hidden = expand_ratio * in_channels
        self.residual = stride == 1 and in_channels == out_channels
        self.layers = nn.Sequential(
            ConvNorm(in_channels, hidden, 1, norm_layer=norm_layer),
            ConvNorm(hidden, hidden, 3, norm_layer=norm_layer, stride=stride, groups=hidden),
            ConvNorm(hidden, out_channels, 1, norm_layer=norm_layer, relu=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', ceil(H/s), ceil(W/s))."""
        return x + self.layers(x) if self.residual else self.layers(x)


class ConvOutlooker(nn.Module):
    """Outlook attention (K = 3, stride 2), then an inverted residual in place of the MLP: (B, C, H, W) to the same."""

    def __init__(self, channels: int, num_heads: int, *, expand_ratio: int, norm_layer: NormLayer) -> None:
        super().__init__()
        self.norm = norm_layer(channels)
        self.attn = OutlookAttention(channels, num_heads, kernel_size=3, padding=1, stride=2)
        self.mlp = InvertedResidual(channels, channels, expand_ratio=expand_ratio, norm_layer=norm_layer)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        tokens = self.norm(x).permute(0, 2, 3, 1).contiguous()
        return self.mlp(x + self.attn(tokens).permute(0, 3, 1, 2))

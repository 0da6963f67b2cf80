"""A small network of outlook attention and convolutions for CPUs, as one torch module that gives feature maps."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from volo_seg.layers.convolutions import ConvNorm, ConvOutlooker, InvertedResidual, NormLayer, SeparableConv
from volo_seg.layers.volo import check_out_indices

CHANNELS = (48, 64, 64, 128)
"""Channels of the four outputs."""


class VOLONanoFeatures(nn.Module):
    """Outlook attention at stride 8 between separable convolutions and inverted residuals.

    It needs torch alone; ``volo_seg.models.VOLONano`` is the same network in MMSegmentation.

    Args:
        num_outlookers: Blocks of outlook attention at stride 8.
        expand_ratio: Hidden channels of the inverted residuals at strides 16 and 32 divided by their input's.
        out_indices: Stages to return, of 0..3, in ascending order.
        norm_layer: Builds the normalisation of a convolution from its number of channels.
        frozen_stages: -1 freezes nothing; s in 0..3 freezes stages 0..s.

    Shapes: (B, 3, H, W) of any H and W; output i is (B, C_i, ceil(H / s_i), ceil(W / s_i)), s = (4, 8, 16, 32),
    C = (48, 64, 64, 128).

    Raises:
        ValueError: An argument is outside the values above.
    """

    def __init__(
        self,
        *,
        num_outlookers: int = 2,
        expand_ratio: int = 6,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        norm_layer: NormLayer = nn.BatchNorm2d,
        frozen_stages: int = -1,
    ) -> None:
        super().__init__()
        self.out_indices = check_out_indices(out_indices)
        if not -1 <= frozen_stages <= 3:
            raise ValueError(f'frozen_stages={frozen_stages} is not one of -1 (none), 0..3 (stages)')
        self.frozen_stages = frozen_stages

        def residuals(in_channels: int, channels: int, stride: int) -> list[nn.Module]:
            return [
                InvertedResidual(c, channels, expand_ratio=expand_ratio, norm_layer=norm_layer, stride=s)
                for c, s in ((in_channels, stride), (channels, 1), (channels, 1))
            ]

        outlookers = [ConvOutlooker(64, 2, expand_ratio=2, norm_layer=norm_layer) for _ in range(num_outlookers)]
        self.stages = nn.ModuleList(
            [
                nn.Sequential(
                    ConvNorm(3, 32, 3, norm_layer=norm_layer, stride=2),
                    SeparableConv(32, 48, norm_layer=norm_layer, stride=2),
                ),
                nn.Sequential(SeparableConv(48, 64, norm_layer=norm_layer, stride=2), *outlookers),
                nn.Sequential(*residuals(64, 64, 2)),
                nn.Sequential(*residuals(64, 96, 2), *residuals(96, 128, 1)),
            ]
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity='relu')
        for stage in self.stages[: frozen_stages + 1]:
            stage.requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """The outputs of the stages ``out_indices`` for images ``x`` (B, 3, H, W), NCHW."""
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return tuple(maps[i] for i in self.out_indices)

    def train(self, mode: bool = True) -> VOLONanoFeatures:
        """Set the mode; frozen stages stay in evaluation mode."""
        super().train(mode)
        for stage in self.stages[: self.frozen_stages + 1]:
            stage.eval()
        return self

"""A feature pyramid from the outputs of VOLO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule
from mmseg.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class VOLOPyramid(BaseModule):
    """Rescale maps of strides (8, 16, 16, 16) to strides (4, 8, 16, 32); channels are kept.

    The first two maps pass a transposed convolution of stride 2 with normalisation and GELU, the third stays as it is,
    the last is max-pooled (odd sides round up).

    Args:
        in_channels: Channels of the four maps.
        norm_cfg: Normalisation behind the transposed convolutions.
        init_cfg: See ``mmengine.model.BaseModule``.

    Shapes: four maps (B, C_i, H_i, W_i), NCHW; out (2H, 2W), (2H, 2W), (H, W), (ceil(H/2), ceil(W/2)) of each.

    Raises:
        ValueError: ``in_channels`` does not have four entries, or ``forward`` gets another number of maps.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        *,
        norm_cfg: Mapping[str, Any] | None = None,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg=dict(init_cfg) if init_cfg else None)
        if len(in_channels) != 4:
            raise ValueError(f'in_channels={list(in_channels)} has {len(in_channels)} entries; VOLO gives 4 maps')
        norm = dict(norm_cfg or {'type': 'BN'})
        self.levels = nn.ModuleList(
            [
                *(self._double(channels, norm) for channels in in_channels[:2]),
                nn.Identity(),
                nn.MaxPool2d(2, 2, ceil_mode=True),
            ]
        )

    @staticmethod
    def _double(channels: int, norm_cfg: dict[str, Any]) -> nn.Sequential:
        deconv = nn.ConvTranspose2d(channels, channels, 2, 2)
        return nn.Sequential(deconv, build_norm_layer(norm_cfg, channels)[1], nn.GELU())

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Rescale each of the four ``maps``."""
        if len(maps) != len(self.levels):
            raise ValueError(f'got {len(maps)} maps; VOLOPyramid needs all four (backbone out_indices=(0, 1, 2, 3))')
        return tuple(level(m) for level, m in zip(self.levels, maps, strict=True))

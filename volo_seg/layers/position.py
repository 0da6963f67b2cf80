"""The learned grid of absolute positions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def resize_pos_embed(pos_embed: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resample (1, H, W, C) positions to ``grid`` = (H, W) in tokens (16 pixels each): bicubic, in float32.

    The dtype is kept (float64 is resampled in float64), and ``pos_embed`` itself comes back if it already has that
    grid.
    """
    if tuple(pos_embed.shape[1:3]) == tuple(grid):
        return pos_embed
    return resample_pos_embed(pos_embed, grid)


def resample_pos_embed(pos_embed: Tensor, grid: tuple[int, int]) -> Tensor:
    """The same without looking at the sizes, which may be symbols of an export."""
    maps = pos_embed.permute(0, 3, 1, 2)
    maps = maps if maps.dtype.itemsize > 4 else maps.float()
    maps = F.interpolate(maps, size=tuple(grid), mode='bicubic', align_corners=False)
    return maps.permute(0, 2, 3, 1).to(pos_embed.dtype)

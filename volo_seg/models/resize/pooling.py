"""Adaptive average pooling as matrix products, right for every size in an exported graph too."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from volo_seg.models.resize.interpolation import exporting


def pooling_matrix(source: int, target: int, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Weights (target, source) of ``nn.AdaptiveAvgPool2d`` along one axis.

    Bin i covers pixels floor(i * source / target) up to, not including, ceil((i + 1) * source / target).
    ``source`` may be a symbol of an export.
    """
    bins = torch.arange(target, device=device)[:, None]
    pixels = torch.arange(source, device=device)[None, :]
    first = bins * source // target
    last = ((bins + 1) * source + target - 1) // target
    inside = (pixels >= first) & (pixels < last)
    return inside.to(dtype) / (last - first).to(dtype)


def adaptive_avg_pools(x: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """``[F.adaptive_avg_pool2d(x, size) for size in sizes]`` for ``x`` (B, C, H, W).

    In an export the same as matrix products, because exporters fix the bins of ``F.adaptive_avg_pool2d`` to the size
    that they see.
    """
    if not exporting():
        return [F.adaptive_avg_pool2d(x, size) for size in sizes]
    return pools_by_matrices(x, sizes)


def pools_by_matrices(x: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """The same for any (H, W), symbols of an export too, in one pass over ``x``."""
    height, width = x.shape[2:]
    down = [pooling_matrix(height, rows, dtype=x.dtype, device=x.device) for rows, _ in sizes]
    squeezed = torch.matmul(torch.cat(down), x).split([rows for rows, _ in sizes], dim=2)
    across = [pooling_matrix(width, columns, dtype=x.dtype, device=x.device) for _, columns in sizes]
    return [torch.matmul(s, a.t()) for s, a in zip(squeezed, across, strict=True)]

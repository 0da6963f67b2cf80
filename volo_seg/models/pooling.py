"""Adaptive average pooling as matrix products, right for every size in an exported graph too."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pooling_matrix(
    source: int, target: int, *, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Weights (target, source) of ``nn.AdaptiveAvgPool2d`` along one axis; bin i is floor(i s / t) .. ceil((i + 1) s / t).

    ``source`` may be a symbol of an export.
    """
    bins = torch.arange(target, device=device)[:, None]
    pixels = torch.arange(source, device=device)[None, :]
    first = bins * source // target
    last = ((bins + 1) * source + target - 1) // target
    inside = (pixels >= first) & (pixels < last)
    return inside.to(dtype) / (last - first).to(dtype)


def adaptive_avg_pools(x: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """``[F.adaptive_avg_pool2d(x, size) for size in sizes]`` for ``x`` (B, C, H, W), in one pass over ``x``.

    Types of less than 32 bits are averaged in float32 and rounded once.
    """
    if torch.is_autocast_enabled(x.device.type):
        with torch.autocast(x.device.type, enabled=False):
            return adaptive_avg_pools(x, sizes)
    exact = x.dtype if x.dtype.itemsize >= 4 else torch.float32
    height, width = x.shape[2:]
    down = [pooling_matrix(height, rows, dtype=exact, device=x.device) for rows, _ in sizes]
    squeezed = torch.matmul(torch.cat(down), x.to(exact)).split([rows for rows, _ in sizes], dim=2)
    across = [pooling_matrix(width, columns, dtype=exact, device=x.device) for _, columns in sizes]
    return [torch.matmul(s, a.t()).to(x.dtype) for s, a in zip(squeezed, across, strict=True)]

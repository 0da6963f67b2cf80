"""Bilinear interpolation and adaptive average pooling as matrix products along one axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from volo_seg.ops import exporting

BLOCK_ROWS_CPU, BLOCK_ROWS = 32, 256
"""Rows in one dense block of a banded matrix, on a CPU and on other devices (benchmarks/uper_head.py)."""


def tap_matrices(source: int, target: int, *, align_corners: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Bilinear weights along one axis for the three taps of a padded convolution, (3, target, source).

    Row r of tap k holds the weights of ``F.interpolate(mode='bilinear')`` for output pixel r + k - 1; it is zero
    outside the map. ``source`` and ``target`` are in pixels and may be symbolic. They enter integer arithmetic only, so
    the weights are correctly rounded to ``dtype``.
    """
    shifts = torch.arange(-1, 2, device=device)[:, None, None]
    rows = torch.arange(target, device=device)[:, None] + shifts
    columns = torch.arange(source, device=device)
    if align_corners:
        unit = torch.sym_max(target - 1, 1)
        place = rows * (source - 1)
    else:
        unit = 2 * target
        place = torch.minimum(((2 * rows + 1) * source - target).clamp(min=0), unit * columns[-1])
    overlap = (unit - (place - unit * columns).abs()).clamp(min=0) * ((rows >= 0) & (rows < target))
    exact = dtype if dtype.itemsize >= 4 else torch.float32
    return (overlap.to(exact) / unit).to(dtype)


@dataclass(frozen=True)
class Block:
    """A dense block of a banded matrix: its rows, its columns and its values (rows, columns)."""

    rows: slice
    columns: slice
    weights: Tensor


@dataclass(frozen=True)
class TapAxis:
    """The tap matrices of one axis as a banded matrix (target, source * 3), and its transpose, in blocks."""

    forward: tuple[Block, ...]
    backward: tuple[Block, ...]


@lru_cache(maxsize=64)
def tap_axis(source: int, target: int, *, align_corners: bool, dtype: torch.dtype, device: torch.device) -> TapAxis:
    """The cached :class:`TapAxis`; column ``3 * i + k`` belongs to tap k of source pixel i."""
    taps = tap_matrices(source, target, align_corners=align_corners, dtype=torch.float64, device=torch.device('cpu'))
    matrix = taps.permute(1, 2, 0).reshape(target, source * 3)
    rows = BLOCK_ROWS_CPU if device.type == 'cpu' else BLOCK_ROWS
    return TapAxis(_blocks(matrix, rows, dtype, device), _blocks(matrix.t(), rows, dtype, device))


@lru_cache(maxsize=64)
def bilinear_blocks(
    source: int, target: int, rows: int, *, align_corners: bool, dtype: torch.dtype, device: torch.device
) -> tuple[Block, ...]:
    """The cached matrix (target, source) of bilinear interpolation along one axis, in blocks of ``rows`` rows."""
    taps = tap_matrices(source, target, align_corners=align_corners, dtype=torch.float64, device=torch.device('cpu'))
    return _blocks(taps[1], rows, dtype, device)


def _blocks(matrix: Tensor, height: int, dtype: torch.dtype, device: torch.device) -> tuple[Block, ...]:
    blocks = []
    for start in range(0, len(matrix), height):
        part = matrix[start : start + height]
        used = part.any(dim=0).nonzero().flatten()
        columns = slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 1)
        weights = part[:, columns].to(device=device, dtype=dtype).contiguous()
        blocks.append(Block(slice(start, start + len(part)), columns, weights))
    return tuple(blocks)


def multiply(blocks: tuple[Block, ...], x: Tensor, *, out: Tensor) -> None:
    """Write ``matrix @ x`` into ``out``; ``x`` is (B, columns, L), ``out`` (B, rows, L), inner two axes dense."""
    for block in blocks:
        weights = block.weights.expand(len(x), -1, -1)
        torch.bmm(weights, x[:, block.columns], out=out[:, block.rows])


def pooling_matrix(source: int, target: int, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Weights (target, source) of ``nn.AdaptiveAvgPool2d`` along one axis.

    Bin i covers pixels floor(i * source / target) up to, not including, ceil((i + 1) * source / target).
    ``source`` may be symbolic.
    """
    bins = torch.arange(target, device=device)[:, None]
    pixels = torch.arange(source, device=device)[None, :]
    first = bins * source // target
    last = ((bins + 1) * source + target - 1) // target
    inside = (pixels >= first) & (pixels < last)
    return inside.to(dtype) / (last - first).to(dtype)


def adaptive_avg_pools(x: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """``[F.adaptive_avg_pool2d(x, size) for size in sizes]`` for ``x`` (B, C, H, W).

    During export it uses matrix products, because exporters fix the bins of ``F.adaptive_avg_pool2d`` to the size of
    the example input.
    """
    if not exporting():
        return [F.adaptive_avg_pool2d(x, size) for size in sizes]
    return pools_by_matrices(x, sizes)


def pools_by_matrices(x: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """:func:`adaptive_avg_pools` as matrix products, for any (H, W), also symbolic."""
    height, width = x.shape[2:]
    down = [pooling_matrix(height, rows, dtype=x.dtype, device=x.device) for rows, _ in sizes]
    squeezed = torch.matmul(torch.cat(down), x).split([rows for rows, _ in sizes], dim=2)
    across = [pooling_matrix(width, columns, dtype=x.dtype, device=x.device) for _, columns in sizes]
    return [torch.matmul(s, a.t()) for s, a in zip(squeezed, across, strict=True)]

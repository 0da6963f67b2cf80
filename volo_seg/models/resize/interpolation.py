"""Bilinear interpolation along one axis as a matrix, in exact integer arithmetic, and products with such matrices."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

BLOCK_ROWS = {'cpu': 32}
"""Rows of a banded matrix that are multiplied at once, by device; else ``BLOCK_ROWS_ELSEWHERE``."""
BLOCK_ROWS_ELSEWHERE = 256


def tap_matrices(source: int, target: int, *, align_corners: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Bilinear weights along one axis as the three taps of a padded convolution see them, (3, target, source).

    Row r of tap k holds the weights that ``F.interpolate(mode='bilinear')`` gives to pixel r + k - 1; beyond the
    border it is zero. Sizes are in pixels and may be symbols of an export: they enter integer arithmetic alone, so the
    weights are exact to the last bit of ``dtype``.
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


def exporting() -> bool:
    """Whether sizes are symbols of an export; before torch 2.7 a compilation counts as one."""
    return getattr(torch.compiler, 'is_exporting', torch.compiler.is_compiling)()


@dataclass(frozen=True)
class Block:
    """A dense piece of a banded matrix: rows, columns, weights (rows, columns)."""

    rows: slice
    columns: slice
    weights: Tensor


@dataclass(frozen=True)
class TapAxis:
    """The three tap matrices of one axis side by side, (target, source * 3), and their transpose, in blocks."""

    forward: tuple[Block, ...]
    backward: tuple[Block, ...]


@lru_cache(maxsize=64)
def tap_axis(source: int, target: int, *, align_corners: bool, dtype: torch.dtype, device: torch.device) -> TapAxis:
    """Blocks of the tap matrices of one axis, column ``3 * i + k`` for tap k of source pixel i; kept for next time."""
    taps = tap_matrices(source, target, align_corners=align_corners, dtype=torch.float64, device=torch.device('cpu'))
    matrix = taps.permute(1, 2, 0).reshape(target, source * 3)
    return TapAxis(_blocks(matrix, dtype, device), _blocks(matrix.t(), dtype, device))


def _blocks(matrix: Tensor, dtype: torch.dtype, device: torch.device) -> tuple[Block, ...]:
    height = BLOCK_ROWS.get(device.type, BLOCK_ROWS_ELSEWHERE)
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

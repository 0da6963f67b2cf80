"""Average the logits of overlapping windows, and yield blocks of the image as soon as their windows are complete."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor

from volo_seg.inference.raster.window_store import WindowStore
from volo_seg.models.resize.logit_source import AveragedLogits, CroppedLogits, LogitSource
from volo_seg.windows import Size, WindowGrid

TILE = 256
"""Sides of blocks in pixels are multiples of it, except at the right and lower border of the image."""
WIDEST = 4
"""Largest width of a block in windows. Logits beyond the sides of a block are resized in vain."""


class Area(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


class Blend:
    """Takes windows in the order of ``grid``, and yields the weighted mean of their logits block by block.

    The windows of each pixel are added in the same order for all block sizes, so that ``budget`` and ``store`` do not
    change results. Windows may be left out; pixels that only such windows cover are undefined.

    Args:
        grid: The windows.
        weights: ``window_weights`` of :class:`volo_seg.windows.InferenceConfig`.
        store: Keeps logits until all windows of a block are complete.
        resized: Resizes logits to the size of a window.
        budget: Bytes for computing one row of a block; a block is at least one tile wide.
        start: First row that is yielded, a multiple of ``TILE``.
    """

    def __init__(
        self,
        grid: WindowGrid,
        *,
        weights: str,
        store: WindowStore,
        resized: Callable[[LogitSource, Size], LogitSource],
        budget: int,
        start: int = 0,
    ) -> None:
        self.grid, self.weights, self.store, self.resized, self.budget = grid, weights, store, resized, budget
        self.windows: dict[Size, LogitSource] = {}
        self.emitted = start
        self.columns = 0

    def add(self, top: int, left: int, logits: Tensor) -> None:
        """Add the window at (``top``, ``left``) with its ``logits`` (C, h, w)."""
        self.windows[top, left] = self.store.put(logits)

    def finished(self, until: int) -> Iterator[tuple[Area, LogitSource | None]]:
        """Yield the blocks above row ``until``, whose windows are complete; the logits are None without any window."""
        height, width = self.grid.image
        until = until if until >= height else until // TILE * TILE
        while self.emitted < until:
            rows = min(TILE, height - self.emitted)
            columns = self._columns()
            for left in range(0, width, columns):
                area = Area(self.emitted, left, rows, min(columns, width - left))
                yield area, self._source(area)
            self.emitted += rows
            for position in [s for s in self.windows if s[0] + self.grid.size[0] <= self.emitted]:
                self.store.drop(self.windows.pop(position))

    def _columns(self) -> int:
        """The width of blocks in pixels: as many tiles as the budget allows, at least one."""
        if self.columns == 0 and self.windows:
            width = self.grid.size[1]
            model = self.resized(next(iter(self.windows.values())), self.grid.size)
            pixel = model.channels * model.dtype.itemsize
            room = self.budget - model.footprint(1) - 2 * width * pixel
            self.columns = TILE * max(1, min(room // (TILE * pixel), -(-WIDEST * width // TILE)))
        return self.columns or TILE

    def _source(self, area: Area) -> LogitSource | None:
        """The logits of ``area``."""
        height, width = self.grid.size
        bottom, right = area.top + area.height, area.left + area.width
        near = {
            (top, left): rows
            for (top, left), rows in self.windows.items()
            if area.top - height < top < bottom and area.left - width < left < right
        }
        if not near:
            return None
        first, start = min(area.top, *(top for top, _ in near)), min(area.left, *(left for _, left in near))
        end, last = max(bottom, *(top + height for top, _ in near)), max(right, *(left + width for _, left in near))
        windows = [
            (top - first, left - start, self.resized(rows, self.grid.size)) for (top, left), rows in near.items()
        ]
        mean = AveragedLogits(windows, (end - first, last - start), weights=self.weights)
        return CroppedLogits(
            mean, top=area.top - first, bottom=bottom - first, left=area.left - start, right=right - start
        )

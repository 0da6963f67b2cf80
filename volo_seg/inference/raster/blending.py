"""Windows of a large image, row by row, to blocks of it: a block is there as soon as no later window touches it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor

from volo_seg.inference.raster.window_store import WindowStore
from volo_seg.models.resize.logit_source import AveragedLogits, CroppedLogits, LogitSource
from volo_seg.windows import Size, WindowGrid

TILE = 256
"""Sides of blocks are multiples of it (pixels), but at the right and lower border of the image."""
WIDEST = 4
"""Windows side by side in a block at most: what reaches beyond its sides is computed in vain."""


class Area(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


class Blend:
    """Takes windows in the order of ``grid`` and gives the mean of their logits, block after block.

    Every window goes through the network once, and every pixel gets its windows in one order: how large blocks are,
    and where maps wait, changes no result. Windows may be left out; pixels that only such windows cover are undefined.

    Args:
        grid: Where the windows lie.
        weights: Their kind; see :class:`volo_seg.windows.InferenceConfig`.
        store: Where maps wait for their neighbours.
        resized: Gives a map at the size of a window.
        budget: Bytes that computing one row of a block may take (one tile wide it is at least).
    """

    def __init__(
        self,
        grid: WindowGrid,
        *,
        weights: str,
        store: WindowStore,
        resized: Callable[[LogitSource, Size], LogitSource],
        budget: int,
    ) -> None:
        self.grid, self.weights, self.store, self.resized, self.budget = grid, weights, store, resized, budget
        self.windows: dict[Size, LogitSource] = {}
        self.emitted = 0
        self.columns = 0

    def add(self, top: int, left: int, logits: Tensor) -> None:
        """Take the window at (``top``, ``left``) with its ``logits`` (C, h, w)."""
        self.windows[top, left] = self.store.put(logits)

    def finished(self, until: int) -> Iterator[tuple[Area, LogitSource | None]]:
        """Blocks above row ``until``, to which nothing is to come, with their logits; None where no window lies."""
        height, width = self.grid.image
        until = until if until >= height else until // TILE * TILE
        while self.emitted < until:
            rows = min(TILE, height - self.emitted)
            columns = self._columns()
            for left in range(0, width, columns):
                area = Area(self.emitted, left, rows, min(columns, width - left))
                yield area, self._source(area)
            self.emitted += rows
            for spot in [s for s in self.windows if s[0] + self.grid.size[0] <= self.emitted]:
                self.store.drop(self.windows.pop(spot))

    def _columns(self) -> int:
        """How wide blocks are: as many tiles as the budget allows, one at least."""
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

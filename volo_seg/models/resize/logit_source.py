"""Logit maps whose rows are computed on request, so that no map of all classes at image size is stored.

A source wraps a tensor or other sources: resized, averaged over windows, cropped, flipped. Rows have at least 32 bits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from volo_seg.windows import WindowGrid, window_profile

CPU_CHUNK = 4 * 2**20
"""Upper bound of the bytes of a chunk on a CPU, so that it fits into the cache (benchmarks/sliding_window.py)."""


class LogitSource(ABC):
    """A logit map of ``size`` (H, W) in pixels with ``channels`` channels; rows have ``dtype`` and ``device``."""

    def __init__(self, size: tuple[int, int], channels: int, dtype: torch.dtype, device: torch.device) -> None:
        self.size, self.channels, self.dtype, self.device = size, channels, dtype, device

    @abstractmethod
    def rows(self, start: int, stop: int) -> Tensor:
        """Rows [``start``, ``stop``) as (stop - start, W, C)."""

    @abstractmethod
    def footprint(self, count: int) -> int:
        """Upper bound of the bytes that :meth:`rows` allocates for ``count`` rows, result included."""

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return self.row_bytes(self.size[0])

    def row_bytes(self, count: int) -> int:
        """Bytes of ``count`` rows."""
        return int(count * self.size[1] * self.channels * self.dtype.itemsize)


class TensorLogits(LogitSource):
    """A tensor (C, H, W)."""

    def __init__(self, logits: Tensor) -> None:
        dtype = logits.dtype if logits.dtype.itemsize >= 4 else torch.float32
        super().__init__((logits.shape[1], logits.shape[2]), len(logits), dtype, logits.device)
        self.logits = logits.permute(1, 2, 0)

    def rows(self, start: int, stop: int) -> Tensor:
        return self.logits[start:stop].to(self.dtype).contiguous()

    def footprint(self, count: int) -> int:
        ready = self.logits.dtype == self.dtype and self.logits.is_contiguous()
        return 0 if ready else 2 * self.row_bytes(count)


class CroppedLogits(LogitSource):
    """The pixels ``top`` <= y < ``bottom``, ``left`` <= x < ``right`` of ``source``."""

    def __init__(self, source: LogitSource, *, top: int, bottom: int, left: int, right: int) -> None:
        super().__init__((bottom - top, right - left), source.channels, source.dtype, source.device)
        self.source, self.top, self.left = source, top, left

    def rows(self, start: int, stop: int) -> Tensor:
        return self.source.rows(self.top + start, self.top + stop)[:, self.left : self.left + self.size[1]]

    def footprint(self, count: int) -> int:
        return self.source.footprint(count)


class FlippedLogits(LogitSource):
    """``source`` flipped horizontally (left and right) or vertically."""

    def __init__(self, source: LogitSource, *, horizontal: bool) -> None:
        super().__init__(source.size, source.channels, source.dtype, source.device)
        self.source, self.horizontal = source, horizontal

    def rows(self, start: int, stop: int) -> Tensor:
        if self.horizontal:
            return self.source.rows(start, stop).flip(1)
        return self.source.rows(self.size[0] - stop, self.size[0] - start).flip(0)

    def footprint(self, count: int) -> int:
        return self.source.footprint(count) + self.row_bytes(count)


class ResizedLogits(LogitSource):
    """``source`` resized to ``size``, bilinear as in ``F.interpolate``."""

    def __init__(self, source: LogitSource, size: tuple[int, int], *, align_corners: bool) -> None:
        super().__init__(size, source.channels, source.dtype, source.device)
        self.source, self.align_corners = source, align_corners

    def rows(self, start: int, stop: int) -> Tensor:
        first = self._position(start) // self._unit
        last = min(self._position(stop - 1) // self._unit + 2, self.source.size[0])
        block = self.source.rows(first, last)
        position = self._position(torch.arange(start, stop, device=self.device)) - first * self._unit
        upper = position.div(self._unit, rounding_mode='floor')
        weight = ((position - upper * self._unit).double() / self._unit).to(self.dtype)
        lower = (upper + 1).clamp(max=last - first - 1)
        block = torch.lerp(block[upper], block[lower], weight[:, None, None])
        if self.size[1] == self.source.size[1]:
            return block
        stripe = block[None].permute(0, 3, 1, 2)
        size = (stop - start, self.size[1])
        stripe = F.interpolate(stripe, size, mode='bilinear', align_corners=self.align_corners)
        return stripe[0].permute(1, 2, 0)

    @property
    def _unit(self) -> int:
        return max(self.size[0] - 1, 1) if self.align_corners else 2 * self.size[0]

    def _position(self, row):  # type: ignore[no-untyped-def]
        """Position of ``row`` (int or tensor) in the source, in units of 1 / ``_unit`` of a row: exact integers."""
        height = self.source.size[0]
        if self.align_corners:
            return row * (height - 1)
        position, end = (2 * row + 1) * height - self.size[0], self._unit * (height - 1)
        return position.clamp(0, end) if isinstance(position, Tensor) else min(max(position, 0), end)

    def footprint(self, count: int) -> int:
        below = int(count * self.source.size[0] / self.size[0]) + 3
        per_row = self.source.row_bytes(1)
        return self.source.footprint(below) + 3 * count * per_row + self.row_bytes(count)


class AveragedLogits(LogitSource):
    """The weighted mean of windows (top, left, logits) of equal size that cover an image of ``size``.

    ``weights`` is ``window_weights`` of :class:`volo_seg.windows.InferenceConfig`.
    """

    def __init__(
        self, windows: Sequence[tuple[int, int, LogitSource]], size: tuple[int, int], *, weights: str = 'uniform'
    ) -> None:
        first = windows[0][2]
        super().__init__(size, first.channels, first.dtype, first.device)
        self.windows = windows
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        self.profiles = profiles(weights, first.size, like=like)
        self.uniform = weights == 'uniform'
        self.down = window_coverage({top for top, _, _ in windows}, self.profiles[0], size[0])
        self.across = window_coverage({left for _, left, _ in windows}, self.profiles[1], size[1])

    def rows(self, start: int, stop: int) -> Tensor:
        total = torch.zeros(stop - start, self.size[1], self.channels, dtype=self.dtype, device=self.device)
        for top, left, window in self.windows:
            height, width = window.size
            first, last = max(start, top), min(stop, top + height)
            if first < last:
                part = total[first - start : last - start, left : left + width]
                rows = window.rows(first - top, last - top)
                if self.uniform:
                    part += rows
                else:
                    down, across = self.profiles
                    part.addcmul_(rows, (down[first - top : last - top, None] * across)[..., None])
        return total.div_((self.down[start:stop, None] * self.across)[..., None])

    def footprint(self, count: int) -> int:
        window = self.windows[0][2]
        weights = 0 if self.uniform else 2 * int(count) * window.size[1] * self.dtype.itemsize
        return self.row_bytes(count) + weights + window.footprint(min(count, window.size[0]))


class WindowAccumulator:
    """Sums windows (B, C, h, w) into one map (B, C, H, W) and divides it by their weights; ``model`` is one window."""

    def __init__(self, model: Tensor, grid: WindowGrid, weights: str) -> None:
        dtype = torch.promote_types(model.dtype, torch.float32)
        self.total = model.new_zeros((*model.shape[:2], *grid.image), dtype=dtype)
        self.grid, self.uniform = grid, weights == 'uniform'
        self.profiles = profiles(weights, grid.size, like=self.total)

    def add(self, top: int, left: int, logits: Tensor) -> None:
        """Add the window at (``top``, ``left``)."""
        part = self.total[:, :, top : top + self.grid.size[0], left : left + self.grid.size[1]]
        if self.uniform:
            part += logits
        else:
            part.addcmul_(logits, self.profiles[0][:, None] * self.profiles[1])

    def mean(self) -> Tensor:
        """Divide the sum in place by the sum of weights and return it (B, C, H, W)."""
        down = window_coverage(set(self.grid.tops), self.profiles[0], self.grid.image[0])
        self.total /= down[:, None] * window_coverage(set(self.grid.lefts), self.profiles[1], self.grid.image[1])
        return self.total


def profiles(kind: str, size: tuple[int, int], *, like: Tensor) -> tuple[Tensor, Tensor]:
    """Weights along the height and along the width of a window of ``size``; a pixel's weight is their product."""
    down, across = (torch.tensor(window_profile(kind, side), dtype=torch.float64).to(like) for side in size)
    return down, across


def window_coverage(starts: set[int], profile: Tensor, total: int) -> Tensor:
    """Sum of the weights of all windows along one axis of ``total`` pixels; windows begin at ``starts``."""
    weight = profile.new_zeros(total)
    for start in sorted(starts):
        weight[start : start + len(profile)] += profile
    return weight


def row_chunks(source: LogitSource, budget: int) -> Iterator[tuple[int, int]]:
    """Yield ranges [start, stop) of rows whose computation takes at most ``budget`` bytes; at least one row each."""
    budget = min(budget, CPU_CHUNK) if source.device.type == 'cpu' else budget
    first_row = source.footprint(1)
    next_row = max(source.footprint(65) - first_row, 64) / 64
    count = max(1, int((budget - first_row) / next_row) + 1)
    height = source.size[0]
    for start in range(0, height, count):
        yield start, min(start + count, height)


def compute_labels(source: LogitSource, *, budget: int, threshold: float | None = None) -> Tensor:
    """Labels (1, H, W): argmax, int64; with ``threshold``, sigmoid > threshold of the only channel, as 0.0 and 1.0."""
    dtype = torch.int64 if threshold is None else source.dtype
    labels = torch.empty(1, *source.size, dtype=dtype, device=source.device)
    for start, stop in row_chunks(source, budget):
        part = source.rows(start, stop)
        labels[0, start:stop] = _argmax(part) if threshold is None else part[..., 0].sigmoid() > threshold
    return labels


def compute_labels_and_confidence(
    source: LogitSource, *, budget: int, threshold: float | None = None
) -> tuple[Tensor, Tensor]:
    """Labels (H, W), int64, and the probability of each label (H, W)."""
    labels = torch.empty(source.size, dtype=torch.int64, device=source.device)
    confidence = torch.empty(source.size, dtype=source.dtype, device=source.device)
    for start, stop in row_chunks(source, budget // 2):
        rows = source.rows(start, stop)
        labels[start:stop] = _argmax(rows) if threshold is None else rows[..., 0].sigmoid() > threshold
        confidence[start:stop] = label_confidence(rows, labels[start:stop])
    return labels, confidence


def label_confidence(rows: Tensor, labels: Tensor) -> Tensor:
    """Probability of each label (...); ``rows`` (..., C) are logits, with one channel those of label 1."""
    if rows.shape[-1] > 1:
        return (rows - rows.amax(-1, keepdim=True)).exp_().sum(-1).reciprocal_()
    return torch.where(labels > 0, rows[..., 0], -rows[..., 0]).sigmoid()


def _argmax(rows: Tensor) -> Tensor:
    """``argmax`` over the last axis; on a CPU by NumPy, which is several times faster and breaks ties equally."""
    if rows.device.type == 'cpu':
        return torch.from_numpy(rows.detach().numpy().argmax(-1))
    return rows.argmax(-1)


def full_logits(source: LogitSource, *, budget: int) -> Tensor:
    """All rows of ``source`` as one tensor (C, H, W)."""
    logits = torch.empty(source.channels, *source.size, dtype=source.dtype, device=source.device)
    for start, stop in row_chunks(source, budget):
        logits[:, start:stop] = source.rows(start, stop).permute(2, 0, 1)
    return logits

"""Logits that are computed a few rows at a time, so that the whole map at image size never has to exist.

A source of rows gives any rows [start, stop) of a map of ``size`` (H, W) pixels as (rows, W, channels), in float32 or
better. Sources stand on one another: held in memory, enlarged, averaged over windows, cropped, flipped, enlarged again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from volo_seg.windows import WindowGrid, window_profile

CPU_CHUNK = 4 * 2**20
"""Bytes of a chunk of rows on a CPU: row_chunks that stay in its cache are several times faster than larger ones."""


class LogitSource(ABC):
    """A map of logits: ``size`` (H, W), ``channels``, ``dtype`` and ``device`` of its rows."""

    def __init__(self, size: tuple[int, int], channels: int, dtype: torch.dtype, device: torch.device) -> None:
        self.size, self.channels, self.dtype, self.device = size, channels, dtype, device

    @abstractmethod
    def rows(self, start: int, stop: int) -> Tensor:
        """LogitSource ``start`` to ``stop`` as (stop - start, W, channels)."""

    @abstractmethod
    def footprint(self, count: int) -> int:
        """Bytes that :meth:`rows` allocates at most for ``count`` rows, its result included."""

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return self._bytes(self.size[0])

    def _bytes(self, count: float) -> int:
        return int(count * self.size[1] * self.channels * self.dtype.itemsize)


class TensorLogits(LogitSource):
    """A map (C, H, W) in memory."""

    def __init__(self, logits: Tensor) -> None:
        dtype = logits.dtype if logits.dtype.itemsize >= 4 else torch.float32
        super().__init__((logits.shape[1], logits.shape[2]), len(logits), dtype, logits.device)
        self.logits = logits.permute(1, 2, 0)

    def rows(self, start: int, stop: int) -> Tensor:
        return self.logits[start:stop].to(self.dtype).contiguous()

    def footprint(self, count: int) -> int:
        ready = self.logits.dtype == self.dtype and self.logits.is_contiguous()
        return 0 if ready else 2 * self._bytes(count)


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
    """``source`` mirrored, left and right if ``horizontal``, else top and bottom."""

    def __init__(self, source: LogitSource, *, horizontal: bool) -> None:
        super().__init__(source.size, source.channels, source.dtype, source.device)
        self.source, self.horizontal = source, horizontal

    def rows(self, start: int, stop: int) -> Tensor:
        if self.horizontal:
            return self.source.rows(start, stop).flip(1)
        return self.source.rows(self.size[0] - stop, self.size[0] - start).flip(0)

    def footprint(self, count: int) -> int:
        return self.source.footprint(count) + self._bytes(count)


class ResizedLogits(LogitSource):
    """``source`` at another ``size``, bilinear as in ``F.interpolate``: first rows, then columns."""

    def __init__(self, source: LogitSource, size: tuple[int, int], *, align_corners: bool) -> None:
        super().__init__(size, source.channels, source.dtype, source.device)
        self.source, self.align_corners = source, align_corners

    def rows(self, start: int, stop: int) -> Tensor:
        first = self._place(start) // self._unit
        last = min(self._place(stop - 1) // self._unit + 2, self.source.size[0])
        block = self.source.rows(first, last)
        place = self._place(torch.arange(start, stop, device=self.device)) - first * self._unit
        upper = place.div(self._unit, rounding_mode='floor')
        share = ((place - upper * self._unit).double() / self._unit).to(self.dtype)
        lower = (upper + 1).clamp(max=last - first - 1)
        block = torch.lerp(block[upper], block[lower], share[:, None, None])
        if self.size[1] == self.source.size[1]:
            return block
        stripe = block[None].permute(0, 3, 1, 2)
        size = (stop - start, self.size[1])
        stripe = F.interpolate(stripe, size, mode='bilinear', align_corners=self.align_corners)
        return stripe[0].permute(1, 2, 0)

    @property
    def _unit(self) -> int:
        return max(self.size[0] - 1, 1) if self.align_corners else 2 * self.size[0]

    def _place(self, row):  # type: ignore[no-untyped-def]
        """Where ``row`` (an int or a tensor) lies among the source's rows, in units of 1 / ``_unit`` of a row."""
        height = self.source.size[0]
        if self.align_corners:
            return row * (height - 1)
        place, end = (2 * row + 1) * height - self.size[0], self._unit * (height - 1)
        return place.clamp(0, end) if isinstance(place, Tensor) else min(max(place, 0), end)

    def footprint(self, count: int) -> int:
        below = int(count * self.source.size[0] / self.size[0]) + 3
        per_row = self.source._bytes(1)
        return self.source.footprint(below) + 3 * count * per_row + self._bytes(count)


class AveragedLogits(LogitSource):
    """The mean of windows of one size that cover an image of ``size``; each is (top, left, its logits).

    ``weights`` is the kind of the mean; see :class:`volo_seg.windows.InferenceConfig`.
    """

    def __init__(
        self, windows: Sequence[tuple[int, int, LogitSource]], size: tuple[int, int], *, weights: str = 'uniform'
    ) -> None:
        model = windows[0][2]
        super().__init__(size, model.channels, model.dtype, model.device)
        self.windows = windows
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        self.profiles = profiles(weights, model.size, like=like)
        self.plain = weights == 'uniform'
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
                if self.plain:
                    part += rows
                else:
                    down, across = self.profiles
                    part.addcmul_(rows, (down[first - top : last - top, None] * across)[..., None])
        return total.div_((self.down[start:stop, None] * self.across)[..., None])

    def footprint(self, count: int) -> int:
        window = self.windows[0][2]
        weights = 0 if self.plain else 2 * int(count) * window.size[1] * self.dtype.itemsize
        return self._bytes(count) + weights + window.footprint(min(count, window.size[0]))


class WindowAccumulator:
    """Maps (B, C, h, w) of windows, summed up in place to their mean at image size; the first map gives the form."""

    def __init__(self, model: Tensor, grid: WindowGrid, weights: str) -> None:
        dtype = torch.promote_types(model.dtype, torch.float32)
        self.total = model.new_zeros((*model.shape[:2], *grid.image), dtype=dtype)
        self.grid, self.plain = grid, weights == 'uniform'
        self.profiles = profiles(weights, grid.size, like=self.total)

    def add(self, top: int, left: int, logits: Tensor) -> None:
        """Add the window whose first pixel is (``top``, ``left``)."""
        part = self.total[:, :, top : top + self.grid.size[0], left : left + self.grid.size[1]]
        if self.plain:
            part += logits
        else:
            part.addcmul_(logits, self.profiles[0][:, None] * self.profiles[1])

    def mean(self) -> Tensor:
        """The mean of all windows (B, C, H, W), in the place of the sum."""
        down = window_coverage(set(self.grid.tops), self.profiles[0], self.grid.image[0])
        self.total /= down[:, None] * window_coverage(set(self.grid.lefts), self.profiles[1], self.grid.image[1])
        return self.total


def profiles(kind: str, size: tuple[int, int], *, like: Tensor) -> tuple[Tensor, Tensor]:
    """Weights along the height and along the width of a window of ``size``; a pixel's weight is their product."""
    down, across = (torch.tensor(window_profile(kind, side), dtype=torch.float64).to(like) for side in size)
    return down, across


def window_coverage(starts: set[int], profile: Tensor, total: int) -> Tensor:
    """The sum of copies of ``profile``, beginning at ``starts``, at each of ``total`` pixels."""
    weight = profile.new_zeros(total)
    for start in sorted(starts):
        weight[start : start + len(profile)] += profile
    return weight


def row_chunks(source: LogitSource, budget: int) -> Iterator[tuple[int, int]]:
    """Stretches [start, stop) of rows whose computation stays below ``budget`` bytes, one row at least."""
    budget = min(budget, CPU_CHUNK) if source.device.type == 'cpu' else budget
    once = source.footprint(1)
    each = max(source.footprint(65) - once, 64) / 64
    count = max(1, int((budget - once) / each) + 1)
    height = source.size[0]
    for start in range(0, height, count):
        yield start, min(start + count, height)


def compute_labels(source: LogitSource, *, budget: int, threshold: float | None = None) -> Tensor:
    """Labels (1, H, W): the class of the highest logit, int64; with a ``threshold``, its excess as 0.0 and 1.0."""
    dtype = torch.int64 if threshold is None else source.dtype
    labels = torch.empty(1, *source.size, dtype=dtype, device=source.device)
    for start, stop in row_chunks(source, budget):
        part = source.rows(start, stop)
        labels[0, start:stop] = _argmax(part) if threshold is None else part[..., 0].sigmoid() > threshold
    return labels


def compute_labels_and_confidence(
    source: LogitSource, *, budget: int, threshold: float | None = None
) -> tuple[Tensor, Tensor]:
    """Labels (H, W), int64, and the probability of each pixel's label (H, W)."""
    labels = torch.empty(source.size, dtype=torch.int64, device=source.device)
    confidence = torch.empty(source.size, dtype=source.dtype, device=source.device)
    for start, stop in row_chunks(source, budget // 2):
        rows = source.rows(start, stop)
        labels[start:stop] = _argmax(rows) if threshold is None else rows[..., 0].sigmoid() > threshold
        confidence[start:stop] = label_confidence(rows, labels[start:stop])
    return labels, confidence


def label_confidence(rows: Tensor, labels: Tensor) -> Tensor:
    """The probability of each pixel's label; ``rows`` (…, classes) are logits, with one channel those of label 1."""
    if rows.shape[-1] > 1:
        return (rows - rows.amax(-1, keepdim=True)).exp_().sum(-1).reciprocal_()
    return torch.where(labels > 0, rows[..., 0], -rows[..., 0]).sigmoid()


def _argmax(rows: Tensor) -> Tensor:
    """``argmax`` over the last axis; NumPy's is several times faster than torch's on a CPU, and picks the same."""
    if rows.device.type == 'cpu':
        return torch.from_numpy(rows.detach().numpy().argmax(-1))
    return rows.argmax(-1)


def full_logits(source: LogitSource, *, budget: int) -> Tensor:
    """All of ``source`` as one tensor (C, H, W)."""
    whole = torch.empty(source.channels, *source.size, dtype=source.dtype, device=source.device)
    for start, stop in row_chunks(source, budget):
        whole[:, start:stop] = source.rows(start, stop).permute(2, 0, 1)
    return whole

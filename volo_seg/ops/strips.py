"""Windows of a map, a strip of rows at a time: reading them, and adding them back where they overlap.

Maps are (b, H, W, C). A batch of windows is (b * r * w * heads, K*K, D): r rows of w windows, each split by
heads of D channels. A strip is the zero-padded piece of the map that r rows of windows touch.
"""

import torch
from torch import Tensor

from volo_seg.ops.window import Window

__all__ = ['Adder', 'Reader', 'as_batch', 'working_dtype']


def strip_shape(shape: torch.Size, rows: int, window: Window) -> tuple[int, int, int, int]:
    """Shape of the strip under ``rows`` rows of windows of a map of ``shape``; it covers the map's width."""
    stride, tail = window.stride, _tail(window)
    return shape[0], rows * stride + tail, _cols(shape, window) * stride + tail, shape[3]


def _tail(window: Window) -> int:
    """Rows or columns of a strip beyond ``stride`` for each window."""
    return max(window.kernel_size - window.stride, window.padding)


def _cols(shape: torch.Size, window: Window) -> int:
    """Windows in a row of a map of ``shape``."""
    return -(-shape[2] // window.stride)


def working_dtype(tensor: Tensor) -> torch.dtype:
    """A CPU mixes half precision in float32 (faster there, and more exact); elsewhere the dtype stays."""
    return torch.promote_types(tensor.dtype, torch.float32) if tensor.device.type == 'cpu' else tensor.dtype


class Reader:
    """Copies the windows of a few window rows out of ``source`` into ``windows``, its one buffer.

    ``windows`` is (b, rows, w, heads, K, K, D).
    """

    def __init__(self, source: Tensor, rows: int, window: Window) -> None:
        self.source, self.window = source, window
        dtype, (kernel, stride) = working_dtype(source), (window.kernel_size, window.stride)
        self.strip = torch.zeros(strip_shape(source.shape, rows, window), dtype=dtype, device=source.device)
        heads = self.strip.unflatten(3, (window.num_heads, source.shape[3] // window.num_heads))
        views = heads.unfold(1, kernel, stride).unfold(2, kernel, stride)
        self.views = views[:, :rows, : _cols(source.shape, window)].permute(0, 1, 2, 3, 5, 6, 4)
        self.windows = torch.empty(self.views.shape, dtype=dtype, device=source.device)

    def read(self, first: int, count: int) -> Tensor:
        """``count`` rows of windows from row ``first`` on, as a batch; calls must go down the map.

        (The padding above the map is zero from the start, and never written.)
        """
        top, left = first * self.window.stride - self.window.padding, self.window.padding
        low, high = max(top, 0), min(top + self.strip.shape[1], self.source.shape[1])
        self.strip[:, low - top : high - top, left : left + self.source.shape[2]] = self.source[:, low:high]
        self.strip[:, high - top :].zero_()
        self.windows[:, :count].copy_(self.views[:, :count])
        return as_batch(self.windows, count)


class Adder:
    """Sums windows where they overlap and writes each row of ``result`` once, when it is complete.

    ``windows`` (b, rows, w, heads, K, K, D) is where the caller puts the windows to add.
    """

    def __init__(self, result: Tensor, windows: Tensor, window: Window) -> None:
        self.result, self.windows, self.window = result, windows, window
        self.strip = windows.new_empty(strip_shape(result.shape, windows.shape[1], window))
        self.carried: Tensor | None = None
        self.slices = [self._slices(a, b) for a in range(window.kernel_size) for b in range(window.kernel_size)]

    def _slices(self, a: int, b: int) -> tuple[Tensor, Tensor]:
        """Where in the strip each window's output at offset (a, b) goes, and that output."""
        heads = self.strip.unflatten(3, (self.window.num_heads, -1))
        stride, (rows, cols) = self.window.stride, self.windows.shape[1:3]
        there = heads[:, a : a + (rows - 1) * stride + 1 : stride, b : b + (cols - 1) * stride + 1 : stride]
        return there, self.windows[:, :, :, :, a, b]

    def add(self, first: int, count: int) -> None:
        """Add the first ``count`` rows of ``windows`` as row ``first`` on; calls must go down the map, to its end."""
        stride, tail = self.window.stride, _tail(self.window)
        strip = self.strip[:, : count * stride + tail].zero_()
        for there, part in self.slices:
            there[:, :count].add_(part[:, :count])
        if self.carried is not None:
            strip[:, :tail] += self.carried
        _, height, width, _ = self.result.shape
        top, left = first * stride - self.window.padding, self.window.padding
        last = (first + count) * stride >= height
        low, high = max(top, 0), height if last else top + count * stride
        if high > low:
            self.result[:, low:high] = strip[:, low - top : high - top, left : left + width]
        self.carried = None if last else strip[:, count * stride :].clone()


def as_batch(windows: Tensor, count: int) -> Tensor:
    """The first ``count`` rows of (b, rows, w, heads, K, K, D) as (b * count * w * heads, K*K, D), a view."""
    kernel, dim = windows.shape[5:]
    return windows[:, :count].view(-1, kernel * kernel, dim)

"""Outlook attention as an ``autograd.Function`` that works on chunks of window rows and recomputes in backward.

Neither direction stores all windows, which are K*K / stride**2 times as large as the map.

Maps are (B, H, W, C). A batch of windows is (B * r * w * N, K*K, D): r rows of w windows, split by heads of D channels.
A strip is the zero-padded part of the map that r rows of windows cover.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from volo_seg.ops.reference import Window
from volo_seg.ops.torch_impl import differentiable_gradients

CHUNK_VALUES = 1 << 18
"""Window values for each CPU thread in a chunk: four window rows of a 64 x 64 map of 192 channels."""


def outlook_attention_eager(v: Tensor, logits: Tensor, window: Window) -> Tensor:
    """Outlook attention of ``v`` (B, H, W, C), twice differentiable.

    On a CPU a chunk is as many window rows of one image as fit into the cache; on other devices it is the whole batch.
    """
    result = _OutlookAttention.apply(v, logits, window)
    assert isinstance(result, Tensor)
    return result


class _OutlookAttention(torch.autograd.Function):
    @staticmethod
    def forward(v: Tensor, logits: Tensor, window: Window) -> Tensor:
        result = torch.empty(v.shape, dtype=v.dtype, device=v.device)
        with torch.autocast(v.device.type, enabled=False):
            for images, chunks in _chunks(v, logits, window):
                values = _Unfold(v[images], chunks[0][1], window)
                sums = _Fold(result[images], torch.empty_like(values.windows), window)
                for first, count in chunks:
                    weights = _softmax(logits[images, first : first + count], window, values.strip.dtype)
                    torch.bmm(weights, values.read(first, count), out=_as_batch(sums.windows, count))
                    sums.add(first, count)
        return result

    @staticmethod
    def setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
        v, logits, ctx.window = inputs  # type: ignore[attr-defined]
        ctx.save_for_backward(v, logits)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        v, logits = ctx.saved_tensors  # type: ignore[attr-defined]
        window: Window = ctx.window  # type: ignore[attr-defined]
        if torch.is_grad_enabled():
            return *differentiable_gradients(v, logits, grad, window), None
        with torch.autocast(v.device.type, enabled=False):
            return *_gradients(v, logits, grad, window), None


def _gradients(v: Tensor, logits: Tensor, grad: Tensor, window: Window) -> tuple[Tensor, Tensor]:
    """Gradients of ``v`` and ``logits``, chunk by chunk."""
    grad_v = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    grad_logits = torch.empty(logits.shape, dtype=logits.dtype, device=v.device)
    for images, chunks in _chunks(v, logits, window):
        values, grads = (_Unfold(tensor[images], chunks[0][1], window) for tensor in (v, grad))
        sums = _Fold(grad_v[images], values.windows, window)
        for first, count in chunks:
            rows = slice(first, first + count)
            weights = _softmax(logits[images, rows], window, values.strip.dtype)
            grad_windows, windows = grads.read(first, count), values.read(first, count)
            # the gradient of softmax(scale * logits)
            product = torch.bmm(grad_windows, windows.transpose(1, 2)).mul_(weights)
            product.addcmul_(weights, product.sum(-1, keepdim=True), value=-1).mul_(window.scale)
            target = grad_logits[images, rows]
            target.copy_(product.view(target.shape))
            torch.bmm(weights.transpose(1, 2), grad_windows, out=windows)
            sums.add(first, count)
    return grad_v, grad_logits


def _chunks(v: Tensor, logits: Tensor, window: Window) -> Iterator[tuple[slice, list[tuple[int, int]]]]:
    """Yield a slice of the batch and its chunks as (first window row, number of rows), the longest first."""
    batch, rows, cols = logits.shape[:3]
    size, images = rows, max(batch, 1)
    if v.device.type == 'cpu':
        row_values = cols * window.kernel_size**2 * v.shape[3]
        size, images = max(CHUNK_VALUES * torch.get_num_threads() // row_values, 1), 1
    chunks = [(first, min(size, rows - first)) for first in range(0, rows, size)]
    for image in range(0, batch, images):
        yield slice(image, image + images), chunks


def _softmax(logits: Tensor, window: Window, dtype: torch.dtype) -> Tensor:
    """Attention weights (windows * N, K*K, K*K) of a chunk, computed in at least float32 and cast to ``dtype``.

    ``torch.softmax`` takes about six times as long over such a short axis on a CPU (benchmarks/outlook_attention.py).
    """
    area = window.kernel_size**2
    wide = logits.reshape(-1, area, area).to(torch.promote_types(logits.dtype, torch.float32))
    wide = wide * window.scale
    wide.sub_(wide.amax(-1, keepdim=True)).exp_()
    return wide.div_(wide.sum(-1, keepdim=True)).to(dtype)


class _Unfold:
    """Copies the windows of a chunk of ``source`` into the buffer ``windows`` (B, r, w, N, K, K, D).

    On a CPU half precision is unfolded to float32, which is faster there and more exact.
    """

    def __init__(self, source: Tensor, rows: int, window: Window) -> None:
        self.source, self.window = source, window
        kernel, stride, dtype = window.kernel_size, window.stride, source.dtype
        if source.device.type == 'cpu':
            dtype = torch.promote_types(dtype, torch.float32)
        self.strip = torch.zeros(_strip_shape(source.shape, rows, window), dtype=dtype, device=source.device)
        heads = self.strip.unflatten(3, (window.num_heads, source.shape[3] // window.num_heads))
        views = heads.unfold(1, kernel, stride).unfold(2, kernel, stride)
        self.views = views[:, :rows, : -(-source.shape[2] // stride)].permute(0, 1, 2, 3, 5, 6, 4)
        self.windows = torch.empty(self.views.shape, dtype=dtype, device=source.device)

    def read(self, first: int, count: int) -> Tensor:
        """``count`` rows of windows from row ``first``, as a batch; ``first`` must increase from call to call."""
        top, left = first * self.window.stride - self.window.padding, self.window.padding
        low, high = max(top, 0), min(top + self.strip.shape[1], self.source.shape[1])
        # the rows of padding above the map are never written and stay zero
        self.strip[:, low - top : high - top, left : left + self.source.shape[2]] = self.source[:, low:high]
        self.strip[:, high - top :].zero_()
        self.windows[:, :count].copy_(self.views[:, :count])
        return _as_batch(self.windows, count)


class _Fold:
    """Sums overlapping windows and writes each row of ``result`` once, when it is complete.

    The caller writes the windows to add into ``windows`` (B, r, w, N, K, K, D).
    """

    def __init__(self, result: Tensor, windows: Tensor, window: Window) -> None:
        self.result, self.windows, self.window = result, windows, window
        self.strip = windows.new_empty(_strip_shape(result.shape, windows.shape[1], window))
        self.carry: Tensor | None = None
        heads = self.strip.unflatten(3, (window.num_heads, -1))
        stride, (rows, cols) = window.stride, windows.shape[1:3]
        ends = (rows - 1) * stride + 1, (cols - 1) * stride + 1
        # for each kernel offset: its positions in the strip, and its values in the windows
        self.offsets = [
            (heads[:, a : a + ends[0] : stride, b : b + ends[1] : stride], windows[:, :, :, :, a, b])
            for a in range(window.kernel_size)
            for b in range(window.kernel_size)
        ]

    def add(self, first: int, count: int) -> None:
        """Add ``count`` rows of windows from row ``first``; calls must proceed without gaps to the end of the map."""
        stride, tail = self.window.stride, _tail(self.window)
        strip = self.strip[:, : count * stride + tail].zero_()
        for positions, values in self.offsets:
            positions[:, :count].add_(values[:, :count])
        if self.carry is not None:
            strip[:, :tail] += self.carry
        _, height, width, _ = self.result.shape
        top, left = first * stride - self.window.padding, self.window.padding
        last = (first + count) * stride >= height
        low, high = max(top, 0), height if last else top + count * stride
        if high > low:
            self.result[:, low:high] = strip[:, low - top : high - top, left : left + width]
        self.carry = None if last else strip[:, count * stride :].clone()


def _strip_shape(shape: torch.Size, rows: int, window: Window) -> tuple[int, int, int, int]:
    """Shape of the strip that ``rows`` rows of windows cover in a map of ``shape`` (B, H, W, C)."""
    stride, tail = window.stride, _tail(window)
    return shape[0], rows * stride + tail, -(-shape[2] // stride) * stride + tail, shape[3]


def _tail(window: Window) -> int:
    """Rows or columns of a strip beyond ``stride`` for each window."""
    return max(window.kernel_size - window.stride, window.padding)


def _as_batch(windows: Tensor, count: int) -> Tensor:
    """View the first ``count`` rows of (B, r, w, N, K, K, D) as (B * count * w * N, K*K, D)."""
    kernel, dim = windows.shape[5:]
    return windows[:, :count].view(-1, kernel * kernel, dim)

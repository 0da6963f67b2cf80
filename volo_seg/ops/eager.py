"""Outlook attention as an autograd function that works in chunks of window rows and recomputes in backward.

Nothing of the size of all windows (K*K / stride**2 maps) is ever kept, in neither direction.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from volo_seg.ops.strips import Adder, Reader, as_batch
from volo_seg.ops.torch_impl import differentiable_gradients
from volo_seg.ops.window import Window

__all__ = ['outlook_attention_eager']

CHUNK_VALUES = 1 << 18
"""Window values that one CPU thread mixes at a time: four window rows of a 64 x 64 map of 192 channels."""


def outlook_attention_eager(v: Tensor, logits: Tensor, window: Window) -> Tensor:
    """Outlook attention of (B, H, W, C) ``v``, differentiable (a second time through the plain form).

    On a CPU each image's window rows are mixed a few at a time, as many as fit its cache; elsewhere all at once.
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
                values = Reader(v[images], chunks[0][1], window)
                sums = Adder(result[images], torch.empty_like(values.windows), window)
                for first, count in chunks:
                    weights = _softmax(logits[images, first : first + count], window, values.strip.dtype)
                    torch.bmm(weights, values.read(first, count), out=as_batch(sums.windows, count))
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
        values, grads = (Reader(tensor[images], chunks[0][1], window) for tensor in (v, grad))
        sums = Adder(grad_v[images], values.windows, window)
        for first, count in chunks:
            rows = slice(first, first + count)
            weights = _softmax(logits[images, rows], window, values.strip.dtype)
            mixed, windows = grads.read(first, count), values.read(first, count)
            _logit_gradients(weights, mixed, windows, grad_logits[images, rows], window.scale)
            torch.bmm(weights.transpose(1, 2), mixed, out=windows)
            sums.add(first, count)
    return grad_v, grad_logits


def _logit_gradients(weights: Tensor, mixed: Tensor, values: Tensor, target: Tensor, scale: float) -> None:
    """Write a chunk's logit gradients, softmax and ``scale`` undone, into ``target``.

    ``mixed`` (windows, K*K, D) is the gradient of the window outputs.
    """
    product = torch.bmm(mixed, values.transpose(1, 2)).mul_(weights)
    product.addcmul_(weights, product.sum(-1, keepdim=True), value=-1).mul_(scale)
    target.copy_(product.view(target.shape))


def _chunks(v: Tensor, logits: Tensor, window: Window) -> Iterator[tuple[slice, list[tuple[int, int]]]]:
    """Images to work on together, and their chunks: first window row and how many rows, longest first."""
    batch, rows, cols = logits.shape[:3]
    size, together = rows, max(batch, 1)
    if v.device.type == 'cpu':
        row_values = cols * window.kernel_size**2 * v.shape[3]
        size, together = max(CHUNK_VALUES * torch.get_num_threads() // row_values, 1), 1
    chunks = [(first, min(size, rows - first)) for first in range(0, rows, size)]
    for image in range(0, batch, together):
        yield slice(image, image + together), chunks


def _softmax(logits: Tensor, window: Window, dtype: torch.dtype) -> Tensor:
    """Softmaxed weights (windows * heads, K*K, K*K) of a chunk, in at least float32 until the end.

    Written out because ``torch.softmax`` takes about six times as long on a CPU over so short an axis.
    """
    area = window.kernel_size**2
    wide = logits.reshape(-1, area, area).to(torch.promote_types(logits.dtype, torch.float32))
    wide = wide * window.scale
    wide.sub_(wide.amax(-1, keepdim=True)).exp_()
    return wide.div_(wide.sum(-1, keepdim=True)).to(dtype)

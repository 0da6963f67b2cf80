"""Outlook attention in plain autograd operations: for torch.compile, export, double backward and dropout."""

import torch
import torch.nn.functional as F
from torch import Tensor

from volo_seg.ops.window import Window

__all__ = ['outlook_attention_torch_impl', 'differentiable_gradients']


def outlook_attention_torch_impl(v: Tensor, logits: Tensor, window: Window, dropout_p: float = 0.0) -> Tensor:
    """Outlook attention of (B, H, W, C) ``v`` without Unfold, Fold or a write in place.

    Python loops run over the kernel's K*K offsets only, so height, width and batch may be symbolic.
    """
    num_heads, kernel, stride, pad, _ = window
    batch, height, width, channels = v.shape
    rows, cols = logits.shape[1:3]
    blocks = _to_blocks(v, rows, cols, window)
    offsets = [divmod(a, stride) + divmod(b, stride) for a in range(kernel) for b in range(kernel)]
    windows = torch.stack([blocks[:, t : t + rows, r, u : u + cols, q] for t, r, u, q in offsets], dim=3)
    windows = windows.reshape(batch, rows, cols, kernel**2, num_heads, channels // num_heads).transpose(3, 4)
    weights = _weights(logits, window, dropout_p).to(v.dtype)
    mixed = torch.matmul(weights, windows).transpose(3, 4).reshape(batch, rows, cols, kernel**2, channels)
    result = _sum_phases(mixed, offsets, window)
    return result[:, pad : pad + height, pad : pad + width].to(v.dtype)


def differentiable_gradients(v: Tensor, logits: Tensor, grad: Tensor, window: Window) -> list[Tensor | None]:
    """Gradients of ``v`` and ``logits`` (None where none is due) with a graph of their own."""
    result = outlook_attention_torch_impl(v, logits, window)
    due = [tensor for tensor in (v, logits) if tensor.requires_grad]
    gradients = iter(torch.autograd.grad(result, due, grad, create_graph=True))
    return [next(gradients) if tensor.requires_grad else None for tensor in (v, logits)]


def _weights(logits: Tensor, window: Window, dropout_p: float) -> Tensor:
    """Softmaxed (B, h, w, heads, K*K, K*K), in at least float32, and dropped out."""
    area = window.kernel_size**2
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    weights = (wide.unflatten(3, (window.num_heads, area, area)) * window.scale).softmax(dim=-1)
    return F.dropout(weights, dropout_p) if dropout_p > 0 else weights


def _reach(window: Window) -> int:
    """Blocks of ``stride`` tokens that a kernel reaches beyond its own; they cover the padding too."""
    return (window.kernel_size - 1) // window.stride + 1


def _to_blocks(v: Tensor, rows: int, cols: int, window: Window) -> Tensor:
    """Zero-pad ``v`` and view it as (B, rows + reach, stride, cols + reach, stride, C)."""
    batch, height, width, channels = v.shape
    stride, pad = window.stride, window.padding
    rows, cols = rows + _reach(window), cols + _reach(window)
    below, right = rows * stride - height - pad, cols * stride - width - pad
    padded = F.pad(v, (0, 0, pad, right, pad, below))
    return padded.reshape(batch, rows, stride, cols, stride, channels)


def _sum_phases(mixed: Tensor, offsets: list[tuple[int, int, int, int]], window: Window) -> Tensor:
    """Sum (B, h, w, K*K, C) window outputs where they overlap: a gather for each phase of the stride."""
    stride, reach = window.stride, _reach(window)
    phases = []
    for phase in range(stride * stride):
        parts = [
            F.pad(mixed[:, :, :, index], (0, 0, u, reach - u, t, reach - t))
            for index, (t, r, u, q) in enumerate(offsets)
            if (r, q) == divmod(phase, stride)
        ]
        phases.append(torch.stack(parts).sum(0))
    batch, rows, cols, channels = phases[0].shape
    grid = torch.stack(phases, dim=3).reshape(batch, rows, cols, stride, stride, channels).transpose(2, 3)
    return grid.reshape(batch, rows * stride, cols * stride, channels)

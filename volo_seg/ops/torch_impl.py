"""Outlook attention in differentiable torch operations, for torch.compile, export, double backward and dropout."""

import torch
import torch.nn.functional as F
from torch import Tensor

from volo_seg.ops.reference import Window
from volo_seg.ops.transforms import at_least_float32


def outlook_attention_torch_impl(v: Tensor, logits: Tensor, window: Window, dropout_p: float = 0.0) -> Tensor:
    """Outlook attention of ``v`` (B, H, W, C) without Unfold, Fold or in-place writes.

    Python loops run over the K*K offsets of the kernel only, so B, H and W may be symbolic.
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
    """Gradients of ``v`` and ``logits`` that can be differentiated again; None where no gradient is required."""
    result = outlook_attention_torch_impl(v, logits, window)
    inputs = [tensor for tensor in (v, logits) if tensor.requires_grad]
    gradients = iter(torch.autograd.grad(result, inputs, grad, create_graph=True))
    return [next(gradients) if tensor.requires_grad else None for tensor in (v, logits)]


def _weights(logits: Tensor, window: Window, dropout_p: float) -> Tensor:
    """Attention weights (B, h, w, N, K*K, K*K) after softmax, in at least float32, and dropout."""
    area = window.kernel_size**2
    weights = (at_least_float32(logits).unflatten(3, (window.num_heads, area, area)) * window.scale).softmax(dim=-1)
    return F.dropout(weights, dropout_p) if dropout_p > 0 else weights


def _extra_blocks(window: Window) -> int:
    """Number of blocks of ``stride`` tokens that a kernel covers beyond its first block, padding included."""
    return (window.kernel_size - 1) // window.stride + 1


def _to_blocks(v: Tensor, rows: int, cols: int, window: Window) -> Tensor:
    """Zero-pad ``v`` (B, H, W, C) and view it as (B, h + extra, stride, w + extra, stride, C)."""
    batch, height, width, channels = v.shape
    stride, pad = window.stride, window.padding
    rows, cols = rows + _extra_blocks(window), cols + _extra_blocks(window)
    below, right = rows * stride - height - pad, cols * stride - width - pad
    padded = F.pad(v, (0, 0, pad, right, pad, below))
    return padded.reshape(batch, rows, stride, cols, stride, channels)


def _sum_phases(mixed: Tensor, offsets: list[tuple[int, int, int, int]], window: Window) -> Tensor:
    """Sum overlapping window outputs ``mixed`` (B, h, w, K*K, C): one gather for each phase of the stride."""
    stride, extra = window.stride, _extra_blocks(window)
    phases = []
    for phase in range(stride * stride):
        parts = [
            F.pad(mixed[:, :, :, index], (0, 0, u, extra - u, t, extra - t))
            for index, (t, r, u, q) in enumerate(offsets)
            if (r, q) == divmod(phase, stride)
        ]
        phases.append(torch.stack(parts).sum(0))
    batch, rows, cols, channels = phases[0].shape
    grid = torch.stack(phases, dim=3).reshape(batch, rows, cols, stride, stride, channels).transpose(2, 3)
    return grid.reshape(batch, rows * stride, cols * stride, channels)

"""Outlook attention: one function, and which of its implementations does the work."""

import os

import torch
from torch import Tensor

from volo_seg.ops.eager import outlook_attention_eager
from volo_seg.ops.reference import outlook_attention_reference
from volo_seg.ops.torch_impl import outlook_attention_torch_impl
from volo_seg.ops.triton.fused import FUSED_DTYPES, FUSED_KERNELS, HAS_TRITON, outlook_attention_fused
from volo_seg.ops.window import Window

__all__ = ['IMPLEMENTATIONS', 'explain', 'outlook_attention']

IMPLEMENTATIONS = ('reference', 'eager', 'torch_impl', 'fused')


def outlook_attention(
    v: Tensor,
    logits: Tensor,
    num_heads: int,
    *,
    kernel_size: int = 3,
    stride: int = 1,
    padding: int = 1,
    scale: float = 1.0,
    dropout_p: float = 0.0,
    implementation: str | None = None,
) -> Tensor:
    """Mix the values of every K x K window by weights of the window's own, and sum where windows overlap.

    ``v`` is (B, H, W, C), its channels split into ``num_heads`` contiguous heads. ``logits`` is
    (B, h, w, heads * K**4) with h = ceil(H / stride) and w = ceil(W / stride); its last axis is (head, output
    offset, input offset), offsets row by row. Window (i, j) covers rows ``i * stride - padding`` onwards and
    columns ``j * stride - padding`` onwards of zero-padded ``v``; its weights are
    ``softmax(scale * logits)`` over the K*K input offsets (zeros in the padding keep their share).
    ``dropout_p`` is the share of weights dropped. The result is (B, H, W, C) in the dtype of ``v``.

    ``implementation`` is one of ``IMPLEMENTATIONS``, or None: see ``explain``.

    Raises:
        ValueError: shapes that do not fit, or an implementation that cannot do this.

    Source: arXiv 2106.13112, section 3.1.

    """
    if not (torch.compiler.is_compiling() or torch.jit.is_tracing()):
        _check_window(kernel_size, stride, padding, dropout_p)
        _check_shapes(v, logits, num_heads, kernel_size, stride)
    name, _ = explain(v, kernel_size=kernel_size, stride=stride, dropout_p=dropout_p, implementation=implementation)
    window = Window(num_heads, kernel_size, stride, padding, scale)
    if name == 'fused':
        return outlook_attention_fused(v, logits, window)
    if name == 'eager':
        return outlook_attention_eager(v, logits, window)
    spelled_out = outlook_attention_torch_impl if name == 'torch_impl' else outlook_attention_reference
    return spelled_out(v, logits, window, dropout_p)


def explain(
    v: Tensor,
    *,
    kernel_size: int = 3,
    stride: int = 1,
    dropout_p: float = 0.0,
    implementation: str | None = None,
) -> tuple[str, str]:
    """Name the implementation that ``outlook_attention`` takes for these arguments, and why.

    * fused: one Triton kernel a direction, on a GPU.
    * eager: an autograd function that recomputes in backward; in chunks of window rows on a CPU.
    * plain: ordinary autograd operations, for compilers, exporters and dropout.
    * definition: loops over windows; only when asked for.

    Raises:
        ValueError: ``implementation`` is unknown, or cannot do what the other arguments ask.

    """
    why_not_fused = _why_not_fused(v, kernel_size, stride)
    if implementation is not None:
        _check_implementation(implementation, dropout_p, why_not_fused)
        return implementation, 'it was asked for'
    if dropout_p > 0:
        return 'torch_impl', f'dropout_p={dropout_p:g} needs the weights themselves'
    if _is_exporting():
        return 'torch_impl', 'the graph is being exported'
    if v.device.type != 'cpu' and not why_not_fused:
        return 'fused', f'{v.device.type} tensors, and triton is installed'
    if torch.compiler.is_compiling():
        return 'torch_impl', 'torch.compile fuses the plain operations itself'
    if v.device.type == 'cpu':
        return 'eager', 'a CPU works fastest on chunks of window rows that fit its cache'
    if v.device.type == 'meta':
        return 'torch_impl', 'meta tensors hold shapes only'
    return 'eager', f'the fused kernel is out: {why_not_fused}'


def _why_not_fused(v: Tensor, kernel_size: int, stride: int) -> str:
    """What keeps the kernel from running on ``v``; empty if nothing does."""
    if not HAS_TRITON:
        return 'triton is not installed'
    if v.device.type != 'cuda' and not (v.device.type == 'cpu' and os.environ.get('TRITON_INTERPRET') == '1'):
        return f'{v.device.type} tensors are not on a GPU'
    if v.dtype not in FUSED_DTYPES:
        return f'{v.dtype} is not one of float32, float16 and bfloat16'
    if kernel_size not in FUSED_KERNELS or stride not in (1, 2):
        return f'kernel_size={kernel_size}, stride={stride} is not 3 or 5 with stride 1 or 2'
    return ''


def _is_exporting() -> bool:
    exporting = getattr(torch.compiler, 'is_exporting', None)  # torch >= 2.7
    return torch.jit.is_tracing() or torch.onnx.is_in_onnx_export() or bool(exporting and exporting())


def _check_implementation(implementation: str, dropout_p: float, why_not_fused: str) -> None:
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f'implementation={implementation!r} is not None or one of {IMPLEMENTATIONS}')
    if implementation == 'fused' and why_not_fused:
        raise ValueError(f"implementation='fused' cannot run here: {why_not_fused}")
    if implementation in ('fused', 'eager') and dropout_p > 0:
        raise ValueError(
            f"implementation={implementation!r} has no dropout (dropout_p={dropout_p:g}); take 'torch_impl'"
        )


def _check_window(kernel_size: int, stride: int, padding: int, dropout_p: float) -> None:
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f'kernel_size={kernel_size} must be odd and positive')
    if not 1 <= stride <= kernel_size:
        raise ValueError(f'stride={stride} must lie in 1..kernel_size={kernel_size}, or pixels are skipped')
    if padding != kernel_size // 2:
        raise ValueError(f'padding={padding} must be kernel_size // 2 = {kernel_size // 2}')
    if not 0 <= dropout_p <= 1:
        raise ValueError(f'dropout_p={dropout_p:g} must lie in [0, 1]')


def _check_shapes(v: Tensor, logits: Tensor, num_heads: int, kernel_size: int, stride: int) -> None:
    if v.dim() != 4 or not v.is_floating_point() or 0 in v.shape[1:]:
        raise ValueError(f'v must be a floating (B, H, W, C) tensor, not {v.dtype} {tuple(v.shape)}')
    batch, height, width, channels = v.shape
    if num_heads < 1 or channels % num_heads:
        raise ValueError(f'v has {channels} channels, which num_heads={num_heads} does not divide')
    expected = (batch, -(-height // stride), -(-width // stride), num_heads * kernel_size**4)
    if tuple(logits.shape) != expected:
        raise ValueError(f'logits must have shape {expected} for v of {tuple(v.shape)}, not {tuple(logits.shape)}')
    if logits.device != v.device:
        raise ValueError(f'v is on {v.device} and logits on {logits.device}; they must share a device')

"""The public function ``outlook_attention`` and the choice of its implementation."""

import operator
import os

import torch
from torch import Tensor

from volo_seg.errors import UserError
from volo_seg.ops.eager import outlook_attention_eager
from volo_seg.ops.reference import Window, outlook_attention_reference
from volo_seg.ops.torch_impl import outlook_attention_torch_impl
from volo_seg.ops.transforms import why_plain
from volo_seg.ops.triton.fused import FUSED_DTYPES, FUSED_KERNELS, HAS_TRITON, outlook_attention_fused
from volo_seg.ops.triton.self_check import why_not_fused

IMPLEMENTATIONS = ('reference', 'eager', 'torch_impl', 'fused')
"""Values of the argument ``implementation``; :func:`explain` describes them."""
OVERRIDES = {'auto': None, 'fused': 'fused', 'eager': 'eager', 'torch': 'torch_impl'}
"""Values of the environment variable ``VOLO_SEG_OUTLOOK``, and the implementation that each one requests."""


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
    """Apply attention inside each K x K window of ``v`` and sum the results where windows overlap.

    Window (i, j) starts at row ``i * stride - padding`` and column ``j * stride - padding`` of zero-padded ``v``. Its
    attention weights are ``softmax(scale * logits[:, i, j])`` over the K*K input positions, padding included.

    Args:
        v: Values (B, H, W, C), C split into N contiguous heads.
        logits: Attention logits (B, h, w, N * K**4), h = ceil(H / stride), w = ceil(W / stride). The last axis is
            (head, output position, input position), positions in row-major order.
        num_heads: Number of heads N, a divisor of C.
        kernel_size: Side K of a window in tokens, odd.
        stride: Distance between windows in tokens, in 1..K.
        padding: Zero padding in tokens, K // 2.
        scale: Factor on the logits.
        dropout_p: Probability in [0, 1] with which an attention weight is dropped.
        implementation: One of ``IMPLEMENTATIONS``; None chooses as :func:`explain` describes.

    Returns:
        (B, H, W, C) in the dtype of ``v``.

    Raises:
        ValueError: An argument is outside these values, shapes do not fit, or the implementation cannot run here.

    Source: arXiv 2106.13112, section 3.1.
    """
    if isinstance(v, Tensor) and not (torch.compiler.is_compiling() or torch.jit.is_tracing()):
        _check_window(kernel_size, stride, padding, dropout_p)
        _check_shapes(v, logits, num_heads, kernel_size, stride)
    name, _ = explain(
        v, num_heads, kernel_size=kernel_size, stride=stride, dropout_p=dropout_p, implementation=implementation
    )
    window = Window(num_heads, kernel_size, stride, padding, scale)
    if name == 'fused':
        return outlook_attention_fused(v, logits, window)
    if name == 'eager':
        return outlook_attention_eager(v, logits, window)
    with_dropout = outlook_attention_torch_impl if name == 'torch_impl' else outlook_attention_reference
    return with_dropout(v, logits, window, dropout_p)


def explain(
    v: Tensor,
    num_heads: int,
    *,
    kernel_size: int = 3,
    stride: int = 1,
    dropout_p: float = 0.0,
    implementation: str | None = None,
) -> tuple[str, str]:
    """The implementation that ``outlook_attention`` uses for these arguments, and the reason as a sentence.

    * fused: Triton kernels, on a GPU, after a check on this GPU (the first call for a GPU, dtype, kernel size, stride
      and heads compiles and compares them; the result is stored in ``~/.cache/volo-seg``).
    * eager: an ``autograd.Function`` that recomputes in backward; in chunks of window rows on a CPU.
    * torch_impl: differentiable torch operations, for compilation, export, dropout, and what
      :func:`volo_seg.ops.transforms.why_plain` lists.
    * reference: loops over windows; only on request.

    The environment variable ``VOLO_SEG_OUTLOOK`` replaces this choice, and with it the check: ``fused``, ``eager`` or
    ``torch``; ``auto`` is the default. It does not apply to dropout, export and what ``why_plain`` lists; ``eager``
    does not apply to ``torch.compile``.

    Raises:
        ValueError: ``implementation`` is unknown or cannot run with the other arguments.
        UserError: ``VOLO_SEG_OUTLOOK`` is unknown, or requests ``fused`` where the kernels cannot run.
    """
    if implementation is not None:
        _check_implementation(implementation, dropout_p, _fused_unsupported(v, kernel_size, stride))
        return implementation, 'implementation= requests it'
    if dropout_p > 0:
        return 'torch_impl', f'dropout_p={dropout_p:g} needs the weights themselves'
    if reason := why_plain(v):
        return 'torch_impl', reason
    unsupported = _fused_unsupported(v, kernel_size, stride)
    if _is_exporting():
        return 'torch_impl', 'the graph is being exported'
    if requested := _override(unsupported):
        return requested, 'VOLO_SEG_OUTLOOK requests it'
    if v.device.type != 'cpu' and not unsupported:
        head_dim = operator.index(v.shape[-1] // num_heads)  # torch.compile takes a symbolic size as a constant
        unsupported = why_not_fused(v.device, v.dtype, kernel_size, stride, num_heads, head_dim)
        if not unsupported:
            return 'fused', f'{v.device.type} tensors, and the kernels have passed their check'
    if torch.compiler.is_compiling():
        return 'torch_impl', 'torch.compile fuses its operations'
    if v.device.type == 'cpu':
        return 'eager', 'chunks of window rows that fit into the cache are fastest on a CPU'
    return 'eager', f'the fused kernels are not used: {unsupported}'


def _override(unsupported: str) -> str | None:
    """The implementation that ``VOLO_SEG_OUTLOOK`` requests."""
    value = os.environ.get('VOLO_SEG_OUTLOOK', 'auto')
    if value not in OVERRIDES:
        raise UserError(f'VOLO_SEG_OUTLOOK={value!r} is not one of {", ".join(OVERRIDES)}; unset it for auto')
    if value == 'fused' and unsupported:
        raise UserError(f'VOLO_SEG_OUTLOOK=fused cannot run here: {unsupported}; set it to auto or unset it')
    return None if value == 'eager' and torch.compiler.is_compiling() else OVERRIDES[value]


def _fused_unsupported(v: Tensor, kernel_size: int, stride: int) -> str:
    """Why the Triton kernels cannot run on ``v``; empty if they can."""
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
    return torch.onnx.is_in_onnx_export() or bool(exporting and exporting())


def _check_implementation(implementation: str, dropout_p: float, unsupported: str) -> None:
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f'implementation={implementation!r} is not None or one of {IMPLEMENTATIONS}')
    if implementation == 'fused' and unsupported:
        raise ValueError(f"implementation='fused' cannot run here: {unsupported}")
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

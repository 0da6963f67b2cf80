"""Outlook attention by Triton kernels, registered as custom operators that ``torch.compile`` keeps in its graph.

triton is imported on the first call.
"""

import importlib.util

import torch
from torch import Tensor

from volo_seg.ops.reference import Window
from volo_seg.ops.torch_impl import differentiable_gradients
from volo_seg.ops.triton.self_check import import_kernels

FUSED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
FUSED_KERNELS = (3, 5)
HAS_TRITON = importlib.util.find_spec('triton') is not None


def outlook_attention_fused(v: Tensor, logits: Tensor, window: Window) -> Tensor:
    """Outlook attention of ``v`` (B, H, W, C), twice differentiable."""
    return _forward(v, logits, *window)[0]


def _new_outputs(v: Tensor, logits: Tensor, num_heads: int, kernel_size: int, *_: float) -> tuple[Tensor, Tensor]:
    """Memory for the result and for the log-sum-exp of each row of logits (B, h, w, N * K*K), float32."""
    rows = (*logits.shape[:3], num_heads * kernel_size * kernel_size)
    return v.new_empty(v.shape), logits.new_empty(rows, dtype=torch.float32)


@torch.library.custom_op('volo_seg::outlook_attention', mutates_args=())
def _forward(
    v: Tensor, logits: Tensor, num_heads: int, kernel_size: int, stride: int, padding: int, scale: float
) -> tuple[Tensor, Tensor]:
    """The result, and the log-sum-exps for backward."""
    kernels = import_kernels()

    result, sums = _new_outputs(v, logits, num_heads, kernel_size)
    window = Window(num_heads, kernel_size, stride, padding, scale)
    kernels.forward(v.contiguous(), logits.contiguous(), result, sums, window)
    return result, sums


@torch.library.custom_op('volo_seg::outlook_attention_backward', mutates_args=())
def _backward(
    grad: Tensor,
    v: Tensor,
    logits: Tensor,
    sums: Tensor,
    num_heads: int,
    kernel_size: int,
    stride: int,
    padding: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    kernels = import_kernels()

    grad_v, grad_logits = v.new_empty(v.shape), logits.new_empty(logits.shape)
    window = Window(num_heads, kernel_size, stride, padding, scale)
    kernels.backward(grad.contiguous(), v.contiguous(), logits.contiguous(), sums, grad_v, grad_logits, window)
    return grad_v, grad_logits


_forward.register_fake(_new_outputs)


@_backward.register_fake
def _(grad: Tensor, v: Tensor, logits: Tensor, sums: Tensor, *_: float) -> tuple[Tensor, Tensor]:
    return v.new_empty(v.shape), logits.new_empty(logits.shape)


def _setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    v, logits, *numbers = inputs
    ctx.save_for_backward(v, logits, output[1])
    ctx.numbers = numbers  # type: ignore[attr-defined]


def _gradients(ctx: torch.autograd.function.FunctionCtx, grad: Tensor, _: Tensor | None) -> tuple:
    v, logits, sums = ctx.saved_tensors  # type: ignore[attr-defined]
    numbers: list = ctx.numbers  # type: ignore[attr-defined]
    unused = (None,) * len(numbers)
    if torch.is_grad_enabled():
        return *differentiable_gradients(v, logits, grad, Window(*numbers)), *unused
    return *_backward(grad, v, logits, sums, *numbers), *unused


_forward.register_autograd(_gradients, setup_context=_setup_context)

"""Whether the tensors at hand need plain torch operations."""

import torch
from torch import Tensor, fx, nn
from torch.autograd import forward_ad


def why_plain(*tensors: object) -> str:
    """Why only plain torch operations work on ``tensors``, as a sentence; empty if anything works.

    Plain means: no custom ``autograd.Function`` or kernel, no in-place write, no branch on a value or size. This is so
    while ``torch.jit.trace`` or ``torch.fx`` records, under transforms of ``torch.func``, in forward-mode
    differentiation, for meta tensors and for subclasses of ``Tensor`` such as ``FakeTensor``. While ``torch.compile``
    or ``torch.export`` traces, the answer is empty.
    """
    if torch.compiler.is_compiling():
        return ''
    if torch.jit.is_tracing():
        return 'torch.jit.trace records the operations'
    if torch._C._are_functorch_transforms_active():
        return 'a transform of torch.func is active'
    if forward_ad._current_level >= 0:
        return 'forward-mode differentiation is active'
    for tensor in tensors:
        if type(tensor) not in (Tensor, nn.Parameter):
            return f'a {type(tensor).__name__} is not an ordinary tensor'
        if tensor.is_meta:  # type: ignore[attr-defined]
            return 'meta tensors hold shapes only'
    return ''


def exporting() -> bool:
    """Whether a graph is being exported, so that sizes may be symbolic; before torch 2.7, or compiled."""
    return getattr(torch.compiler, 'is_exporting', torch.compiler.is_compiling)()


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` in float32, or in its dtype if that is wider; as it is while ``torch.fx`` records, which knows no dtype."""
    return x if isinstance(x, fx.Proxy) else x.to(torch.promote_types(x.dtype, torch.float32))

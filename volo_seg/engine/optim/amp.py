"""Automatic mixed precision: an optimizer wrapper for GPU and CPU, and the choice of the dtype."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmseg.registry import OPTIM_WRAPPERS
from torch import Tensor, nn

from volo_seg.errors import UserError

DTYPES = {'bf16': 'bfloat16', 'fp16': 'float16'}
WRAPPERS = ('OptimWrapper', 'AmpOptimWrapper', 'AutocastOptimWrapper')


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(OptimWrapper):
    """Runs the forward pass under autocast on a GPU or a CPU.

    Args:
        dtype: ``'bfloat16'``, or ``'float16'`` with a dynamically scaled loss.
        optimizer, accumulative_counts, clip_grad: As in ``OptimWrapper``.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        dtype: str = 'bfloat16',
        accumulative_counts: int = 1,
        clip_grad: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(optimizer, accumulative_counts, clip_grad)
        self.device = 'cuda' if torch.cuda.is_available() else 'cpu'
        self.dtype = getattr(torch, dtype)
        self.loss_scaler = torch.amp.GradScaler(self.device, enabled=self.dtype is torch.float16)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Enable autocast for the forward pass of one training step."""
        with super().optim_context(model), torch.autocast(self.device, dtype=self.dtype):
            yield

    def backward(self, loss: Tensor, **arguments: Any) -> None:
        """Back-propagate the scaled loss."""
        super().backward(self.loss_scaler.scale(loss), **arguments)

    def step(self, **arguments: Any) -> None:
        """Update the parameters unless gradients overflowed, then update the loss scale."""
        self.loss_scaler.unscale_(self.optimizer)
        if self.clip_grad_kwargs:
            self._clip_grad()
        self.loss_scaler.step(self.optimizer, **arguments)
        self.loss_scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the optimizer and of the loss scaler."""
        scale = self.loss_scaler.state_dict()
        return {**super().state_dict(), **({'loss_scaler': scale} if scale else {})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of the optimizer and, if present, of the loss scaler."""
        state = dict(state_dict)
        scale = state.pop('loss_scaler', None)
        if scale and self.loss_scaler.is_enabled():
            self.loss_scaler.load_state_dict(scale)
        super().load_state_dict(state)


def enable_amp(config: Config, dtype: str = 'auto') -> None:
    """Set mixed precision in ``config``: ``'bf16'``, ``'fp16'`` or ``'auto'``, which is fp16 on a GPU, else bf16.

    ``'auto'`` keeps mixed precision that the config already has.

    Raises:
        UserError: This machine does not support the dtype, or the optimizer wrapper is of another type.
    """
    kind = config.optim_wrapper.type
    if kind not in WRAPPERS:
        raise UserError(f'--amp needs optim_wrapper.type=OptimWrapper, and the config has {kind!r}; remove the flag')
    if dtype == 'auto' and kind != 'OptimWrapper':
        return
    gpu = torch.cuda.is_available()
    if dtype == 'auto':
        dtype = 'fp16' if gpu else 'bf16'
    reason = why_not(dtype)
    if reason is not None:
        raise UserError(f'--amp {dtype}: {reason}')
    wrapper = config.optim_wrapper
    if dtype == 'fp16' and gpu:
        wrapper.update(type='AmpOptimWrapper', dtype='float16', loss_scale=wrapper.get('loss_scale', 'dynamic'))
        return
    for key in ('loss_scale', 'use_fsdp'):
        wrapper.pop(key, None)
    wrapper.update(type='AutocastOptimWrapper', dtype=DTYPES[dtype])
    if not gpu and not (dtype == 'bf16' and has_fast_bfloat16()):
        about = f'--amp {dtype}: this CPU has no {DTYPES[dtype]} matrix multiplication in hardware'
        print_log(f'{about}; training is slower than in float32', 'current', 30)


def why_not(dtype: str) -> str | None:
    """Return why this machine cannot train in ``'bf16'`` or ``'fp16'`` and what to use instead; None if it can."""
    if torch.cuda.is_available():
        supported = dtype == 'fp16' or torch.cuda.is_bf16_supported()
        return None if supported else f'{torch.cuda.get_device_name()} does not support bfloat16; use --amp fp16'
    if dtype == 'bf16':
        return None
    try:
        _try_float16_on_cpu()
    except RuntimeError as error:
        reason = str(error).splitlines()[0][:100]
        return f'torch {torch.__version__} does not train in float16 on a CPU ({reason}); use --amp bf16'
    return None


def has_fast_bfloat16() -> bool:
    """Return whether this CPU has instructions for bfloat16 matrix multiplication."""
    return bool(
        getattr(torch.cpu, '_is_avx512_bf16_supported', lambda: False)()
        or getattr(torch.cpu, '_is_amx_tile_supported', lambda: False)()
    )


def _try_float16_on_cpu() -> None:
    """Run convolution, norm, linear layer and attention forward and backward; raises the error of torch."""
    with torch.random.fork_rng(devices=[]):
        network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(2), nn.Linear(4, 4))
    with torch.autocast('cpu', dtype=torch.float16):
        x = network(torch.ones(2, 2, 4, 4))
        x = nn.functional.scaled_dot_product_attention(x, x, x)
    torch.amp.GradScaler('cpu').scale(x.float().sum()).backward()

"""Mixed precision: which number format a machine trains in, and an optimizer wrapper that also runs on a CPU."""

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
    """Run the forward pass under autocast on a GPU or a CPU.

    Args:
        dtype: ``'bfloat16'``, which has float32's range, or ``'float16'``, whose loss is scaled dynamically.
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
        """Autocast the forward pass of one training step."""
        with super().optim_context(model), torch.autocast(self.device, dtype=self.dtype):
            yield

    def backward(self, loss: Tensor, **arguments: Any) -> None:
        """Back-propagate the scaled loss."""
        super().backward(self.loss_scaler.scale(loss), **arguments)

    def step(self, **arguments: Any) -> None:
        """Make a step, unless gradients overflowed; adapt the scale."""
        self.loss_scaler.unscale_(self.optimizer)
        if self.clip_grad_kwargs:
            self._clip_grad()
        self.loss_scaler.step(self.optimizer, **arguments)
        self.loss_scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state and the scale of the loss."""
        scale = self.loss_scaler.state_dict()
        return {**super().state_dict(), **({'loss_scaler': scale} if scale else {})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the optimizer's state and the scale of the loss, if there is one."""
        state = dict(state_dict)
        scale = state.pop('loss_scaler', None)
        if scale and self.loss_scaler.is_enabled():
            self.loss_scaler.load_state_dict(scale)
        super().load_state_dict(state)


def enable_amp(config: Config, dtype: str = 'auto') -> None:
    """Train in mixed precision: ``'bf16'``, ``'fp16'`` (the loss is scaled), ``'auto'``: fp16 on a GPU, bf16 on a CPU.

    A config that has mixed precision already keeps it under ``'auto'``.

    Raises:
        UserError: This machine does not train in that format, or the config's optimizer wrapper is of another kind.
    """
    kind = config.optim_wrapper.type
    if kind not in WRAPPERS:
        raise UserError(f'--amp works with optim_wrapper.type=OptimWrapper, and this config has {kind!r}')
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
        about = f'--amp {dtype}: this CPU does not multiply {DTYPES[dtype]} in hardware'
        print_log(f'{about}; training will be slower, not faster', 'current', 30)


def why_not(dtype: str) -> str | None:
    """What keeps this machine from training in ``'bf16'`` or ``'fp16'``, and the way out; None if it can."""
    if torch.cuda.is_available():
        supported = dtype == 'fp16' or torch.cuda.is_bf16_supported()
        return None if supported else f'{torch.cuda.get_device_name()} has no bfloat16; use --amp fp16'
    if dtype == 'bf16':
        return None
    try:
        _try_float16_on_cpu()
    except (RuntimeError, NotImplementedError) as error:
        told = str(error).splitlines()[0][:100]
        return f'torch {torch.__version__} does not train in float16 on a CPU ({told}); use --amp bf16'
    return None


def has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware."""
    return bool(
        getattr(torch.cpu, '_is_avx512_bf16_supported', lambda: False)()
        or getattr(torch.cpu, '_is_amx_tile_supported', lambda: False)()
    )


def _try_float16_on_cpu() -> None:
    """One convolution, norm, attention and product, forward and backward; raises what torch cannot do."""
    with torch.random.fork_rng(devices=[]):
        network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(2), nn.Linear(4, 4))
    with torch.autocast('cpu', dtype=torch.float16):
        x = network(torch.ones(2, 2, 4, 4))
        x = nn.functional.scaled_dot_product_attention(x, x, x)
    torch.amp.GradScaler('cpu').scale(x.float().sum()).backward()

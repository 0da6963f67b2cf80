"""``--fsdp``: shard parameters, gradients and optimizer state over the processes by torch's ``fully_shard``.

Checkpoints contain full tensors with the names and order of a run without sharding, so that they load with any number
of processes, sharded or not.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.hooks import EMAHook
from torch import Tensor, nn
from torch.optim import Optimizer

from volo_seg.errors import UserError

_STACKS = (nn.ModuleList, nn.Sequential)


def shard(model: nn.Module) -> nn.Module:
    """Shard ``model`` in place, each block of its backbone and the rest as one unit each; return it.

    All processes must hold the same weights.

    Raises:
        UserError: torch is older than 2.6.
    """
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError as error:
        raise UserError(
            f'--fsdp needs torch 2.6 or newer, and {torch.__version__} is installed; update torch'
        ) from error
    from torch.distributed.device_mesh import init_device_mesh

    device = torch.device(get_device()).type
    mesh = init_device_mesh(device, (torch.distributed.get_world_size(),))
    # no module changes the output of a block in place
    warnings.filterwarnings('ignore', message='FSDP2-wrapped module .* returned a view')
    for block in blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.register_load_state_dict_pre_hook(_shard_loaded)
    return model


def blocks(model: nn.Module) -> list[nn.Module]:
    """Return the units of sharding: the blocks in the outermost module lists and sequences of the backbone."""
    backbone = getattr(model, 'backbone', None)
    found: list[nn.Module] = []
    waiting = list(backbone.children()) if backbone is not None else []
    for stack in waiting:
        if isinstance(stack, _STACKS):
            for block in stack:
                found += list(block) if isinstance(block, _STACKS) else [block]
    return [block for block in found if any(True for _ in block.parameters())]


def is_sharded(model: nn.Module) -> bool:
    """Return whether ``model`` is sharded by :func:`shard`."""
    return hasattr(model, 'unshard')


def gather(model: nn.Module) -> None:
    """Gather the full weights in each process until :func:`scatter`; forward passes then need no communication."""
    for module in model.modules():
        if is_sharded(module):
            module.set_reshard_after_forward(False, recurse=False)  # type: ignore[operator]
            module.unshard()  # type: ignore[operator]


def scatter(model: nn.Module) -> None:
    """Shard the weights again after :func:`gather`."""
    for module in model.modules():
        if is_sharded(module):
            module.set_reshard_after_forward(module is not model, recurse=False)  # type: ignore[operator]
            module.reshard()  # type: ignore[operator]


def full_tensor(value: Tensor) -> Tensor:
    """Return the full tensor of a sharded ``value``, other tensors unchanged. All processes must call this."""
    return value.full_tensor() if hasattr(value, 'full_tensor') else value


def shard_like(value: Tensor, parameter: Tensor) -> Tensor:
    """Shard ``value``, a full tensor that is equal in all processes, like ``parameter``."""
    if not hasattr(parameter, 'full_tensor') or value.shape != parameter.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    mesh = parameter.device_mesh  # type: ignore[attr-defined]
    placements = parameter.placements  # type: ignore[attr-defined]
    return distribute_tensor(value.to(parameter.device), mesh, placements)


def full_tensors(value: Any) -> Any:
    """Copy nested dicts and lists with full tensors on the CPU. All processes must call this."""
    if isinstance(value, Tensor):
        return full_tensor(value.detach()).cpu()
    if isinstance(value, Mapping):
        copied = OrderedDict((key, full_tensors(item)) for key, item in value.items())
        if hasattr(value, '_metadata'):  # of a state dict: the versions of the modules
            copied._metadata = value._metadata  # type: ignore[attr-defined]
            return copied
        return dict(copied)
    if isinstance(value, (list, tuple)):
        return type(value)(full_tensors(item) for item in value)
    return value


def _shard_loaded(model: nn.Module, weights: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Shard full weights before they are loaded."""
    for name, parameter in model.state_dict(prefix=prefix).items():
        if name in weights and not hasattr(weights[name], 'full_tensor'):
            weights[name] = shard_like(weights[name], parameter)


def shard_optimizer(optimizer: Optimizer) -> None:
    """Shard the state that was loaded into ``optimizer`` like its parameters."""
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and not hasattr(value, 'full_tensor'):
                state[key] = shard_like(value, parameter)


def check_shardable(config: Any, hooks: list[Any]) -> None:
    """Check that ``config`` and ``hooks`` can be sharded.

    Raises:
        UserError: No launcher is used, an EMA hook is there, or float16 losses are scaled.
    """
    if config.get('launcher', 'none') == 'none':
        raise UserError(
            '--fsdp needs several processes, and --launcher is none; use tools/dist_train.sh CONFIG GPUS --fsdp'
        )
    if any(isinstance(hook, EMAHook) for hook in hooks):
        raise UserError(
            '--fsdp does not support averaged weights, and custom_hooks has an EMA hook; remove one of the two'
        )
    wrapper = config.get('optim_wrapper') or {}
    scaled = wrapper.get('dtype') == 'float16' or (
        wrapper.get('type') == 'AmpOptimWrapper' and not wrapper.get('dtype')
    )
    if scaled:
        raise UserError('--fsdp does not support the loss scaling of float16; use --amp bf16')

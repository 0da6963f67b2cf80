"""``--fsdp``: parameters, gradients and optimizer state split over the processes (torch's ``fully_shard``).

Checkpoints hold whole tensors in the order and under the names of a plain run, so that any number of processes,
sharded or not, reads what any other wrote.
"""

from __future__ import annotations

import warnings
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
    """Split ``model`` in place, each block of its backbone for itself and the rest together; return it.

    Every process must hold equal weights already.

    Raises:
        UserError: This torch has no ``fully_shard``.
    """
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError as error:
        raise UserError(f'--fsdp needs torch 2.6 or newer, and this is {torch.__version__}') from error
    from torch.distributed.device_mesh import init_device_mesh

    device = torch.device(get_device()).type
    mesh = init_device_mesh(device, (torch.distributed.get_world_size(),))
    # nothing here changes a block's output in place
    warnings.filterwarnings('ignore', message='FSDP2-wrapped module .* returned a view')
    for block in blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.register_load_state_dict_pre_hook(_shard_loaded)
    return model


def blocks(model: nn.Module) -> list[nn.Module]:
    """The units that are gathered one at a time: the members of the backbone's outermost stacks."""
    backbone = getattr(model, 'backbone', None)
    found: list[nn.Module] = []
    waiting = list(backbone.children()) if backbone is not None else []
    for stack in waiting:
        if isinstance(stack, _STACKS):
            for block in stack:
                found += list(block) if isinstance(block, _STACKS) else [block]
    return [block for block in found if any(True for _ in block.parameters())]


def is_sharded(model: nn.Module) -> bool:
    """Whether :func:`shard` split ``model``."""
    return hasattr(model, 'unshard')


def gather(model: nn.Module) -> None:
    """Hold the whole weights in every process until :func:`scatter`: in validation, windows differ by process."""
    for module in model.modules():
        if is_sharded(module):
            module.set_reshard_after_forward(False, recurse=False)  # type: ignore[operator]
            module.unshard()  # type: ignore[operator]


def scatter(model: nn.Module) -> None:
    """Undo :func:`gather`."""
    for module in model.modules():
        if is_sharded(module):
            module.set_reshard_after_forward(module is not model, recurse=False)  # type: ignore[operator]
            module.reshard()  # type: ignore[operator]


def full_tensor(value: Tensor) -> Tensor:
    """A plain tensor of all shards of ``value``; all processes call it together."""
    return value.full_tensor() if hasattr(value, 'full_tensor') else value


def shard_like(value: Tensor, parameter: Tensor) -> Tensor:
    """Split ``value``, whole and equal in all processes, as ``parameter`` is split."""
    if not hasattr(parameter, 'full_tensor') or value.shape != parameter.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    mesh = parameter.device_mesh  # type: ignore[attr-defined]
    placements = parameter.placements  # type: ignore[attr-defined]
    return distribute_tensor(value.to(parameter.device), mesh, placements)


def full_tensors(value: Any) -> Any:
    """Copy nested dicts and lists with every tensor whole and on the CPU; all processes call it together."""
    if isinstance(value, Tensor):
        return full_tensor(value.detach()).cpu()
    if isinstance(value, Mapping):
        return {key: full_tensors(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(full_tensors(item) for item in value)
    return value


def _shard_loaded(model: nn.Module, weights: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Split whole weights that are about to be loaded."""
    for name, parameter in model.state_dict(prefix=prefix).items():
        if name in weights and not hasattr(weights[name], 'full_tensor'):
            weights[name] = shard_like(weights[name], parameter)


def shard_optimizer(optimizer: Optimizer) -> None:
    """Split the state that was loaded into ``optimizer`` as its parameters are split."""
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and not hasattr(value, 'full_tensor'):
                state[key] = shard_like(value, parameter)


def check_shardable(config: Any, hooks: list[Any]) -> None:
    """Refuse what does not work on shards.

    Raises:
        UserError: One process only, averaged weights, or float16 with loss scaling.
    """
    if config.get('launcher', 'none') == 'none':
        raise UserError(
            '--fsdp splits a model over several processes: start it by tools/dist_train.sh CONFIG GPUS --fsdp'
        )
    if any(isinstance(hook, EMAHook) for hook in hooks):
        raise UserError('--fsdp cannot keep averaged weights (EMA) beside the shards; train without one of the two')
    wrapper = config.get('optim_wrapper') or {}
    scaled = wrapper.get('dtype') == 'float16' or (
        wrapper.get('type') == 'AmpOptimWrapper' and not wrapper.get('dtype')
    )
    if scaled:
        raise UserError('--fsdp cannot scale the losses of float16; choose bfloat16 by --amp bf16')

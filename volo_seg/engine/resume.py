"""Content of a checkpoint, and resuming from it: MMEngine's keys, position in the data, accumulated gradients.

Keys and tensors do not depend on the number of processes and on sharding.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import mmengine
import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from volo_seg.engine.sharding import full_tensor, full_tensors, shard_like
from volo_seg.errors import UserError

PROGRESS = 'progress'
"""The key of a checkpoint under which :func:`describe_progress` is stored."""


def build_checkpoint(runner: Any, meta: dict[str, Any], *, optimizer: bool, schedulers: bool) -> dict[str, Any]:
    """Return the content of a checkpoint, to which hooks may add. All processes must call this.

    Args:
        runner: The runner in training.
        meta: ``epoch`` and ``iter`` at least.
        optimizer: Include the optimizer's state and the position in the data, which resuming needs.
        schedulers: Include the state of the schedulers.
    """
    model = unwrap_model(runner.model)
    average_batch_norms(model)
    checkpoint = {
        'meta': {**meta, **_describe_run(runner)},
        'state_dict': full_tensors(model.state_dict()),
        'message_hub': full_tensors(runner.message_hub.state_dict()),
    }
    if optimizer:
        if not isinstance(runner.optim_wrapper, OptimWrapper):
            raise TypeError(f'{type(runner.optim_wrapper).__name__} is not a single optimizer wrapper')
        checkpoint['optimizer'] = full_tensors(runner.optim_wrapper.state_dict())
        checkpoint[PROGRESS] = describe_progress(runner, meta['iter'])
    if schedulers and runner.param_schedulers is not None:
        checkpoint['param_schedulers'] = _scheduler_states(runner.param_schedulers)
    return checkpoint


def _describe_run(runner: Any) -> dict[str, Any]:
    described = dict(
        # formatting the config takes a second
        cfg=runner.message_hub.runtime_info.get('cfg') or runner.cfg.pretty_text,
        seed=runner.seed,
        experiment_name=runner.experiment_name,
        time=time.strftime('%Y%m%d_%H%M%S', time.localtime()),
        mmengine_version=mmengine.__version__,
    )
    metainfo = getattr(runner.train_dataloader.dataset, 'metainfo', None)
    return described if metainfo is None else {**described, 'dataset_meta': metainfo}


def _scheduler_states(schedulers: Any) -> Any:
    if isinstance(schedulers, dict):
        return {name: _scheduler_states(group) for name, group in schedulers.items()}
    return [scheduler.state_dict() for scheduler in schedulers]


def describe_progress(runner: Any, iteration: int) -> dict[str, Any]:
    """Return the position in the data after ``iteration`` iterations, and gradients accumulated for the next step.

    All processes must call this. The gradients are averaged over the processes.
    """
    loader = runner.train_dataloader
    since, samples = runner.resumed_at
    samples_per_iteration = (loader.batch_size or 0) * get_world_size()
    return {
        'samples': samples + (iteration - since) * samples_per_iteration,
        'samples_per_iteration': samples_per_iteration,
        'data_length': len(loader.dataset),
        'validated': runner.validated_at == iteration,
        'gradients': _pending_gradients(runner),
    }


def restore_progress(runner: Any, checkpoint: Mapping[str, Any]) -> None:
    """Restore the position in the data and accumulated gradients after weights and optimizer have been loaded.

    The order of the data continues at the position, also with another batch size or number of processes.
    """
    loader, iteration = runner.train_dataloader, runner.iter
    if hasattr(loader.sampler, 'seed'):  # the sampler was built before the checkpoint was read
        loader.sampler.seed = runner.seed
    samples_per_iteration = (loader.batch_size or 0) * get_world_size()
    progress = checkpoint.get(PROGRESS)
    if progress is None:  # written by MMEngine's own runner
        runner.resumed_at = iteration, iteration * samples_per_iteration
        return
    runner.resumed_at = iteration, progress['samples']
    runner.validated_at = iteration if progress['validated'] else None
    by_iteration = hasattr(getattr(runner.train_loop, 'dataloader_iterator', None), 'skip_iter')
    if hasattr(loader.sampler, 'start_at') and loader.batch_size and by_iteration:
        loader.sampler.start_at(progress['samples'])
    _warn_of_changes(runner, progress, samples_per_iteration)
    _restore_gradients(runner, progress['gradients'] or {})


def check_resumable(checkpoint: Mapping[str, Any], *, name: str) -> None:
    """Check that ``checkpoint`` contains a training state.

    Raises:
        UserError: The optimizer's state or the iteration is missing.
    """
    meta = checkpoint.get('meta')
    known = isinstance(meta, Mapping) and 'iter' in meta and 'epoch' in meta
    if not known or 'optimizer' not in checkpoint or 'message_hub' not in checkpoint:
        raise UserError(
            f'{name} contains weights without a training state; give --resume an iter_….pth, or start a new run from '
            f'these weights by --cfg-options load_from={name}'
        )


def average_batch_norms(model: nn.Module) -> None:
    """Replace the running statistics of batch norms, which differ by process, by their mean over the processes."""
    if get_world_size() == 1:
        return
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    buffers = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var)]
    _average([buffer for buffer in buffers if buffer is not None])


def unwrap_model(model: Any) -> Any:
    """Return the model inside a wrapper for distributed training, or ``model`` itself."""
    return model.module if is_model_wrapper(model) else model


def _pending_gradients(runner: Any) -> dict[str, Tensor] | None:
    wrapper = runner.optim_wrapper
    count, window = getattr(wrapper, '_inner_count', 0), getattr(wrapper, '_accumulative_counts', 1)
    if count % window == 0 or count == getattr(wrapper, '_max_counts', -1):
        return None
    found = {name: p.grad for name, p in unwrap_model(runner.model).named_parameters() if p.grad is not None}
    _average([grad for grad in found.values() if not hasattr(grad, 'full_tensor')])
    return {name: full_tensor(grad).detach().cpu() for name, grad in found.items()}


def _restore_gradients(runner: Any, gradients: Mapping[str, Tensor]) -> None:
    for name, parameter in unwrap_model(runner.model).named_parameters():
        if name in gradients:
            parameter.grad = shard_like(gradients[name].to(parameter.device, parameter.dtype), parameter)


def _average(tensors: list[Tensor]) -> None:
    """Replace each tensor by its mean over the processes, in one all-reduce."""
    if get_world_size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
    all_reduce(flat, op='mean')
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def _warn_of_changes(runner: Any, progress: Mapping[str, Any], samples_per_iteration: int) -> None:
    before, length = progress['samples_per_iteration'], progress['data_length']
    if samples_per_iteration != before:
        runner.logger.warning(
            f'an iteration has {samples_per_iteration} images, and had {before} in the checkpoint; the data continues '
            f'after {progress["samples"]} images, learning rate and number of iterations are those of the config'
        )
    now = len(runner.train_dataloader.dataset)
    if now != length:
        runner.logger.warning(
            f'the training data has {now} images, and had {length} in the checkpoint; their order changes'
        )

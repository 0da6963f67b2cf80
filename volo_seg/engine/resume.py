"""What a checkpoint holds of a run beside MMEngine's own: its place in the data, gradients not yet applied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import BaseLoop
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from volo_seg.engine.sampling import NumberedSampler, SeededDataset
from volo_seg.engine.sharding import gather, scatter, shard_like, whole
from volo_seg.errors import UserError

KEY = 'progress'


def progress_of(runner: Any, iteration: int) -> dict[str, Any]:
    """Describe where ``runner`` is after ``iteration`` iterations; all processes call it together.

    Gradients that several iterations gather are averaged over the processes, here and in the run that goes on.
    """
    loader = runner.train_dataloader
    since, samples = runner.resumed_at
    step = (loader.batch_size or 0) * get_world_size()
    return {
        'samples': samples + (iteration - since) * step,
        'samples_per_iteration': step,
        'data_length': len(loader.dataset),
        'validated': runner.validated_at == iteration,
        'gradients': _pending_gradients(runner),
    }


def restore_progress(runner: Any, checkpoint: Mapping[str, Any]) -> None:
    """Put ``runner``, whose weights and optimizer are loaded already, at the place that ``checkpoint`` names.

    The order of the data goes on where it was, also with another batch size or number of processes.
    """
    loader, iteration = runner.train_dataloader, runner.iter
    if isinstance(loader.dataset, SeededDataset):
        loader.dataset.seed = runner.seed
    if isinstance(loader.sampler, NumberedSampler) and hasattr(loader.sampler.inner, 'seed'):
        loader.sampler.inner.seed = runner.seed
    step = (loader.batch_size or 0) * get_world_size()
    progress = checkpoint.get(KEY)
    if progress is None:  # of MMEngine's own runner
        runner.resumed_at = iteration, iteration * step
        return
    runner.resumed_at = iteration, progress['samples']
    runner.validated_at = iteration if progress['validated'] else None
    skips = hasattr(getattr(runner.train_loop, 'dataloader_iterator', None), 'skip_iter')
    if isinstance(loader.sampler, NumberedSampler) and loader.batch_size and skips:
        loader.sampler.place(progress['samples'])
    _tell_changes(runner, progress, step)
    _restore_gradients(runner, progress['gradients'] or {})


def check_resumable(checkpoint: Mapping[str, Any], *, name: str) -> None:
    """Refuse to go on from a file that holds weights only.

    Raises:
        UserError: The optimizer's state or the iteration is not in it.
    """
    meta = checkpoint.get('meta')
    known = isinstance(meta, Mapping) and 'iter' in meta and 'epoch' in meta
    if not known or 'optimizer' not in checkpoint or 'message_hub' not in checkpoint:
        raise UserError(
            f'{name} holds weights and no training state to go on from: give --resume an iter_….pth, or start anew '
            f'from these weights with --cfg-options load_from={name}'
        )


def average_statistics(model: nn.Module) -> None:
    """Give all processes the mean of their batch norms' running statistics; each sees its own images only."""
    if get_world_size() == 1:
        return
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    buffers = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var)]
    _average([buffer for buffer in buffers if buffer is not None])


class ResumeHook(Hook):
    """Let all processes validate the same, whole model, and note which iteration is validated."""

    priority = 'VERY_HIGH'

    def before_val_epoch(self, runner: Any) -> None:
        """Average the statistics; hold the whole weights of a sharded model."""
        average_statistics(plain(runner.model))
        gather(runner.model)

    def before_test_epoch(self, runner: Any) -> None:
        """Hold the whole weights of a sharded model."""
        gather(runner.model)

    def after_val_epoch(self, runner: Any, metrics: Any = None) -> None:
        """Split again; note the iteration before the checkpoint hook may save once more."""
        scatter(runner.model)
        if isinstance(runner._train_loop, BaseLoop):
            runner.validated_at = runner.iter


class MissedValidationHook(Hook):
    """Validate first where the earlier run ended between a checkpoint and its validation."""

    priority = 'LOWEST'

    def before_train_epoch(self, runner: Any) -> None:
        """Validate if that is due at the iteration that training goes on from, and was not done."""
        loop = runner.train_loop
        if runner.iter == 0 or runner.val_loop is None or not hasattr(loop, 'dataloader_iterator'):
            return
        due = runner.iter % loop.val_interval == 0 or runner.iter == runner.max_iters
        if due and runner.iter >= loop.val_begin and runner.validated_at != runner.iter:
            runner.val_loop.run()


def plain(model: Any) -> nn.Module:
    """The model itself, without the wrapper that makes it one of many processes."""
    return model.module if is_model_wrapper(model) else model


def _pending_gradients(runner: Any) -> dict[str, Tensor] | None:
    wrapper = runner.optim_wrapper
    count, window = getattr(wrapper, '_inner_count', 0), getattr(wrapper, '_accumulative_counts', 1)
    if count % window == 0 or count == getattr(wrapper, '_max_counts', -1):
        return None
    found = {name: p.grad for name, p in plain(runner.model).named_parameters() if p.grad is not None}
    _average([grad for grad in found.values() if not hasattr(grad, 'full_tensor')])
    return {name: whole(grad).detach().cpu() for name, grad in found.items()}


def _restore_gradients(runner: Any, gradients: Mapping[str, Tensor]) -> None:
    for name, parameter in plain(runner.model).named_parameters():
        if name in gradients:
            parameter.grad = shard_like(gradients[name].to(parameter.device, parameter.dtype), parameter)


def _average(tensors: list[Tensor]) -> None:
    """Replace each tensor by its mean over the processes, in one exchange."""
    if get_world_size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
    all_reduce(flat, op='mean')
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def _tell_changes(runner: Any, progress: Mapping[str, Any], step: int) -> None:
    before, length = progress['samples_per_iteration'], progress['data_length']
    if step != before:
        runner.logger.warning(
            f'an iteration is {step} images now and was {before}: the data goes on after the '
            f'{progress["samples"]} images seen; learning rate and number of iterations stay as the config says'
        )
    now = len(runner.train_dataloader.dataset)
    if now != length:
        runner.logger.warning(f'the training data holds {now} images now and held {length}: their order is a new one')

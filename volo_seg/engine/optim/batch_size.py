"""The batch size of an optimizer step: gradient accumulation, and the learning rate scaled to it."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config
from mmengine.hooks import ParamSchedulerHook
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmseg.registry import HOOKS

from volo_seg.errors import UserError


@HOOKS.register_module()
class OptimizerStepSchedulerHook(ParamSchedulerHook):
    """Updates schedulers that count iterations once per optimizer step instead of once per accumulated batch."""

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Update the schedulers if this iteration ended with an optimizer step."""
        if runner.optim_wrapper.should_update():
            super().after_train_iter(runner, batch_idx, data_batch, outputs)


def accumulate(config: Config, count: int) -> None:
    """Accumulate the gradients of ``count`` batches for each optimizer step; the number of optimizer steps is kept.

    Schedulers still count optimizer steps; intervals in iterations (run length, validation, checkpoints, log lines)
    are multiplied by ``count``. With a batch size divided by ``count``, the run computes the same as without
    accumulation, except for batch norms, whose statistics come from the smaller batches, and for losses that do not
    average over all pixels (class weights, hard pixels).

    Raises:
        UserError: ``count`` is below 1, the config accumulates another number of batches, or it counts epochs.
    """
    if count < 1:
        raise UserError(f'--accumulate {count} is below 1; give the number of batches of an optimizer step')
    before = config.optim_wrapper.get('accumulative_counts', 1)
    if before not in (1, count):
        raise UserError(
            f'--accumulate {count}: the config has optim_wrapper.accumulative_counts={before}; remove one of them'
        )
    if config.train_cfg.get('type') != 'IterBasedTrainLoop':
        raise UserError(
            f'--accumulate {count} needs train_cfg.type=IterBasedTrainLoop, and the config has '
            f'{config.train_cfg.get("type")!r}; set optim_wrapper.accumulative_counts={count} instead'
        )
    if count == 1 or before == count:
        return
    config.optim_wrapper.accumulative_counts = count
    for key in ('max_iters', 'val_interval'):
        if key in config.train_cfg:
            config.train_cfg[key] *= count
    hooks = config.default_hooks
    for name in ('checkpoint', 'logger'):
        hook = hooks.get(name)
        if hook and not hook.get('by_epoch', name != 'logger') and hook.get('interval', -1) > 0:
            hook.interval *= count
    if hooks.get('param_scheduler'):
        hooks.param_scheduler.type = 'OptimizerStepSchedulerHook'


def auto_scale_lr(config: Config) -> None:
    """Set ``auto_scale_lr.enable`` of ``config``.

    Raises:
        UserError: ``auto_scale_lr.base_batch_size`` is missing.
    """
    if not (config.get('auto_scale_lr') or {}).get('base_batch_size'):
        raise UserError(
            '--auto-scale-lr needs auto_scale_lr.base_batch_size, and the config has none; '
            'add auto_scale_lr = dict(base_batch_size=…), the images of all GPUs that the learning rate is for'
        )
    config.auto_scale_lr.enable = True


def scale_rates(optim_wrapper: OptimWrapper, *, enable: bool, base: int, batch: int) -> None:
    """Multiply the learning rate of each parameter group by ``batch / base``; without ``enable``, only log the factor.

    ``batch`` is the number of images of an optimizer step, ``base`` the number that the learning rate is for.

    Source: the linear rule, arXiv 1706.02677.
    """
    if batch == base:
        return
    rate = optim_wrapper.optimizer.defaults['lr']
    about = f'the learning rate {rate:g} is for {base} images an optimizer step, this run has {batch}'
    if not enable:
        print_log(f'{about}; --auto-scale-lr would make it {rate * batch / base:g}', 'current')
        return
    groups: list[dict[str, Any]] = list(optim_wrapper.optimizer.param_groups)
    if optim_wrapper.base_param_settings is not None:  # what the log shows where there are several groups
        groups.append(optim_wrapper.base_param_settings)
    for group in groups:
        group['lr'] *= batch / base
    print_log(f'{about}: it is multiplied by {batch / base:g}', 'current')

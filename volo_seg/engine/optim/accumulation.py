"""Gradient accumulation that keeps what a config says about steps."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config
from mmengine.hooks import ParamSchedulerHook
from mmseg.registry import HOOKS

from volo_seg.errors import UserError


@HOOKS.register_module()
class OptimizerStepSchedulerHook(ParamSchedulerHook):
    """Step the schedules that count iterations once an optimizer step, not once an accumulated batch."""

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Step them, if the optimizer has just made its step."""
        if runner.optim_wrapper.should_update():
            super().after_train_iter(runner, batch_idx, data_batch, outputs)


def accumulate(config: Config, count: int) -> None:
    """Let one optimizer step of ``config`` take ``count`` batches; the run makes as many optimizer steps as before.

    ``count`` batches of b images are then one batch of ``count * b``. Schedules go on counting optimizer steps; what
    counts iterations (run length, validation, checkpoints, log lines) is multiplied. So ``accumulate(config, 4)`` with
    a quarter of the batch size is the run of the config itself, but for the statistics of batch norms, which see the
    small batches, and for losses that do not average over all pixels (class weights, hard pixels).

    Raises:
        UserError: ``count`` is no number of batches, or the config accumulates already or counts epochs.
    """
    if count < 1:
        raise UserError(f'--accumulate {count} is not a number of batches; give 1 or more')
    before = config.optim_wrapper.get('accumulative_counts', 1)
    if before not in (1, count):
        raise UserError(
            f'--accumulate {count}: the config has optim_wrapper.accumulative_counts={before} already; use one of them'
        )
    if config.train_cfg.get('type') != 'IterBasedTrainLoop':
        raise UserError('--accumulate works with train_cfg.type=IterBasedTrainLoop; set accumulative_counts instead')
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


def images_per_step(config: Config, *, world_size: int) -> int:
    """Images that one optimizer step of ``config`` sees in ``world_size`` processes."""
    return config.train_dataloader.batch_size * world_size * config.optim_wrapper.get('accumulative_counts', 1)

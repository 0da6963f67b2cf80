"""Averaged weights: what is evaluated and saved is a moving average of the weights that train."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.logging import print_log
from mmseg.registry import HOOKS

from volo_seg.errors import UserError

MOMENTUM = 0.0002
KIND = 'AveragedWeightsHook'


@HOOKS.register_module()
class AveragedWeightsHook(EMAHook):
    """MMEngine's ``EMAHook`` for a safe runner, with averaged batch-norm statistics and a window that grows.

    The average moves by ``max(momentum, gamma / (gamma + steps))`` of the way at each optimizer step: at first it
    covers the last tenth of the steps so far, and at most the last ``1 / momentum`` steps. So one setting suits
    600 steps and 160,000. Running means and variances of batch norms are averaged with the weights that they belong to.

    While training, validation swaps the averaged weights in. A checkpoint holds them as ``state_dict``, so that every
    command reads them; the weights that train are in ``ema_state_dict``, for resuming. Accumulated
    iterations count as one step.

    Args:
        momentum: Smallest share of the new weights in the average, in (0, 1).
        gamma: How many first steps count little.
        begin_iter: Iteration from which the average is kept; before, it is the weights themselves.
    """

    def __init__(self, *, momentum: float = MOMENTUM, gamma: int = 10, begin_iter: int = 0) -> None:
        super().__init__(
            ema_type='MomentumAnnealingEMA',
            strict_load=True,
            begin_iter=begin_iter,
            momentum=momentum,
            gamma=gamma,
            update_buffers=True,
        )
        self.training = False

    def before_train(self, runner: Any) -> None:
        """Start from the weights that training starts from, unless the average itself was loaded."""
        super().before_train(runner)
        self.training = True
        if not self.ema_model.steps:
            self.ema_model.module.load_state_dict(self.src_model.state_dict())

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Move the average, where this iteration ended in a step of the optimizer."""
        if runner.optim_wrapper.should_update():
            super().after_train_iter(runner, batch_idx, data_batch, outputs)

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Resume the average; where there is none to resume, it begins at the loaded weights."""
        if not runner._resume:
            return
        if 'ema_state_dict' in checkpoint:
            super().after_load_checkpoint(runner, checkpoint)
        else:
            print_log('the checkpoint holds no averaged weights: the average begins here', 'current')

    def _swap_ema_parameters(self) -> None:
        # outside of training the model has been loaded with averaged weights, and there is nothing to swap
        if self.training:
            super()._swap_ema_parameters()


def use_ema(config: Config, momentum: float | bool = True) -> None:
    """Keep, evaluate and save averaged weights in the run of ``config``; ``True`` stands for the default momentum.

    Raises:
        UserError: ``momentum`` is no share, or the config averages weights already in another way.
    """
    momentum = MOMENTUM if momentum is True else momentum
    if not 0 < momentum < 1:
        raise UserError(
            f'--ema {momentum:g} is not in (0, 1); it is the share of the new weights, usually 0.0001 to 0.01'
        )
    hooks = [hook for hook in config.get('custom_hooks') or [] if hook.get('type') != KIND]
    rival = next((hook.type for hook in hooks if str(hook.get('type')).endswith('EMAHook')), None)
    if rival is not None:
        raise UserError(f'--ema: the config has {rival!r} in custom_hooks already; take it out, or leave --ema out')
    config.custom_hooks = [*hooks, dict(type=KIND, momentum=momentum)]

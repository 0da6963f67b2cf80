"""Exponential moving average of the weights, for evaluation and checkpoints."""

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
    """MMEngine's ``EMAHook`` with a decreasing momentum and averaged batch-norm statistics.

    At each optimizer step, the momentum (weight of the new weights) is ``max(momentum, gamma / (gamma + steps))``: the
    average covers the last tenth of the steps at first, and the last ``1 / momentum`` steps at most. The same setting
    therefore works for 600 steps and for 160,000. Running means and variances of batch norms are averaged like weights.

    Validation during training uses the averaged weights. A checkpoint holds them in ``state_dict``, which every
    command reads; the weights in training are in ``ema_state_dict``, for resuming. Accumulated iterations count as one
    step.

    Args:
        momentum: Smallest momentum, in (0, 1).
        gamma: Larger values make the momentum decrease more slowly.
        begin_iter: First iteration to average; before it, the average equals the weights.
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
        """Initialise the average with the weights unless a resumed run has loaded it."""
        super().before_train(runner)
        self.training = True
        if not self.ema_model.steps:
            self.ema_model.module.load_state_dict(self.src_model.state_dict())

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Update the average if this iteration ended with an optimizer step."""
        if runner.optim_wrapper.should_update():
            super().after_train_iter(runner, batch_idx, data_batch, outputs)

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Load the average when resuming; without one in the checkpoint, it starts from the loaded weights."""
        if not runner._resume:
            return
        if 'ema_state_dict' in checkpoint:
            super().after_load_checkpoint(runner, checkpoint)
        else:
            print_log('the checkpoint has no averaged weights; the average starts from its weights', 'current')

    def _swap_ema_parameters(self) -> None:
        # in tests, the model holds the averaged weights of the checkpoint already
        if self.training:
            super()._swap_ema_parameters()


def use_ema(config: Config, momentum: float | bool = True) -> None:
    """Average the weights in the run of ``config``; ``True`` is the default momentum.

    Raises:
        UserError: ``momentum`` is outside (0, 1), or the config has another EMA hook.
    """
    momentum = MOMENTUM if momentum is True else momentum
    if not 0 < momentum < 1:
        raise UserError(f'--ema {momentum:g} is not in (0, 1); usual values are 0.0001 to 0.01')
    hooks = [hook for hook in config.get('custom_hooks') or [] if hook.get('type') != KIND]
    rival = next((hook.type for hook in hooks if str(hook.get('type')).endswith('EMAHook')), None)
    if rival is not None:
        raise UserError(f'--ema: custom_hooks has {rival!r} already; remove it, or remove --ema')
    config.custom_hooks = [*hooks, dict(type=KIND, momentum=momentum)]

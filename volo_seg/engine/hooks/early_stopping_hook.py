"""Stop a run that no longer gets better."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook
from mmseg.registry import HOOKS

from volo_seg.errors import UserError

KIND = 'PatienceHook'


@HOOKS.register_module()
class PatienceHook(Hook):
    """Stop training when ``patience`` evaluations in a row were not better than the best one before them.

    What it has seen is in each checkpoint, so a resumed run goes on counting (but for an evaluation that came after
    the checkpoint was written).

    Args:
        patience: Number of evaluations, 1 or more.
        monitor: Name of the score; more is better.
        min_delta: What counts as better, in units of the score.
    """

    priority = 'NORMAL'

    def __init__(self, *, patience: int, monitor: str = 'mIoU', min_delta: float = 0.0) -> None:
        self.patience = patience
        self.monitor = monitor
        self.min_delta = min_delta
        self.best = float('-inf')
        self.waited = 0

    def before_train(self, runner: Any) -> None:
        """Take up what a resumed checkpoint says."""
        known = runner.message_hub.runtime_info
        if 'patience_best' in known:
            self.best, self.waited = known['patience_best'], known['patience_waited']

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Count this evaluation, and stop if it was one too many."""
        if not metrics or self.monitor not in metrics:
            raise UserError(
                f'custom_hooks: {KIND} waits for {self.monitor!r}, and the evaluation gives {", ".join(metrics or ())}'
            )
        score = metrics[self.monitor]
        if score > self.best + self.min_delta:
            self.best, self.waited = score, 0
        else:
            self.waited += 1
        runner.message_hub.update_info('patience_best', self.best)
        runner.message_hub.update_info('patience_waited', self.waited)
        if self.waited >= self.patience:
            runner.logger.info(
                f'stopped early: {self.waited} evaluations without a better {self.monitor} than {self.best:.2f}'
            )
            runner.train_loop.stop_training = True


def stop_early(config: Config, patience: int) -> None:
    """Stop the run of ``config`` after ``patience`` evaluations without a better mIoU.

    Raises:
        UserError: ``patience`` is no number of evaluations, or the run evaluates nothing.
    """
    if patience < 1:
        raise UserError(f'--patience {patience} is not a number of evaluations; give 1 or more')
    if config.get('val_dataloader') is None:
        raise UserError('--patience needs an evaluation, and the config has no val_dataloader; add one')
    hooks = [hook for hook in config.get('custom_hooks') or [] if hook.get('type') != KIND]
    config.custom_hooks = [*hooks, dict(type=KIND, patience=patience)]

"""Early stopping that continues in a resumed run."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config
from mmengine.hooks import EarlyStoppingHook
from mmseg.registry import HOOKS

from volo_seg.errors import UserError

KIND = 'ResumableEarlyStoppingHook'


@HOOKS.register_module()
class ResumableEarlyStoppingHook(EarlyStoppingHook):
    """MMEngine's ``EarlyStoppingHook`` with its best score and count stored in checkpoints and restored on resuming.

    Args:
        monitor: Name of the score.
        min_delta: Smallest improvement, in units of the score; by default any larger score is an improvement.
        patience, rule, check_finite, stopping_threshold: As in ``EarlyStoppingHook``.
    """

    priority = 'NORMAL'  # before the checkpoint hook saves

    def __init__(
        self,
        *,
        patience: int,
        monitor: str = 'mIoU',
        min_delta: float = 1e-6,
        rule: str | None = None,
        check_finite: bool = True,
        stopping_threshold: float | None = None,
    ) -> None:
        super().__init__(monitor, rule, min_delta, True, check_finite, patience, stopping_threshold)

    def before_train(self, runner: Any) -> None:
        """Restore best score and count in a resumed run."""
        info = runner.message_hub.runtime_info
        if 'patience_best' in info:
            self.best_score, self.wait_count = info['patience_best'], info['patience_waited']

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Count validations without a better score, and stop training after ``patience`` of them."""
        if self.monitor not in (metrics or {}):
            raise UserError(
                f'custom_hooks: {KIND}.monitor={self.monitor!r} is not a score of the validation; '
                f'use one of {", ".join(metrics or ())}'
            )
        super().after_val_epoch(runner, metrics)
        runner.message_hub.update_info('patience_best', self.best_score)
        runner.message_hub.update_info('patience_waited', self.wait_count)


def stop_early(config: Config, patience: int) -> None:
    """Stop the run of ``config`` after ``patience`` validations without a better mIoU.

    Raises:
        UserError: ``patience`` is below 1, or the config has no validation.
    """
    if patience < 1:
        raise UserError(f'--patience {patience} is below 1; give the number of validations without a better score')
    if config.get('val_dataloader') is None:
        raise UserError(
            '--patience needs validation, and the config has no val_dataloader; add one, or remove the flag'
        )
    hooks = [hook for hook in config.get('custom_hooks') or [] if hook.get('type') != KIND]
    config.custom_hooks = [*hooks, dict(type=KIND, monitor='mIoU', patience=patience)]

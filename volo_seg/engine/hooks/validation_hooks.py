"""Validation of one and the same model in all processes, and at every iteration where it is due."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import BaseLoop
from mmseg.registry import HOOKS

from volo_seg.engine.resume import average_batch_norms, unwrap_model
from volo_seg.engine.sharding import gather, scatter


@HOOKS.register_module()
class ValidationSyncHook(Hook):
    """Before validation, averages batch-norm statistics over the processes and gathers sharded weights.

    It also notes the validated iteration, which checkpoints record for :class:`MissedValidationHook`.
    """

    priority = 'VERY_HIGH'  # before the checkpoint hook saves a new best model

    def before_val_epoch(self, runner: Any) -> None:
        """Average the statistics; gather sharded weights."""
        average_batch_norms(unwrap_model(runner.model))
        gather(runner.model)

    def before_test_epoch(self, runner: Any) -> None:
        """Gather sharded weights."""
        gather(runner.model)

    def after_val_epoch(self, runner: Any, metrics: Any = None) -> None:
        """Shard the weights again; note the iteration."""
        scatter(runner.model)
        if isinstance(runner._train_loop, BaseLoop):
            runner.validated_at = runner.iter


@HOOKS.register_module()
class MissedValidationHook(Hook):
    """Validates first if the run that is resumed ended between a checkpoint and its validation."""

    priority = 'LOWEST'

    def before_train_epoch(self, runner: Any) -> None:
        """Validate if the iteration that training resumes from has a validation due that did not take place."""
        loop = runner.train_loop
        if runner.iter == 0 or runner.val_loop is None or not hasattr(loop, 'dataloader_iterator'):
            return
        due = runner.iter % loop.val_interval == 0 or runner.iter == runner.max_iters
        if due and runner.iter >= loop.val_begin and runner.validated_at != runner.iter:
            runner.val_loop.run()

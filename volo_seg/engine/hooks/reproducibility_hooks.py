"""Hooks that make a run independent of interruptions and of the number of processes: seeds, validation."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import BaseLoop
from mmseg.registry import HOOKS

from volo_seg.engine.resume import average_batch_norms, unwrap_model
from volo_seg.engine.sharding import gather, scatter
from volo_seg.seeding import ITERATIONS, derive_seed, seed_generators


@HOOKS.register_module()
class IterationSeedHook(Hook):
    """Seeds all generators before each training iteration, from the run's seed, the iteration and the rank.

    Dropout and drop path are then reproducible, also in a resumed run.
    """

    priority = 'HIGHEST'

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Seed the generators of this process and its GPUs."""
        seed_generators(derive_seed(runner.seed, ITERATIONS, runner.iter, runner.rank), gpus=True)


@HOOKS.register_module()
class ValidationSyncHook(Hook):
    """Before validation, averages batch-norm statistics over the processes and gathers sharded weights.

    It also stores the validated iteration in the runner; checkpoints record it for :class:`MissedValidationHook`.
    """

    priority = 'VERY_HIGH'  # before the checkpoint hook saves a new best model

    def before_val_epoch(self, runner: Any) -> None:
        """Average batch-norm statistics and gather sharded weights."""
        average_batch_norms(unwrap_model(runner.model))
        gather(runner.model)

    def before_test_epoch(self, runner: Any) -> None:
        """Gather sharded weights."""
        gather(runner.model)

    def after_val_epoch(self, runner: Any, metrics: Any = None) -> None:
        """Shard the weights again and store the validated iteration."""
        scatter(runner.model)
        if isinstance(runner._train_loop, BaseLoop):
            runner.validated_at = runner.iter


@HOOKS.register_module()
class MissedValidationHook(Hook):
    """Validates at the start of a resumed run if the checkpoint was saved before the validation of its iteration."""

    priority = 'LOWEST'

    def before_train_epoch(self, runner: Any) -> None:
        """Validate if a validation is due at the resumed iteration and was not done."""
        loop = runner.train_loop
        if runner.iter == 0 or runner.val_loop is None or not hasattr(loop, 'dataloader_iterator'):
            return
        due = runner.iter % loop.val_interval == 0 or runner.iter == runner.max_iters
        if due and runner.iter >= loop.val_begin and runner.validated_at != runner.iter:
            runner.val_loop.run()

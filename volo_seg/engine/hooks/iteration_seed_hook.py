"""Reproducible dropout and drop path, also in a resumed run."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmseg.registry import HOOKS

from volo_seg.seeding import ITERATIONS, derive_seed, seed_generators


@HOOKS.register_module()
class IterationSeedHook(Hook):
    """Seeds all generators before each training iteration, from the run's seed, the iteration and the rank."""

    priority = 'HIGHEST'

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Seed the generators of this process."""
        seed_generators(derive_seed(runner.seed, ITERATIONS, runner.iter, runner.rank), gpus=True)

"""Random numbers that depend on the seed and on the place in the run, not on what was drawn before.

Each training iteration, and each sample that is loaded, starts its generators anew from ``(seed, purpose, place)``.
So there is no random state to save: a run that goes on from a checkpoint, with other worker processes, draws what the
uninterrupted run would have drawn.
"""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import print_log

from volo_seg.errors import UserError

SAMPLES, ITERATIONS = 0, 1
LARGEST_SEED = 2**32 - 1
UNORDERED = (
    '--deterministic: on a GPU, some backward passes have no ordered implementation (cross-entropy over maps, '
    'adaptive pooling, resizing in some modes); torch names each one as it is met, and where one is, weights '
    'may differ in the last bits'
)


def derive(seed: int, *place: int) -> int:
    """Mix ``seed`` and the non-negative numbers of ``place`` into 63 bits that share nothing with their neighbours'."""
    return int(np.random.SeedSequence([seed, *place]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def seed_sample(seed: int, number: int) -> None:
    """Start Python's, NumPy's and torch's CPU generators for sample ``number`` of the run."""
    value = derive(seed, SAMPLES, number)
    random.seed(value)
    np.random.seed(value & LARGEST_SEED)  # noqa: NPY002 (what transforms draw from)
    torch.default_generator.manual_seed(value)


def seed_iteration(seed: int, iteration: int, rank: int) -> None:
    """Start all generators, those of GPUs too, for one training iteration of process ``rank``."""
    value = derive(seed, ITERATIONS, iteration, rank)
    random.seed(value)
    np.random.seed(value & LARGEST_SEED)  # noqa: NPY002 (what transforms draw from)
    torch.manual_seed(value)


class IterationSeedHook(Hook):
    """Start the generators of dropout and drop path anew before each iteration."""

    priority = 'HIGHEST'

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Seed by the run's seed, the iteration and the rank."""
        seed_iteration(runner.seed, runner.iter, runner.rank)


def set_randomness(config: Config, *, seed: int | None, deterministic: bool) -> None:
    """Write ``--seed`` and ``--deterministic`` into ``config``.

    Raises:
        UserError: The seed is outside what all generators take.
    """
    settings = {'seed': None, **config.get('randomness', {})}
    if seed is not None:
        if not 0 <= seed <= LARGEST_SEED:
            raise UserError(f'--seed {seed} is outside 0..{LARGEST_SEED}; choose one inside')
        settings['seed'] = seed
    if deterministic:
        settings['deterministic'] = True
        config.env_cfg = {**config.get('env_cfg', {}), 'cudnn_benchmark': False}
        # read by cuBLAS when CUDA starts
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    config.randomness = settings


def use_deterministic_algorithms() -> None:
    """Ask torch for ordered algorithms; where a GPU has none, it warns and goes on, and so do we."""
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    if torch.cuda.is_available():
        print_log(UNORDERED, 'current', 30)

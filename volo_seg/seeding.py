"""Random numbers that depend on the seed and on the position in the run, not on what was drawn before.

Each training iteration and each training sample restarts its generators from ``(seed, purpose, position)``. No random
state has to be saved: a resumed run, also with another number of worker processes, draws what the uninterrupted run
draws.
"""

from __future__ import annotations

import random

import numpy as np
import torch

SAMPLES, ITERATIONS = 0, 1
"""Purposes of :func:`derive_seed`."""
LARGEST_SEED = 2**32 - 1


def derive_seed(seed: int, *position: int) -> int:
    """Mix ``seed`` and the non-negative numbers of ``position`` into a seed of 63 bits."""
    return int(np.random.SeedSequence([seed, *position]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def seed_generators(seed: int, *, gpus: bool = False) -> None:
    """Seed the generators of Python, NumPy and torch (CPU; with ``gpus`` also those of all GPUs)."""
    random.seed(seed)
    np.random.seed(seed & LARGEST_SEED)  # noqa: NPY002 (what transforms draw from)
    if gpus:
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)

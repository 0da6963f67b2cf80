"""``--seed`` and ``--deterministic``."""

from __future__ import annotations

import os

import torch
from mmengine.config import Config
from mmengine.logging import print_log

from volo_seg.errors import UserError
from volo_seg.seeding import LARGEST_SEED

UNORDERED = (
    '--deterministic: on a GPU, some backward passes have no ordered implementation (cross-entropy over maps, '
    'adaptive pooling, resizing in some modes); torch names each one as it runs, and where one runs, weights '
    'may differ in the last bits'
)


def set_randomness(config: Config, *, seed: int | None, deterministic: bool) -> None:
    """Write ``--seed`` and ``--deterministic`` into ``config``.

    Raises:
        UserError: The seed is outside of what all generators take.
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
    """Ask torch for ordered algorithms; where a GPU has none, torch warns and continues."""
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    if torch.cuda.is_available():
        print_log(UNORDERED, 'current', 30)

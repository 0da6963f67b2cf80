"""Process groups of the launchers, and changes to a config that depend on the machine."""

from __future__ import annotations

import contextlib
import os
import subprocess
from datetime import timedelta
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device

from volo_seg.config.validation import walk
from volo_seg.errors import UserError
from volo_seg.io import folder_lock

TIMEOUT = 900
"""Default timeout of collective operations in seconds; ``env_cfg.dist_cfg.timeout`` of a config overrides it."""


def prepare_launch(config: Config, launcher: str, local_rank: int) -> None:
    """Set the launcher in ``config``; without a GPU, start a gloo group and replace SyncBN, which needs GPUs, by BN.

    Raises:
        UserError: ``launcher`` did not start this process, or it is mpi without a GPU.
    """
    config.launcher = launcher
    if launcher == 'none':
        return
    environment = config.get('env_cfg', {})
    group = {'backend': 'nccl', 'timeout': TIMEOUT, **environment.get('dist_cfg', {})}
    config.env_cfg = {**environment, 'dist_cfg': group}
    check_environment(launcher)
    if torch.cuda.is_available():
        os.environ.setdefault('LOCAL_RANK', str(local_rank))
        return
    if launcher == 'mpi':
        raise UserError('--launcher mpi needs GPUs, and none is visible; use --launcher pytorch')
    if launcher == 'slurm':
        set_slurm_environment()
    os.environ.setdefault('LOCAL_RANK', str(local_rank))
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo', timeout=timedelta(seconds=group['timeout']))
    config.model = replace_types(config.model, {'SyncBN': 'BN'})
    config.model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)


def is_first_process() -> bool:
    """Return whether this process is rank 0; without a launcher, it is."""
    ranks = (os.environ.get(name) for name in ('RANK', 'OMPI_COMM_WORLD_RANK', 'SLURM_PROCID'))
    return next((rank for rank in ranks if rank is not None), '0') == '0'


def lock_for_all(folder: str | None, *, what: str, fix: str) -> contextlib.AbstractContextManager[None]:
    """Return :func:`volo_seg.io.folder_lock` in rank 0; a null context in other ranks or without a folder."""
    return folder_lock(folder, what=what, fix=fix) if folder and is_first_process() else contextlib.nullcontext()


def check_environment(launcher: str) -> None:
    """Check by environment variables that ``launcher`` started this process.

    Raises:
        UserError: Its variables are not set.
    """
    if launcher == 'pytorch' and 'RANK' not in os.environ:
        raise UserError(
            '--launcher pytorch needs torchrun, and RANK is not set; use tools/dist_train.sh or tools/dist_test.sh'
        )
    if launcher == 'slurm' and 'SLURM_PROCID' not in os.environ:
        raise UserError('--launcher slurm needs srun, and SLURM_PROCID is not set; use tools/slurm_train.sh')
    if launcher == 'mpi' and 'OMPI_COMM_WORLD_RANK' not in os.environ:
        raise UserError(
            '--launcher mpi needs mpirun, and OMPI_COMM_WORLD_RANK is not set; '
            'use mpirun -np GPUS python tools/train.py … --launcher mpi'
        )


def set_slurm_environment() -> None:
    """Set torch's environment variables from those of srun; the first machine of the job is the default master."""
    for name, source in (('RANK', 'PROCID'), ('WORLD_SIZE', 'NTASKS'), ('LOCAL_RANK', 'LOCALID')):
        os.environ[name] = os.environ[f'SLURM_{source}']
    if 'MASTER_ADDR' not in os.environ:
        nodes = os.environ.get('SLURM_JOB_NODELIST', os.environ.get('SLURM_NODELIST', '127.0.0.1'))
        try:
            command = ['scontrol', 'show', 'hostname', nodes]
            names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        except (OSError, subprocess.SubprocessError):
            names = []
        os.environ['MASTER_ADDR'] = names[0] if names else nodes
    os.environ.setdefault('MASTER_PORT', '29500')


def check_amp(config: Config) -> None:
    """Refuse MMEngine's ``AmpOptimWrapper`` without a GPU.

    Raises:
        UserError: The config has one, and no GPU is visible.
    """
    for place, wrapper in walk(config.get('optim_wrapper'), 'optim_wrapper'):
        if wrapper['type'] == 'AmpOptimWrapper' and get_device() in ('cpu', 'mps'):
            raise UserError(
                f'{place}.type=AmpOptimWrapper needs a GPU, and none is visible; use --amp bf16, or set '
                f'{place}.type=OptimWrapper'
            )


def check_batch_size(config: Config) -> None:
    """Refuse a batch of one image for batch norm: the 1x1 map of the pooling pyramid has one value per channel then.

    Raises:
        UserError: A batch norm normalises over one image.
    """
    head, batch_size = config.model.decode_head, config.train_dataloader.batch_size
    kind = (head.get('norm_cfg') or {}).get('type')
    if batch_size > 1 or kind not in ('BN', 'SyncBN') or 'pool_scales' not in head:
        return
    if kind == 'SyncBN' and int(os.environ.get('WORLD_SIZE', os.environ.get('SLURM_NTASKS', '1'))) > 1:
        return
    raise UserError(
        f'train_dataloader.batch_size={batch_size} is too small for batch norm in one process; '
        'use --cfg-options train_dataloader.batch_size=2, or train on several GPUs'
    )


def replace_types(node: Any, names: dict[str, str]) -> Any:
    """Return a copy of a config with each ``type`` in ``names`` replaced."""
    if isinstance(node, dict):
        return {
            key: names.get(value, value) if key == 'type' and isinstance(value, str) else replace_types(value, names)
            for key, value in node.items()
        }
    if isinstance(node, (list, tuple)):
        return type(node)(replace_types(item, names) for item in node)
    return node

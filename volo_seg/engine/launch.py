"""What depends on the machine and on the launcher: process groups, and batch norm where there is no GPU."""

from __future__ import annotations

import contextlib
import os
import subprocess
from datetime import timedelta
from typing import Any

import torch
from mmengine.config import Config

from volo_seg.errors import UserError
from volo_seg.io import folder_lock

TIMEOUT = 900
"""Seconds for which processes wait for each other; env_cfg.dist_cfg.timeout of a config is another number."""


def prepare_launch(config: Config, launcher: str, local_rank: int) -> None:
    """Name the launcher in ``config``; without a GPU, start a gloo group and adapt what only runs on GPUs.

    Raises:
        UserError: A process group is asked for outside its launcher.
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
        raise UserError('--launcher mpi needs GPUs, and none is visible here; use --launcher pytorch (gloo)')
    if launcher == 'slurm':
        take_over_slurm()
    os.environ.setdefault('LOCAL_RANK', str(local_rank))
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo', timeout=timedelta(seconds=group['timeout']))
    config.model = replace_types(config.model, {'SyncBN': 'BN'})
    config.model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)


def is_first_process() -> bool:
    """Whether the launcher, if there is one, started this process as rank 0."""
    ranks = (os.environ.get(name) for name in ('RANK', 'OMPI_COMM_WORLD_RANK', 'SLURM_PROCID'))
    return next((rank for rank in ranks if rank is not None), '0') == '0'


def lock_for_all(folder: str | None, *, what: str, fix: str) -> contextlib.AbstractContextManager[None]:
    """:func:`volo_seg.io.folder_lock`, taken by the first process for all of its job; nothing without a folder."""
    return folder_lock(folder, what=what, fix=fix) if folder and is_first_process() else contextlib.nullcontext()


def check_environment(launcher: str) -> None:
    """See that ``launcher`` started this process.

    Raises:
        UserError: It did not.
    """
    if launcher == 'pytorch' and 'RANK' not in os.environ:
        raise UserError('--launcher pytorch runs under torchrun: use tools/dist_train.sh or tools/dist_test.sh')
    if launcher == 'slurm' and 'SLURM_PROCID' not in os.environ:
        raise UserError('--launcher slurm runs under srun: use tools/slurm_train.sh, or srun python tools/train.py …')
    if launcher == 'mpi' and 'OMPI_COMM_WORLD_RANK' not in os.environ:
        raise UserError('--launcher mpi runs under mpirun: mpirun -np GPUS python tools/train.py … --launcher mpi')


def take_over_slurm() -> None:
    """Say in torch's variables what srun says in its own; the first machine of the job leads, unless one is named."""
    for ours, theirs in (('RANK', 'PROCID'), ('WORLD_SIZE', 'NTASKS'), ('LOCAL_RANK', 'LOCALID')):
        os.environ[ours] = os.environ[f'SLURM_{theirs}']
    if 'MASTER_ADDR' not in os.environ:
        nodes = os.environ.get('SLURM_JOB_NODELIST', os.environ.get('SLURM_NODELIST', '127.0.0.1'))
        try:
            command = ['scontrol', 'show', 'hostname', nodes]
            names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        except (OSError, subprocess.SubprocessError):
            names = []
        os.environ['MASTER_ADDR'] = names[0] if names else nodes
    os.environ.setdefault('MASTER_PORT', '29500')


def check_batch_size(config: Config) -> None:
    """Refuse a batch of one image under batch normalisation: the pooling pyramid's 1x1 map has one value then.

    Raises:
        UserError: The batch that one normalisation sees holds one image.
    """
    head, batch_size = config.model.decode_head, config.train_dataloader.batch_size
    kind = (head.get('norm_cfg') or {}).get('type')
    if batch_size > 1 or kind not in ('BN', 'SyncBN') or 'pool_scales' not in head:
        return
    if kind == 'SyncBN' and int(os.environ.get('WORLD_SIZE', os.environ.get('SLURM_NTASKS', '1'))) > 1:
        return
    raise UserError(
        f'train_dataloader.batch_size={batch_size} is too small for batch normalisation in one process: '
        'set --cfg-options train_dataloader.batch_size=2, or train on several GPUs'
    )


def replace_types(node: Any, names: dict[str, str]) -> Any:
    """Copy a config tree with every ``type=OLD`` replaced by ``type=names[OLD]``."""
    if isinstance(node, dict):
        return {
            key: names.get(value, value) if key == 'type' and isinstance(value, str) else replace_types(value, names)
            for key, value in node.items()
        }
    if isinstance(node, (list, tuple)):
        return type(node)(replace_types(item, names) for item in node)
    return node

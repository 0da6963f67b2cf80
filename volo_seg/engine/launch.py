"""What depends on the machine: process groups and batch norm where there is no GPU."""

from __future__ import annotations

import os
from typing import Any

import torch
from mmengine.config import Config

from volo_seg.errors import UserError


def prepare_launch(config: Config, launcher: str, local_rank: int) -> None:
    """Name the launcher in ``config``; without a GPU, start a gloo group and adapt what only runs on GPUs.

    Raises:
        UserError: A process group is asked for outside its launcher.
    """
    config.launcher = launcher
    os.environ.setdefault('LOCAL_RANK', str(local_rank))
    if launcher == 'none' or torch.cuda.is_available():
        return
    if launcher != 'pytorch':
        raise UserError(f'--launcher {launcher} needs GPUs, and none is visible here; use --launcher pytorch (gloo)')
    if 'RANK' not in os.environ:
        raise UserError('--launcher pytorch runs under torchrun: use tools/dist_train.sh or tools/dist_test.sh')
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo')
    config.model = replace_types(config.model, {'SyncBN': 'BN'})
    config.model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)


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

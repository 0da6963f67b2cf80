"""The learning rate for another batch than the config was made for."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper

from volo_seg.errors import UserError


def auto_scale_lr(config: Config) -> None:
    """Turn ``auto_scale_lr`` of ``config`` on, as ``--auto-scale-lr`` does.

    Raises:
        UserError: The config does not say which batch its rate is for.
    """
    if not (config.get('auto_scale_lr') or {}).get('base_batch_size'):
        raise UserError(
            '--auto-scale-lr: the config does not say which batch its learning rate is for; '
            'add auto_scale_lr = dict(base_batch_size=…), counting the images of all GPUs'
        )
    config.auto_scale_lr.enable = True


def scale_rates(optim_wrapper: OptimWrapper, *, enable: bool, base: int, batch: int) -> None:
    """Multiply every group's rate by ``batch / base`` images of one optimizer step; without ``enable``, only say so.

    Source: the linear rule, arXiv 1706.02677.
    """
    if batch == base:
        return
    rate = optim_wrapper.optimizer.defaults['lr']
    about = f'the learning rate {rate:g} is for {base} images an optimizer step, this run has {batch}'
    if not enable:
        print_log(f'{about}; --auto-scale-lr would make it {rate * batch / base:g}', 'current')
        return
    groups: list[dict[str, Any]] = list(optim_wrapper.optimizer.param_groups)
    if optim_wrapper.base_param_settings is not None:  # what the log shows where there are several groups
        groups.append(optim_wrapper.base_param_settings)
    for group in groups:
        group['lr'] *= batch / base
    print_log(f'{about}: it is multiplied by {batch / base:g}', 'current')

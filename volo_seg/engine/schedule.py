"""Run length, batch size and learning rate of a config, with everything that depends on them."""

from __future__ import annotations

import math
from typing import Any

from mmengine.config import Config

from volo_seg.config.validation import walk
from volo_seg.errors import UserError

LOOPS = {'IterBasedTrainLoop': ('max_iters', 1000), 'EpochBasedTrainLoop': ('max_epochs', 1)}
"""Training loops of MMEngine: the key of their length, and their default ``val_interval``."""
LOG_LINES = 20
"""Least number of log lines of a shortened run."""
LEAST_INTERVAL = 200
"""Least number of iterations between the validations or checkpoints of a shortened run."""
MAX_MOMENTUM = 0.1
_COUNTS = ('begin', 'end', 'T_max', 'total_iters', 'total_steps', 'step_size', 'milestones', 'periods')


def set_iterations(config: Config, count: int) -> None:
    """Train for ``count`` optimizer steps; what counts iterations keeps its share of the run.

    That is the schedule with its warm-up, validation, checkpoints, log lines, and the momentum of averaged weights. A
    config that trains by epochs trains by iterations afterwards. Schedulers of one step are removed.

    Raises:
        UserError: ``count`` is below 1, the training loop is neither of MMEngine's, or a schedule in iterations of a
            config that trains by epochs is longer than the run.
    """
    if count < 1:
        raise UserError(f'--iters {count} is below 1; give the number of optimizer steps')
    loop = config.get('train_cfg') or {}
    kind = loop.get('type') or ('EpochBasedTrainLoop' if loop.get('by_epoch') else 'IterBasedTrainLoop')
    key, every = LOOPS.get(kind, ('', 0))
    if not loop.get(key):
        raise UserError(
            f'--iters {count} needs a train_cfg with max_iters or max_epochs, and the config has '
            f'{dict(loop)}; set the length of the run where the config has it'
        )
    by_epoch, batches = key == 'max_epochs', _batches_of_a_step(config)
    ratio = count * batches / loop[key]
    config.train_cfg = {
        **{k: v for k, v in loop.items() if k not in ('by_epoch', 'max_epochs')},
        'type': 'IterBasedTrainLoop',
        'max_iters': count * batches,
        'val_interval': _interval(loop.get('val_interval', every), ratio, count * batches),
        **{k: _scaled(loop[k], ratio) for k in ('val_begin', 'dynamic_intervals') if loop.get(k)},
    }
    if 'max_iters' in config:
        config.max_iters = count
    _set_schedules(config, count, ratio, by_epoch=by_epoch)
    _set_hooks(config, count, ratio, by_epoch=by_epoch)
    if by_epoch:
        config.log_processor = {**(config.get('log_processor') or {}), 'by_epoch': False}


def _set_schedules(config: Config, count: int, ratio: float, *, by_epoch: bool) -> None:
    removed = []
    for place, schedule in _schedules(config):
        if schedule.get('by_epoch', True) == by_epoch:
            for key in schedule.keys() & set(_COUNTS):
                schedule[key] = _scaled(schedule[key], ratio)
            if schedule['type'].startswith('Exponential'):
                schedule['gamma'] **= 1 / ratio
            schedule['by_epoch'] = False
            schedule.pop('convert_to_iter_based', None)
        elif by_epoch and schedule.get('end', math.inf) > count:
            raise UserError(
                f'--iters {count}: {place}.end={schedule.get("end")} counts iterations while the config trains by '
                f'epochs, and is beyond the run; set {place}.end'
            )
        if schedule.get('end', math.inf) - schedule.get('begin', 0) < 2:  # MMEngine would stay at its first value
            removed.append(schedule)
    if removed and isinstance(config.param_scheduler, list):
        config.param_scheduler = [one for one in config.param_scheduler if not any(one is other for other in removed)]


def _set_hooks(config: Config, count: int, ratio: float, *, by_epoch: bool) -> None:
    for place, hook in (*walk(config.get('default_hooks'), 'default_hooks'), *walk(config.get('custom_hooks'), '')):
        kind: Any = hook  # the dicts of the config, which are changed
        if 'Checkpoint' in hook['type'] and hook.get('by_epoch', True) == by_epoch:
            kind['by_epoch'] = False
            if hook.get('interval', -1) > 0:
                kind['interval'] = _interval(hook['interval'], ratio, config.train_cfg.max_iters)
            if hook.get('save_begin'):
                kind['save_begin'] = _scaled(hook['save_begin'], ratio)
        elif place == 'default_hooks.logger':
            kind['interval'] = max(1, min(hook.get('interval', 10), count // LOG_LINES))
            if by_epoch:
                kind['log_metric_by_epoch'] = False
        elif _averages(hook):
            if hook.get('begin_iter'):
                kind['begin_iter'] = _scaled(hook['begin_iter'], ratio)
            if hook.get('begin_epoch'):
                kind['begin_iter'] = _scaled(kind.pop('begin_epoch'), ratio)
            if not by_epoch and hook.get('momentum'):
                kind['momentum'] = min(MAX_MOMENTUM, float(f'{hook["momentum"] / ratio:.3g}'))


def _averages(hook: Any) -> bool:
    return hook['type'] == 'AveragedWeightsHook' or hook['type'].endswith('EMAHook')


def _schedules(config: Config) -> list[tuple[str, Any]]:
    return list(walk(config.get('param_scheduler'), 'param_scheduler'))


def _batches_of_a_step(config: Config) -> int:
    """Iterations of a step of the schedules: with ``--accumulate`` in the config, these count optimizer steps."""
    hook = (config.get('default_hooks') or {}).get('param_scheduler') or {}
    return config.optim_wrapper.get('accumulative_counts', 1) if hook.get('type') == 'OptimizerStepSchedulerHook' else 1


def _scaled(value: Any, ratio: float) -> Any:
    """``value``, a number of iterations or epochs or a list of them, times ``ratio``."""
    if isinstance(value, (list, tuple)):
        return [_scaled(part, ratio) for part in value]
    return value if math.isinf(value) else round(value * ratio)


def _interval(value: int, ratio: float, length: int) -> int:
    """``value`` times ``ratio``, but not so short that a run of ``length`` mostly validates."""
    return max(round(value * ratio), min(LEAST_INTERVAL, length, value if ratio < 1 else 1), 1)


def check_schedule(config: Config) -> str | None:
    """The sentence that the schedules of ``config`` end before or after the run, None if they end with it."""
    ends = [(one['end'], place) for place, one in _schedules(config) if not one.get('by_epoch', True) and 'end' in one]
    last = (config.get('train_cfg') or {}).get('max_iters', 0) // _batches_of_a_step(config)
    end, place = max(ends, default=(last, ''))
    if not last or end == last or math.isinf(end):
        return None
    return (
        f'train_cfg.max_iters={last}, but the schedule of the learning rate is made for {end} iterations '
        f'({place}.end); --iters {last} sets both, with warm-up, validations and checkpoints'
    )


def set_batch_size(config: Config, size: int) -> None:
    """Train with ``size`` images a batch and process.

    Raises:
        UserError: ``size`` is below 1, or the training loader has none or a batch sampler.
    """
    if size < 1:
        raise UserError(f'--batch-size {size} is below 1; give the number of images in a batch of one process')
    loader = config.get('train_dataloader')
    if loader is None or loader.get('batch_sampler'):
        found = 'is missing in the config' if loader is None else 'has a batch_sampler, which makes the batches'
        raise UserError(f'--batch-size {size}: train_dataloader {found}; change it there')
    loader.batch_size = size


def set_rate(config: Config, rate: float) -> None:
    """Train with the highest learning rate ``rate``; lowest rates of the schedule keep their ratio to it.

    Raises:
        UserError: ``rate`` is not a positive number, or the config has not exactly one optimizer.
    """
    if not 0 < rate < math.inf:
        raise UserError(f'--lr {rate:g} is not a positive number; usual values are 0.00001 to 0.01')
    optimizer = config.optim_wrapper.get('optimizer')
    if not optimizer or 'type' not in optimizer:
        raise UserError(f'--lr {rate:g} needs optim_wrapper.optimizer, and the config has several optimizers or none')
    for _, schedule in _schedules(config):
        if schedule.get('eta_min') and optimizer.get('lr'):
            schedule['eta_min'] *= rate / optimizer.lr
    optimizer.lr = rate

"""What goes into a checkpoint: the same keys and plain tensors whether one process trained, many, or shards."""

from __future__ import annotations

import time
from typing import Any

import mmengine
from mmengine.optim import OptimWrapper

from volo_seg.engine.resume import KEY, average_statistics, plain, progress_of
from volo_seg.engine.sharding import whole_tree


def compose(runner: Any, meta: dict[str, Any], *, optimizer: bool, schedulers: bool) -> dict[str, Any]:
    """Gather MMEngine's keys and ours; all processes call it together, and hooks may still add to it.

    Args:
        runner: The runner in training.
        meta: ``epoch`` and ``iter`` at least.
        optimizer: Also the state that training goes on from: optimizer, place in the data.
        schedulers: Also the state of the learning-rate schedulers.
    """
    model = plain(runner.model)
    average_statistics(model)
    checkpoint = {
        'meta': {**meta, **_describe(runner)},
        'state_dict': whole_tree(model.state_dict()),
        'message_hub': whole_tree(runner.message_hub.state_dict()),
    }
    if optimizer:
        if not isinstance(runner.optim_wrapper, OptimWrapper):
            raise TypeError(f'{type(runner.optim_wrapper).__name__} is no single optimizer wrapper')
        checkpoint['optimizer'] = whole_tree(runner.optim_wrapper.state_dict())
        checkpoint[KEY] = progress_of(runner, meta['iter'])
    if schedulers and runner.param_schedulers is not None:
        checkpoint['param_schedulers'] = _states(runner.param_schedulers)
    return checkpoint


def _describe(runner: Any) -> dict[str, Any]:
    told = dict(
        # formatting it anew takes a second
        cfg=runner.message_hub.runtime_info.get('cfg') or runner.cfg.pretty_text,
        seed=runner.seed,
        experiment_name=runner.experiment_name,
        time=time.strftime('%Y%m%d_%H%M%S', time.localtime()),
        mmengine_version=mmengine.__version__,
    )
    metainfo = getattr(runner.train_dataloader.dataset, 'metainfo', None)
    return told if metainfo is None else {**told, 'dataset_meta': metainfo}


def _states(schedulers: Any) -> Any:
    if isinstance(schedulers, dict):
        return {name: _states(some) for name, some in schedulers.items()}
    return [scheduler.state_dict() for scheduler in schedulers]

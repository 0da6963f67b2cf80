"""TensorBoard, Weights & Biases and MLflow through MMEngine's visualization backends, for ``--log-to``."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from mmengine.config import Config
from mmengine.visualization import MLflowVisBackend, WandbVisBackend
from mmseg.registry import VISBACKENDS

from volo_seg.errors import UserError

TRACKERS = {
    'tensorboard': 'TensorboardVisBackend',
    'wandb': f'{__name__}.StepWandbVisBackend',
    'mlflow': f'{__name__}.PlainMLflowVisBackend',
}
"""The visualization backend of each tracker; those of this module by path, so that other runs do not import it."""
_MLFLOW_PARAMS = ('work_dir', 'max_iters', 'crop_size', 'load_from', 'optim_wrapper', 'train_cfg', 'randomness')
_NOT_IN_MLFLOW = re.compile(r'[^\w\-. /]', re.ASCII)


def log_to(config: Config, trackers: Sequence[str]) -> None:
    """Also log the scalars of the run to ``trackers``: ``train/loss``, ``val/mIoU``, ``val/IoU/<class>``.

    Raises:
        UserError: A tracker is unknown, or its package is not installed.
    """
    for tracker in trackers:
        if tracker not in TRACKERS:
            raise UserError(f'--log-to {tracker!r} is unknown; use one of {", ".join(TRACKERS)}')
        spec = find_spec(tracker)
        if spec is None or spec.origin is None:  # a folder of that name without a package, such as the logs of wandb
            raise UserError(
                f"--log-to {tracker} needs the package {tracker}, and it is missing; pip install 'volo-seg[{tracker}]'"
            )
    if not trackers:
        return
    visualizer = config.get('visualizer') or dict(type='SegLocalVisualizer', name='visualizer')
    backends = list(visualizer.get('vis_backends') or [dict(type='LocalVisBackend')])
    for tracker in dict.fromkeys(trackers):
        if not any(tracker in backend['type'].lower() for backend in backends):
            backends.append(_backend(tracker, config))
    config.visualizer = {**visualizer, 'vis_backends': backends}
    processor = config.get('log_processor') or dict(by_epoch=False)
    config.log_processor = {'log_with_hierarchy': True, **processor}


def _backend(tracker: str, config: Config) -> dict[str, Any]:
    backend: dict[str, Any] = dict(type=TRACKERS[tracker])
    if tracker == 'mlflow':
        # MLflow limits the number of parameters; the text of the config is stored as an artifact
        backend['tracked_config_keys'] = [key for key in _MLFLOW_PARAMS if config.get(key) is not None]
        backend['exp_name'] = os.environ.get('MLFLOW_EXPERIMENT_NAME', 'volo-seg')
        backend['tracking_uri'] = os.environ.get('MLFLOW_TRACKING_URI')
        if not backend['tracking_uri']:  # MLflow 3 does not support MMEngine's default, a folder of files
            folder = os.path.abspath(config.work_dir)
            backend['tracking_uri'] = f'sqlite:///{folder}/mlflow.db'
            backend['artifact_location'] = f'{folder}/mlflow'
            backend['artifact_suffix'] = ()  # artifacts would be copied within the work dir
    return backend


@VISBACKENDS.register_module()
class StepWandbVisBackend(WandbVisBackend):
    """MMEngine's W&B backend with the iteration as the step of each entry; it logs the config and no source code."""

    def add_config(self, config: Config, **kwargs: Any) -> None:
        """Log ``config`` as the configuration of the run."""
        self.experiment.config.update(config.to_dict())

    def add_scalars(self, scalar_dict: dict[str, Any], step: int = 0, file_path: Any = None, **kwargs: Any) -> None:
        """Log all of ``scalar_dict`` at iteration ``step``."""
        self.experiment.log(dict(scalar_dict), step=step)


@VISBACKENDS.register_module()
class PlainMLflowVisBackend(MLflowVisBackend):
    """MMEngine's MLflow backend with valid names: MLflow refuses all values of a call if one name is invalid."""

    def add_scalars(self, scalar_dict: dict[str, Any], step: int = 0, file_path: Any = None, **kwargs: Any) -> None:
        """Log all of ``scalar_dict`` at iteration ``step``; invalid characters in names are replaced by ``_``."""
        super().add_scalars({_NOT_IN_MLFLOW.sub('_', key): value for key, value in scalar_dict.items()}, step=step)

"""MMEngine's runner with safe loading and with errors that name the file."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from mmseg.registry import RUNNERS
from torch.utils.data import DataLoader

from volo_seg.checkpoints import fit_segmentor_weights, load_file
from volo_seg.errors import UserError

from .accumulation import images_per_step
from .console import quiet
from .evaluator import OverlappedEvaluator
from .learning_rate import scale_rates


@RUNNERS.register_module()
class SafeRunner(Runner):
    """A runner that never unpickles untrusted code and says which file a data error is about.

    Checkpoints load through :mod:`volo_seg.checkpoints`: the model's weights must fit completely, and what is refused
    is refused in one sentence.
    """

    def build_logger(self, *args: Any, **settings: Any) -> MMLogger:
        """Build MMEngine's logger; where the console shows a view, its listings go to the file alone."""
        logger = super().build_logger(*args, **settings)
        quiet(logger, self.cfg)
        return logger

    def load_checkpoint(
        self,
        filename: str,
        map_location: str | Callable = 'cpu',
        strict: bool = True,
        revise_keys: list | None = None,
    ) -> dict[str, Any]:
        """Load ``filename`` into the model and return the whole checkpoint; ``revise_keys`` is not needed here."""
        checkpoint = load_file(filename, map_location='cpu')
        # the saved config is text that resuming would execute: a checkpoint must not bring code along
        checkpoint.get('meta', {}).pop('config', None)
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        model = self.model.module if is_model_wrapper(self.model) else self.model
        model = model.module if isinstance(model, BaseTTAModel) else model
        fit_segmentor_weights(model, checkpoint, name=str(filename), strict=strict)
        self._has_loaded = True
        self.logger.info(f'Load checkpoint from {filename}')
        return checkpoint

    def scale_lr(self, optim_wrapper: OptimWrapper, auto_scale_lr: dict[str, Any] | None = None) -> None:
        """Scale the learning rate to the images of one optimizer step, accumulated batches included."""
        base = (auto_scale_lr or {}).get('base_batch_size')
        if not base or not isinstance(optim_wrapper, OptimWrapper):
            super().scale_lr(optim_wrapper, auto_scale_lr)
            return
        batch = images_per_step(self.cfg, world_size=self.world_size)
        scale_rates(optim_wrapper, enable=bool(auto_scale_lr and auto_scale_lr.get('enable')), base=base, batch=batch)

    def build_evaluator(self, evaluator: dict | list | Evaluator) -> Evaluator:
        """Build an evaluator that overlaps with the network.

        Our metric writes its files into this run's log folder if it is told no other.
        """
        if isinstance(evaluator, dict) and evaluator.get('type') == 'ExactIoUMetric':
            evaluator = {'out_dir': self._log_dir, **evaluator}
        built = super().build_evaluator(evaluator)
        return OverlappedEvaluator(built.metrics) if type(built) is Evaluator else built

    @staticmethod
    def build_dataloader(
        dataloader: DataLoader | dict, seed: int | None = None, diff_rank_seed: bool = False
    ) -> DataLoader:
        """Build the loader as MMEngine does, then let its pipeline name the file that it fails on."""
        if isinstance(dataloader, dict):
            dataloader = copy.deepcopy(dataloader)
            if not dataloader.get('num_workers'):
                dataloader['persistent_workers'] = False
        built = Runner.build_dataloader(dataloader, seed, diff_rank_seed)
        dataset = built.dataset
        if hasattr(dataset, 'pipeline') and not isinstance(dataset.pipeline, NamingPipeline):
            dataset.pipeline = NamingPipeline(dataset.pipeline)
        return built


class NamingPipeline:
    """A data pipeline that turns the failure to read a file into one sentence with the file's name."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline

    def __getattr__(self, name: str) -> Any:
        if name == 'pipeline':  # while unpickling, before __init__
            raise AttributeError(name)
        return getattr(self.pipeline, name)

    def __call__(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """Run the pipeline on ``results``; raise UserError where one of its files cannot be read."""
        paths = [results[key] for key in ('img_path', 'seg_map_path') if results.get(key)]
        try:
            return self.pipeline(results)
        except Exception as error:
            for path in paths:
                reason = why_unreadable(path)
                if reason:
                    raise UserError(f'cannot read {str(path)!r}: {reason}') from error
            raise


def why_unreadable(path: str | Path) -> str | None:
    """Say in a few words why the image file at ``path`` cannot be decoded, or None if it can."""
    path = Path(path)
    if not path.exists():
        return 'the file does not exist'
    if not path.is_file():
        return 'it is not a file'
    if path.stat().st_size == 0:
        return 'the file is empty'
    try:
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        return f'the image does not decode ({error.err})'
    return 'it is damaged or not an image' if image is None else None

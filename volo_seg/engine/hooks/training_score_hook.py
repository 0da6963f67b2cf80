"""Scores of some training images beside those of validation, so that overfitting is seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import BaseLoop
from mmengine.runner.amp import autocast
from mmseg.registry import HOOKS

SCORES = ('mIoU', 'aAcc')


@HOOKS.register_module()
class TrainingScoreHook(Hook):
    """Before each validation, scores a fixed subset of the training images with the same weights and pipeline.

    The images are evenly spread over the first training data set and pass the pipeline of validation, so they are not
    augmented. Their scores are logged as ``train_mIoU`` and ``train_aAcc`` beside those of validation. They are
    comparable with these, which the training loss is not: it has augmentation, drop path, dropout, auxiliary heads and
    weights in motion. A growing distance from ``mIoU`` is overfitting.

    Args:
        images: Number of training images; the cost of a validation grows by as many images.
    """

    priority = 'BELOW_NORMAL'  # after averaged weights are in place, before the console counts validation images

    def __init__(self, *, images: int = 40) -> None:
        self.images = images
        self.loader: Any = None

    def before_train(self, runner: Any) -> None:
        """Choose the images; nothing is scored if a data set is not one of MMEngine's."""
        val = runner.val_loop.dataloader.dataset if runner.val_loop is not None else None
        train, val = _first(runner.train_loop.dataloader.dataset), _first(val)
        if val is None:
            return
        if not all(isinstance(dataset, BaseDataset) and dataset.metainfo.get('classes') for dataset in (train, val)):
            print_log('TrainingScoreHook: the data sets are not of MMEngine; training images are not scored', 'current')
            return
        count = min(self.images, len(train))
        subset = train.get_subset(np.linspace(0, len(train) - 1, count).round().astype(int).tolist())
        subset.pipeline = val.pipeline
        sampler = dict(type='DefaultSampler', shuffle=False, seed=0)
        self.loader = runner.build_dataloader(dict(dataset=subset, batch_size=1, num_workers=0, sampler=sampler))

    def before_val_epoch(self, runner: Any) -> None:
        """Score the images and log the scores with those of the validation that follows."""
        if self.loader is None or not isinstance(runner._train_loop, BaseLoop):
            return
        dataset = self.loader.dataset
        metric = dict(
            type='ExactIoUMetric', ignore_index=dataset.ignore_index, tables=False, per_class=False, out_dir=None
        )
        evaluator = runner.build_evaluator(metric)
        evaluator.dataset_meta = dataset.metainfo
        runner.model.eval()
        with torch.no_grad(), autocast(enabled=bool(getattr(runner.val_loop, 'fp16', False))):
            for batch in self.loader:
                evaluator.process(data_samples=runner.model.val_step(batch), data_batch=batch)
        scores = evaluator.evaluate(len(dataset))
        for name in SCORES:
            runner.message_hub.update_scalar(f'val/train_{name}', scores[name])


def _first(dataset: Any) -> Any:
    """The first data set inside wrappers that repeat, join or mix them."""
    inner = getattr(dataset, 'dataset', None) or getattr(dataset, 'datasets', None)
    if isinstance(dataset, BaseDataset) or not inner:
        return dataset
    return _first(inner[0] if isinstance(inner, (list, tuple)) else inner)

"""Scores and latency of exported files on the test data of a config."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from mmcv.transforms import LoadAnnotations
from mmengine.config import Config
from mmengine.dataset import Compose
from mmseg.registry import DATASETS

from volo_seg.config.validation import find_type, walk
from volo_seg.errors import UserError
from volo_seg.evaluation.confusion_matrix import confusion
from volo_seg.evaluation.scores import compute_scores, unique_names
from volo_seg.evaluation.tally import Tally
from volo_seg.inference.base import BasePredictor


@dataclass(frozen=True)
class Score:
    """Mean IoU (MMSegmentation's definition) and pixel accuracy in [0, 1], median seconds an image, image count."""

    mean_iou: float
    pixel_accuracy: float
    seconds: float
    images: int


class LabelledImages:
    """The images of a config's test split with their labels (H, W) at the original size."""

    def __init__(self, config: Config) -> None:
        settings = config.test_dataloader.dataset
        self.dataset = DATASETS.build({**settings, 'pipeline': []})
        steps = [step for step in settings.pipeline if _loads_labels(find_type(step['type']))]
        self.load = Compose(steps)
        metrics = [metric for _, metric in walk(config.get('test_evaluator'), 'test_evaluator')]
        self.ignore_index = next((int(metric['ignore_index']) for metric in metrics if 'ignore_index' in metric), 255)
        if not steps or not len(self.dataset):
            raise UserError('the test split of the config has no labelled images to evaluate on')

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[str, torch.Tensor]:
        """Return (image path, labels)."""
        info: Mapping[str, Any] = self.dataset.get_data_info(index)
        labels = self.load(dict(info))['gt_seg_map']
        return info['img_path'], torch.from_numpy(labels)


def _loads_labels(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, LoadAnnotations)


def score(predictors: Mapping[str, BasePredictor], images: LabelledImages) -> dict[str, Score]:
    """Score each of ``predictors`` on ``images``; they take turns on each image, so that load affects all alike.

    Raises:
        UserError: An image or its labels cannot be read, or their sizes differ.
    """
    from rich.progress import track

    classes = next(iter(predictors.values())).classes
    tallies = {name: Tally.empty(len(classes)) for name in predictors}
    seconds: dict[str, list[float]] = {name: [] for name in predictors}
    for index in track(range(len(images)), 'scoring'):
        path, truth = images[index]
        for name, predictor in predictors.items():
            start = time.perf_counter()
            labels = predictor(path).labels
            seconds[name].append(time.perf_counter() - start)
            matrix, ignored = confusion(
                truth,
                torch.from_numpy(labels),
                num_classes=len(classes),
                ignore_index=images.ignore_index,
                where=path,
            )
            tallies[name].add(Tally.of_image(matrix, ignored=ignored, pixels=truth.numel()))
    return {name: _score(tallies[name], classes, seconds[name]) for name in predictors}


def _score(tally: Tally, classes: tuple[str, ...], seconds: list[float]) -> Score:
    scores = compute_scores(tally, unique_names(classes))
    middle = sorted(seconds)[len(seconds) // 2]
    return Score(scores.mean_iou['mmseg'], scores.pixel_accuracy, middle, tally.images)

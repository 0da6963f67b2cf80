"""``ExactIoUMetric``: MMSegmentation's ``IoUMetric`` with exact counts, checks of the labels, and a report."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.dist import all_gather_object, all_reduce, get_dist_info, is_main_process
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmseg.registry import METRICS
from torch import Tensor

from volo_seg.errors import UserError
from volo_seg.evaluation.boundary import boundary_counts
from volo_seg.evaluation.calibration import calibration_counts
from volo_seg.evaluation.confusion_matrix import confusion
from volo_seg.evaluation.per_image import ImageScores, score_image
from volo_seg.evaluation.prediction_writer import PredictionWriter, check_sources
from volo_seg.evaluation.report import check_report_folder, class_table, sorted_worst_first, summary, write_report
from volo_seg.evaluation.scores import Scores, check_definition, compute_scores, unique_names
from volo_seg.evaluation.tally import Tally
from volo_seg.visualization import image_of_batch

_MEANS = {'mIoU', 'mDice', 'mFscore'}
PREDICTION, TRUTH = 'pred_sem_seg', 'gt_sem_seg'


@dataclass(frozen=True)
class Counted:
    """The image counted last, which is not in the total yet because it may be a repetition."""

    tally: Tally
    sample: Mapping[str, Any]
    image: Any


@METRICS.register_module()
class ExactIoUMetric(BaseMetric):
    """Mean IoU and related scores from one exact int64 confusion matrix.

    ``evaluate`` returns percent: ``mIoU`` (by ``definition``), ``mAcc``, ``aAcc``, what ``iou_metrics``, ``boundary``
    and ``calibration`` add, and ``IoU/<class>`` for each class that is not absent. The result does not depend on the
    batch size, the order of the images or the number of processes. It takes all arguments of ``IoUMetric``, in the same
    order.

    Args:
        ignore_index: Ground-truth value that is not counted.
        iou_metrics: ``'mIoU'`` always; ``'mFscore'`` adds ``mFscore``, ``mPrecision`` and ``mRecall`` to the result,
            ``'mDice'`` adds ``mDice``.
        nan_to_num: What a score that is not defined, of a class that is absent, counts in means (1 is 100 %); None
            leaves it out.
        beta: Weight of the recall in F-scores.
        collect_device, prefix, backend_args: As in ``IoUMetric``, which does not use ``backend_args`` either.
        output_dir: Folder for the predictions as label PNGs, which count from 1 if ``reduce_zero_label`` is set.
        format_only: Only write predictions; no ground truth is needed.
        definition: ``'mmseg'``, ``'ade'`` or ``'gt_classes'``; the log and ``metrics.json`` have all three.
        boundary: Also compute boundary IoU.
        calibration: Also compute the expected calibration error, from the ``seg_logits`` of the results.
        per_class: Return ``IoU/<class>`` entries, for the visualization backends.
        out_dir: Folder for ``metrics.json``, ``metrics.csv``, ``per_image.csv`` and ``confusion_matrix.png``; None
            writes no report.
        figure: Draw ``confusion_matrix.png`` for the report.
        worst_images: Number of images with the lowest mIoU of which image, prediction and truth are written, reduced,
            into ``<out_dir>/worst``.
        img_dir: Folder above all images; its subfolders are kept below ``output_dir``. None writes all predictions into
            one folder, as ``IoUMetric``.
        tables: Log the tables of classes and the summary.
        keep_results: Accepted for MMSegmentation's tools, without effect: predictions are always kept.

    Raises:
        UserError: An option is unknown or contradicts another.
    """

    default_prefix = ''

    def __init__(
        self,
        ignore_index: int = 255,
        iou_metrics: Sequence[str] = ('mIoU',),
        nan_to_num: float | None = None,
        beta: float = 1,
        collect_device: str = 'cpu',
        output_dir: str | None = None,
        format_only: bool = False,
        prefix: str | None = None,
        *,
        definition: str = 'mmseg',
        boundary: bool = False,
        calibration: bool = False,
        per_class: bool = True,
        out_dir: str | None = None,
        figure: bool = True,
        worst_images: int = 8,
        img_dir: str | None = None,
        tables: bool = True,
        keep_results: bool = True,
        backend_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.ignore_index = ignore_index
        self.definition = check_definition(definition)
        self.metrics = [iou_metrics] if isinstance(iou_metrics, str) else list(iou_metrics)
        for name in self.metrics:
            if name not in _MEANS:
                raise UserError(f'iou_metrics={name!r} is not known; choose from {", ".join(sorted(_MEANS))}')
        if nan_to_num is not None and definition != 'mmseg':
            raise UserError(
                f'nan_to_num={nan_to_num!r} and definition={definition!r} both say what absent classes count; '
                'leave one of them out'
            )
        self.nan_to_num, self.beta = nan_to_num, beta
        self.boundary = boundary
        self.calibration = calibration
        self.per_class, self.tables, self.figure = per_class, tables, figure
        self.out_dir = None if out_dir is None else Path(out_dir)
        if self.out_dir is not None:
            check_report_folder(self.out_dir)
        if format_only and output_dir is None:
            raise UserError('format_only=True writes predictions and needs output_dir; name a folder')
        self.format_only = format_only
        self.writer = None if output_dir is None else PredictionWriter(output_dir, img_dir=img_dir)
        if worst_images < 0:
            raise UserError(f'worst_images={worst_images} is negative; 0 writes no images')
        self.worst_images = worst_images
        self._total: Tally | None = None
        self._last: Counted | None = None
        self._images = ImageScores(worst_images)
        self._seen = 0

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Count (and write, with ``output_dir``) one batch of results.

        Raises:
            UserError: A label is out of range, sizes differ, or a result lacks an entry that an option needs.
        """
        for index, sample in enumerate(data_samples):
            prediction = _map_of(sample, PREDICTION)
            if self.writer is not None:
                labels = prediction.cpu().numpy() + bool(sample.get('reduce_zero_label', False))
                self.writer.write(labels, img_path=sample['img_path'])
            if not self.format_only:
                self._add_last()
                self._last = Counted(self._count(sample, prediction), sample, image_of_batch(data_batch, index))
                self._seen += 1

    def compute_metrics(self, results: list[Tally], *, images: ImageScores | None = None) -> dict[str, float]:
        """The scores that ``evaluate`` returns; the main process logs them and writes the report."""
        total = Tally.empty(len(self._classes()))
        for tally in results:
            total.add(tally)
        scores = compute_scores(total, unique_names(self._classes()), beta=self.beta, undefined=self.nan_to_num)
        if is_main_process():
            worst_first = sorted_worst_first(scores.classes)
            if self.tables:
                for title, rows in (('by class', scores.classes), ('by class, worst first', worst_first)):
                    print_log(f'{title}:\n{class_table(rows)}', logger='current')
                print_log(summary(scores, definition=self.definition), logger='current')
            if self.out_dir is not None:
                write_report(
                    self.out_dir,
                    total,
                    scores,
                    definition=self.definition,
                    ignore_index=self.ignore_index,
                    figure=self.figure,
                    images=images,
                    palette=(self.dataset_meta or {}).get('palette'),
                )
        return self._returned(scores)

    def evaluate(self, size: int) -> dict[str, float]:
        """Sum the counts of all processes and compute the scores of the ``size`` images of the data set.

        Samplers distribute images over the processes in turn and repeat the first ones, so that all processes have the
        same number. A repeated image is the last one of its process and is not counted.

        Raises:
            UserError: No score is defined.
            RuntimeError: More images were counted than the data set has.
        """
        rank, world_size = get_dist_info()
        if self.writer is not None and world_size > 1:
            check_sources(all_gather_object(self.writer.sources))
        if self.format_only:
            print_log(f'predictions are in {self.writer.folder}', logger='current')  # type: ignore[union-attr]
            return {}
        if (self._seen - 1) * world_size + rank < size:
            self._add_last()
        total, images = self._total or Tally.empty(len(self._classes())), self._images
        self._total = self._last = None
        self._images = ImageScores(self.worst_images)
        self._seen = 0
        vector = total.to_vector()
        all_reduce(vector)
        total = Tally.from_vector(vector, len(self._classes()))
        if total.images > size:
            raise RuntimeError(
                f'{total.images} images were counted in a data set of {size}; evaluate with DefaultSampler'
            )
        if total.images < size:
            print_log(f'only {total.images} of {size} images were evaluated', 'current', logging.WARNING)
        if self.out_dir is not None:
            images = images.merged(all_gather_object(images))
        metrics = self.compute_metrics([total], images=images)
        return {f'{self.prefix}/{key}' if self.prefix else key: value for key, value in metrics.items()}

    def _add_last(self) -> None:
        """Add the last image, which is not a repetition, to the total and to the scores by image."""
        if self._last is not None:
            self._total = self._total or Tally.empty(len(self._classes()))
            self._total.add(self._last.tally)
            if self.out_dir is not None:
                rank, world_size = get_dist_info()
                sample = self._last.sample
                score = score_image(
                    self._last.tally,
                    image=str(sample.get('img_path') or sample.get('seg_map_path') or ''),
                    index=len(self._images.scores) * world_size + rank,
                )
                prediction, truth = _map_of(sample, PREDICTION), _map_of(sample, TRUTH)
                self._images.add(score, prediction=prediction, truth=truth, image=self._last.image)
            self._last = None

    def _classes(self) -> Sequence[str]:
        if not self.dataset_meta or not self.dataset_meta.get('classes'):
            raise UserError("the data set has no class names; give it metainfo=dict(classes=('road', ...))")
        return self.dataset_meta['classes']

    def _count(self, sample: Mapping[str, Any], prediction: Tensor) -> Tally:
        truth = _map_of(sample, TRUTH)
        number, ignore = len(self._classes()), self.ignore_index
        where = _name_of(sample)
        matrix, ignored = confusion(truth, prediction, num_classes=number, ignore_index=ignore, where=where)
        tally = Tally.of_image(matrix, ignored=ignored, pixels=truth.numel())
        if self.boundary:
            prediction = prediction.to(truth.device)
            tally.boundary += boundary_counts(truth, prediction, num_classes=number, ignore_index=ignore)
        if self.calibration:
            scores = _field(sample, 'seg_logits')
            tally.calibration += calibration_counts(scores, truth, prediction, ignore_index=ignore)
        return tally

    def _returned(self, scores: Scores) -> dict[str, float]:
        shares = {'mIoU': scores.mean_iou[self.definition], 'mAcc': scores.mean_accuracy, 'aAcc': scores.pixel_accuracy}
        if 'mDice' in self.metrics:
            shares['mDice'] = scores.mean_dice
        if 'mFscore' in self.metrics:
            means = {'mFscore': scores.mean_f_score, 'mPrecision': scores.mean_precision}
            shares |= {**means, 'mRecall': scores.mean_accuracy}
        extra = {'boundary_mIoU': scores.mean_boundary_iou, 'ECE': scores.calibration_error}
        shares |= {key: value for key, value in extra.items() if value is not None}
        if self.per_class:
            shares |= {f'IoU/{row.name}': row.iou for row in scores.classes if row.iou is not None}
        return {key: 100 * value for key, value in shares.items()}


def _map_of(sample: Mapping[str, Any], key: str) -> Tensor:
    """The (H, W) labels of a result."""
    return _field(sample, key).squeeze(0)


def _field(sample: Mapping[str, Any], key: str) -> Tensor:
    if key in sample:
        return sample[key]['data']
    fixes = {
        'gt_sem_seg': 'load annotations in the test pipeline, or set format_only=True where there are none',
        'seg_logits': 'calibration=True needs a model that keeps its scores',
        'pred_sem_seg': 'the model must return predictions (mode="predict")',
    }
    raise UserError(f'{_name_of(sample)}: the result has no {key}; {fixes[key]}')


def _name_of(sample: Mapping[str, Any]) -> str:
    return str(sample.get('seg_map_path') or sample.get('img_path') or 'an image without a name')

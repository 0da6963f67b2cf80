"""Compute scores from counts. Scores are in [0, 1], or None if the denominator is 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from volo_seg.errors import UserError
from volo_seg.evaluation.calibration import expected_calibration_error
from volo_seg.evaluation.tally import Tally

Share = float | None
DEFINITIONS = {
    'mmseg': 'mean IoU over the classes that occur in the ground truth or in a prediction',
    'ade': 'mean IoU over all classes, absent ones counted as 0 (the ADE20K development kit)',
    'gt_classes': 'mean IoU over the classes that occur in the ground truth',
}


@dataclass(frozen=True)
class ClassScores:
    """Scores and pixel counts of one class."""

    name: str
    iou: Share
    accuracy: Share
    precision: Share
    f_score: Share
    boundary_iou: Share
    truth_pixels: int
    predicted_pixels: int
    correct_pixels: int

    @property
    def dice(self) -> Share:
        """The Dice coefficient, which is the F-score with beta 1."""
        total = self.truth_pixels + self.predicted_pixels
        return 2 * self.correct_pixels / total if total else None

    @property
    def absent(self) -> bool:
        """Whether the class is neither in the ground truth nor in a prediction, outside ignored pixels."""
        return self.truth_pixels == 0 and self.predicted_pixels == 0


@dataclass(frozen=True)
class Scores:
    """The scores of an evaluation. ``mean_iou`` has an entry for each of :data:`DEFINITIONS`."""

    classes: tuple[ClassScores, ...]
    mean_iou: dict[str, float]
    mean_accuracy: float
    pixel_accuracy: float
    mean_precision: float
    mean_f_score: float
    mean_dice: float
    mean_boundary_iou: Share
    calibration_error: Share


def compute_scores(tally: Tally, classes: Sequence[str], *, beta: float = 1, undefined: float | None = None) -> Scores:
    """Compute the scores of ``tally``.

    Args:
        tally: The counts.
        classes: The names of the classes.
        beta: Weight of the recall in F-scores.
        undefined: What a score of a class without a denominator counts in means; None leaves it out. Mean IoU of the
            definitions ``'ade'`` and ``'gt_classes'`` does not depend on it.

    Raises:
        UserError: There is no image, or all pixels are ignored, so that no score is defined.
    """
    if len(classes) != len(tally.matrix):
        raise ValueError(f'{len(classes)} class names for a matrix of {len(tally.matrix)} classes')
    if tally.images == 0:
        raise UserError('no image was evaluated; check that the data set has images')
    counted = int(tally.matrix.sum())
    if counted == 0:
        raise UserError(
            f'all {tally.ignored} pixels of {tally.images} image(s) are ignored: no score is defined; '
            'check ignore_index and reduce_zero_label against the values in the label files'
        )
    rows = _class_scores(tally, classes, beta)
    calibration = expected_calibration_error(tally.calibration) if tally.calibration.any() else None
    return Scores(
        classes=rows,
        mean_iou={name: mean_iou(rows, definition=name, undefined=undefined) for name in DEFINITIONS},
        mean_accuracy=_mean([row.accuracy for row in rows], undefined) or 0.0,
        pixel_accuracy=sum(row.correct_pixels for row in rows) / counted,
        mean_precision=_mean([row.precision for row in rows], undefined) or 0.0,
        mean_f_score=_mean([row.f_score for row in rows], undefined) or 0.0,
        mean_dice=_mean([row.dice for row in rows], undefined) or 0.0,
        mean_boundary_iou=_mean([row.boundary_iou for row in rows]),
        calibration_error=calibration,
    )


def mean_iou(rows: Sequence[ClassScores], *, definition: str, undefined: float | None = None) -> float:
    """The mean IoU of the classes by ``definition``, a key of :data:`DEFINITIONS`; see :func:`compute_scores`."""
    if definition == 'ade':
        return sum(row.iou or 0.0 for row in rows) / len(rows)
    if definition == 'gt_classes':
        return _mean([row.iou for row in rows if row.truth_pixels > 0]) or 0.0
    return _mean([row.iou for row in rows], undefined) or 0.0


def unique_names(names: Sequence[str]) -> list[str]:
    """The class names, with the class number added to names that occur several times."""
    names = list(names)
    return [name if names.count(name) == 1 else f'{name} #{i}' for i, name in enumerate(names)]


def check_definition(definition: str) -> str:
    """Return ``definition``.

    Raises:
        UserError: It is not a key of :data:`DEFINITIONS`.
    """
    if definition not in DEFINITIONS:
        raise UserError(f'definition={definition!r} is unknown; choose one of {", ".join(DEFINITIONS)}')
    return definition


def _class_scores(tally: Tally, classes: Sequence[str], beta: float) -> tuple[ClassScores, ...]:
    truth = tally.matrix.sum(1)
    predicted = tally.matrix[:, :-1].sum(0)
    correct = tally.matrix.diagonal()
    agree, outline_t, outline_p = tally.boundary
    columns = (
        classes,
        _ratio(correct, truth + predicted - correct),
        _ratio(correct, truth),
        _ratio(correct, predicted),
        _ratio((1 + beta**2) * correct, beta**2 * truth + predicted),
        _ratio(agree, outline_t + outline_p - agree),
        truth.tolist(),
        predicted.tolist(),
        correct.tolist(),
    )
    return tuple(ClassScores(*row) for row in zip(*columns, strict=True))


def _ratio(part: Tensor, whole: Tensor) -> list[Share]:
    return [p / w if w else None for p, w in zip(part.tolist(), whole.tolist(), strict=True)]


def _mean(shares: Sequence[Share], undefined: float | None = None) -> Share:
    filled = [undefined if share is None else share for share in shares]
    known = [share for share in filled if share is not None]
    return sum(known) / len(known) if known else None

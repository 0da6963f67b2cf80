"""Scores of single images, and reduced copies of the images with the lowest scores."""

from __future__ import annotations

import bisect
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from torch import Tensor

from volo_seg.evaluation.tally import Tally
from volo_seg.visualization import SheetRow, draw_sheet, make_row

CSV_NAME, FOLDER = 'per_image.csv', 'worst'
_COLUMNS = ('image', 'mIoU', 'aAcc', 'worst_class', 'worst_IoU', 'counted_pixels', 'correct_pixels', 'ignored_pixels')


@dataclass(frozen=True, order=True)
class ImageScore:
    """Scores of one image in [0, 1], -1 if no pixel is counted; sorting puts the lowest first."""

    mean_iou: float
    accuracy: float
    index: int
    """Position in the data set, from 0."""
    image: str
    worst_class: int
    worst_iou: float
    counted: int
    correct: int
    ignored: int


def score_image(tally: Tally, *, image: str, index: int) -> ImageScore:
    """The scores of the image that ``tally`` counts. The mean IoU is over the classes in its truth or prediction."""
    matrix = tally.matrix
    correct = matrix.diagonal()
    truth = matrix.sum(1)
    union = truth + matrix[:, :-1].sum(0) - correct
    columns = zip(correct.tolist(), union.tolist(), truth.tolist(), strict=True)
    ious = [(c / u, -t, i) for i, (c, u, t) in enumerate(columns) if u]  # for equal IoU, the class with most pixels
    counted, right = int(matrix.sum()), int(correct.sum())
    worst_iou, _, worst_class = min(ious, default=(-1.0, 0, -1))
    return ImageScore(
        mean_iou=sum(iou for iou, *_ in ious) / len(ious) if ious else -1.0,
        accuracy=right / counted if counted else -1.0,
        index=index,
        image=image,
        worst_class=worst_class,
        worst_iou=worst_iou,
        counted=counted,
        correct=right,
        ignored=tally.ignored,
    )


@dataclass
class ImageScores:
    """The scores of the images of one process, and reduced copies of the ``keep`` images with the lowest scores."""

    keep: int
    scores: list[ImageScore] = field(default_factory=list)
    worst: list[tuple[ImageScore, SheetRow]] = field(default_factory=list)

    def add(self, score: ImageScore, *, prediction: Tensor, truth: Tensor, image: Any) -> None:
        """Add one image; ``image`` is the (C, H, W) tensor of the data pipeline, or None."""
        self.scores.append(score)
        if score.counted == 0 or self.keep == 0:
            return
        if len(self.worst) < self.keep or score < self.worst[-1][0]:
            row = make_row(PurePath(score.image).name, image=image, labels=(prediction, truth))
            bisect.insort(self.worst, (score, row), key=lambda pair: pair[0])
            del self.worst[self.keep :]

    def merged(self, others: Sequence[ImageScores]) -> ImageScores:
        """The scores of all processes in the order of the data set, with the worst images of all."""
        scores = sorted((score for other in others for score in other.scores), key=lambda score: score.index)
        worst = sorted((pair for other in others for pair in other.worst), key=lambda pair: pair[0])
        return ImageScores(self.keep, scores, worst[: self.keep])

    def csv(self, classes: Sequence[str]) -> str:
        """A row per image, in percent; undefined scores are empty."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator='\n')
        writer.writerow(_COLUMNS)
        for score in self.scores:
            name = classes[score.worst_class] if score.worst_class >= 0 else ''
            shares = [_percent(score.mean_iou), _percent(score.accuracy), name, _percent(score.worst_iou)]
            writer.writerow([score.image, *shares, score.counted, score.correct, score.ignored])
        return stream.getvalue()

    def sheets(self, classes: Sequence[str], palette: Sequence[Sequence[int]] | None) -> dict[str, bytes]:
        """JPEGs of the worst images (image, prediction, ground truth) by file name."""
        return {
            f'{number:02d}.jpg': draw_sheet(
                [row],
                title=f'mIoU {100 * score.mean_iou:.1f}   pixel accuracy {100 * score.accuracy:.1f}   '
                f'worst class {classes[score.worst_class]} ({100 * score.worst_iou:.1f})',
                classes=classes,
                palette=palette,
            )
            for number, (score, row) in enumerate(self.worst, start=1)
        }

    def content(self, classes: Sequence[str]) -> list[dict[str, Any]]:
        """The entries of the worst images in ``metrics.json``, the worst first."""
        return [
            {
                'file': f'{FOLDER}/{number:02d}.jpg',
                'image': score.image,
                'mIoU': _percent(score.mean_iou),
                'aAcc': _percent(score.accuracy),
                'worst_class': classes[score.worst_class],
                'worst_IoU': _percent(score.worst_iou),
            }
            for number, (score, _) in enumerate(self.worst, start=1)
        ]


def _percent(share: float) -> float | None:
    return 100 * share if share >= 0 else None

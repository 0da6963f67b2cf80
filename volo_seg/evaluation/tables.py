"""Scores as text for the log."""

from __future__ import annotations

from collections.abc import Sequence

from volo_seg.evaluation.scores import DEFINITIONS, ClassScores, Scores, Share


def class_table(classes: Sequence[ClassScores]) -> str:
    """One line a class, in the order given; percent. An absent class says so and never shows a number."""
    boundary = any(row.boundary_iou is not None for row in classes)
    heads = ['class', 'IoU', 'Acc', 'F-score', *(['B-IoU'] if boundary else []), 'pixels']
    total = sum(row.truth_pixels for row in classes)
    lines = [heads, *(_cells(row, boundary, total) for row in classes)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    return '\n'.join(_aligned(line, widths) for line in lines)


def sorted_worst_first(classes: Sequence[ClassScores]) -> list[ClassScores]:
    """By IoU, lowest first; absent classes last, in their own order."""
    return sorted(classes, key=lambda row: 2.0 if row.iou is None else row.iou)


def summary(scores: Scores, *, definition: str) -> str:
    """The means in a few lines, the chosen definition of mean IoU first."""
    main = f'mIoU {scores.mean_iou[definition]:.2%} ({DEFINITIONS[definition]})'
    others = [f'{name} {value:.2%}' for name, value in scores.mean_iou.items() if name != definition]
    means = [
        f'mAcc {scores.mean_accuracy:.2%}',
        f'aAcc {scores.pixel_accuracy:.2%}',
        f'mFscore {scores.mean_f_score:.2%}',
    ]
    if scores.mean_boundary_iou is not None:
        means.append(f'boundary mIoU {scores.mean_boundary_iou:.2%}')
    if scores.calibration_error is not None:
        means.append(f'expected calibration error {scores.calibration_error:.2%}')
    return f'{main}\nby the other definitions: {", ".join(others)}\n{", ".join(means)}'


def _cells(row: ClassScores, boundary: bool, total: int) -> list[str]:
    if row.absent:
        return [row.name, 'absent', *['-'] * (3 if boundary else 2), '-']
    shares = [row.iou, row.accuracy, row.f_score, *([row.boundary_iou] if boundary else [])]
    return [row.name, *(_percent(share) for share in shares), f'{row.truth_pixels / total:.2%}']


def _percent(share: Share) -> str:
    return '-' if share is None else f'{100 * share:.2f}'


def _aligned(line: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = (
        cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(line, widths, strict=True))
    )
    return '  '.join([first, *rest])

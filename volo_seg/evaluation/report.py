"""Reports of scores: text for the log, and the files ``metrics.json``, ``metrics.csv`` and ``confusion_matrix.png``."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from volo_seg import __version__
from volo_seg.errors import UserError
from volo_seg.evaluation.confusion_figure import confusion_figure
from volo_seg.evaluation.per_image import CSV_NAME as IMAGES_NAME
from volo_seg.evaluation.per_image import FOLDER as WORST
from volo_seg.evaluation.per_image import ImageScores
from volo_seg.evaluation.scores import DEFINITIONS, ClassScores, Scores, Share
from volo_seg.evaluation.tally import Tally
from volo_seg.io import atomic_write, check_writable
from volo_seg.label_png import MARK

JSON_NAME, CSV_NAME, FIGURE_NAME = 'metrics.json', 'metrics.csv', 'confusion_matrix.png'


def write_report(
    folder: Path,
    tally: Tally,
    scores: Scores,
    *,
    definition: str,
    ignore_index: int,
    figure: bool = True,
    images: ImageScores | None = None,
    palette: Sequence[Sequence[int]] | None = None,
) -> None:
    """Write the report into ``folder``, which is created. Files of an earlier report are replaced.

    With ``images``, their scores in ``per_image.csv`` and images of the worst in the colours of ``palette`` are added.

    Raises:
        UserError: A file exists that is not part of a report, or a file cannot be written.
    """
    check_report_folder(folder)
    content = report_content(tally, scores, definition=definition, ignore_index=ignore_index)
    names = [row.name for row in scores.classes]
    if images is not None:
        content['worst_images'] = images.content(names)
    write_json(folder / JSON_NAME, content)
    atomic_write(folder / CSV_NAME, class_csv(tally, scores).encode())
    if images is not None:
        atomic_write(folder / IMAGES_NAME, images.csv(names).encode())
        for name, jpeg in images.sheets(names, palette).items():
            atomic_write(folder / WORST / name, jpeg)
    if figure:
        atomic_write(folder / FIGURE_NAME, confusion_figure(tally.matrix.numpy(), names))
    else:
        (folder / FIGURE_NAME).unlink(missing_ok=True)  # of an earlier report


def check_report_folder(folder: Path) -> None:
    """Check, before the evaluation, that a report can be written into ``folder``.

    Raises:
        UserError: It is a file, is not writable, or contains files with the names of a report from another source.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f'{folder} is a file; name a folder for the metrics')
    check_writable(folder)
    names = (JSON_NAME, CSV_NAME, IMAGES_NAME, FIGURE_NAME, WORST)
    found = [name for name in names if (folder / name).exists()]
    if found and not _is_ours(folder / JSON_NAME):
        raise UserError(
            f'{folder / found[0]} exists and was not written by {MARK}; name another folder for the metrics'
        )


def report_content(tally: Tally, scores: Scores, *, definition: str, ignore_index: int) -> dict[str, Any]:
    """The content of ``metrics.json``. Scores are in percent; undefined scores are ``null``."""
    return {
        'written_by': f'{MARK} {__version__}',
        'unit': 'percent',
        'definition': definition,
        'definition_text': DEFINITIONS[definition],
        'mIoU': 100 * scores.mean_iou[definition],
        'mIoU_by_definition': {name: 100 * value for name, value in scores.mean_iou.items()},
        'mAcc': 100 * scores.mean_accuracy,
        'aAcc': 100 * scores.pixel_accuracy,
        'mFscore': 100 * scores.mean_f_score,
        'boundary_mIoU': _percent(scores.mean_boundary_iou),
        'expected_calibration_error': _percent(scores.calibration_error),
        'images': tally.images,
        'counted_pixels': int(tally.matrix.sum()),
        'missed_pixels': int(tally.matrix[:, -1].sum()),
        'ignored_pixels': tally.ignored,
        'ignore_index': ignore_index,
        'classes': [_class_content(row) for row in scores.classes],
        'confusion_matrix': tally.matrix[:, :-1].tolist(),
        'confusion_matrix_axes': ['ground truth', 'prediction'],
        'missed_by_class': tally.matrix[:, -1].tolist(),
    }


def class_csv(tally: Tally, scores: Scores) -> str:
    """The content of ``metrics.csv``: a row per class with scores in percent, pixel counts and confusion matrix row."""
    stream = io.StringIO()
    contents = [_class_content(row) for row in scores.classes]
    names = [row.name for row in scores.classes]
    writer = csv.writer(stream, lineterminator='\n')
    writer.writerow([*contents[0], *(f'predicted as {name}' for name in names), 'missed'])
    for content, counts in zip(contents, tally.matrix.tolist(), strict=True):
        writer.writerow(['' if value is None else value for value in content.values()] + counts)
    return stream.getvalue()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` as JSON to ``path``.

    Raises:
        UserError: See :func:`check_json`.
    """
    check_json(path)
    atomic_write(path, (json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + '\n').encode())


def check_json(path: Path) -> None:
    """Check that ``path`` can be written.

    Raises:
        UserError: It exists and is not a ``metrics.json`` of this package, or its folder is not writable.
    """
    if path.exists() and not _is_ours(path):
        raise UserError(f'{path} exists and was not written by {MARK}; name another file')
    check_writable(path.parent)


def class_table(classes: Sequence[ClassScores]) -> str:
    """A text table with a line per class, in percent, in the order given; ``absent`` if a class does not occur."""
    boundary = any(row.boundary_iou is not None for row in classes)
    heads = ['class', 'IoU', 'Acc', 'F-score', *(['B-IoU'] if boundary else []), 'pixels']
    total = sum(row.truth_pixels for row in classes)
    lines = [heads, *(_cells(row, boundary, total) for row in classes)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    return '\n'.join('  '.join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines)


def sorted_worst_first(classes: Sequence[ClassScores]) -> list[ClassScores]:
    """The classes by IoU, lowest first; absent classes last."""
    return sorted(classes, key=lambda row: 2.0 if row.iou is None else row.iou)


def summary(scores: Scores, *, definition: str) -> str:
    """The means as three lines of text; the first is mean IoU by ``definition``."""
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
    return [
        row.name,
        *('-' if share is None else f'{100 * share:.2f}' for share in shares),
        f'{row.truth_pixels / total:.2%}',
    ]


def _class_content(row: ClassScores) -> dict[str, Any]:
    return {
        'class': row.name,
        'absent': row.absent,
        'IoU': _percent(row.iou),
        'Acc': _percent(row.accuracy),
        'Precision': _percent(row.precision),
        'Fscore': _percent(row.f_score),
        'boundary_IoU': _percent(row.boundary_iou),
        'truth_pixels': row.truth_pixels,
        'predicted_pixels': row.predicted_pixels,
        'correct_pixels': row.correct_pixels,
    }


def _percent(share: Share) -> Share:
    return None if share is None else 100 * share


def _is_ours(path: Path) -> bool:
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and str(content.get('written_by', '')).startswith(MARK)

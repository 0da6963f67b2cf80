"""``metrics.json``, ``metrics.csv``, ``per_image.csv``, ``confusion_matrix.png``: scores and the counts behind them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from volo_seg import __version__
from volo_seg.errors import UserError
from volo_seg.evaluation.confusion_figure import confusion_picture
from volo_seg.evaluation.per_image import CSV_NAME as IMAGES_NAME
from volo_seg.evaluation.per_image import FOLDER as WORST
from volo_seg.evaluation.per_image import ImageScores
from volo_seg.evaluation.scores import DEFINITIONS, ClassScores, Scores, Share
from volo_seg.evaluation.tally import Tally
from volo_seg.io import atomic_write, check_writable
from volo_seg.label_png import MARK

JSON_NAME, CSV_NAME, PICTURE_NAME = 'metrics.json', 'metrics.csv', 'confusion_matrix.png'


def write_report(
    folder: Path,
    tally: Tally,
    scores: Scores,
    *,
    definition: str,
    ignore_index: int,
    picture: bool = True,
    images: ImageScores | None = None,
    palette: Sequence[Sequence[int]] | None = None,
) -> None:
    """Write the files into ``folder``, which is made. Files of an earlier report of ours are replaced.

    With ``images``: also their scores, and pictures of the worst in the colours of ``palette``.

    Raises:
        UserError: one of the files exists and is not ours, or cannot be written.
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
        for name, content_of_file in images.pictures(names, palette).items():
            atomic_write(folder / WORST / name, content_of_file)
    if picture:
        atomic_write(folder / PICTURE_NAME, confusion_picture(tally.matrix.numpy(), names))


def check_report_folder(folder: Path) -> None:
    """Check that a report may be written there: a folder or nothing, and no report files but our own.

    Raises:
        UserError: that is not so.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f'{folder} is a file; name a folder for the metrics')
    check_writable(folder)
    names = (JSON_NAME, CSV_NAME, IMAGES_NAME, PICTURE_NAME, WORST)
    found = [name for name in names if (folder / name).exists()]
    if found and not _is_ours(folder / JSON_NAME):
        raise UserError(
            f'{folder / found[0]} exists and was not written by {MARK}; name another folder for the metrics'
        )


def report_content(tally: Tally, scores: Scores, *, definition: str, ignore_index: int) -> dict[str, Any]:
    """The content of ``metrics.json``. Scores are percent; ``null`` where a class leaves one undefined."""
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
    """One row a class: percent (empty: undefined), pixel counts, its row of the confusion matrix."""
    stream = io.StringIO()
    contents = [_class_content(row) for row in scores.classes]
    names = [row.name for row in scores.classes]
    writer = csv.writer(stream, lineterminator='\n')
    writer.writerow([*contents[0], *(f'predicted as {name}' for name in names), 'missed'])
    for content, counts in zip(contents, tally.matrix.tolist(), strict=True):
        writer.writerow(['' if value is None else value for value in content.values()] + counts)
    return stream.getvalue()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` as JSON; a file that is there is replaced only if it is a report of ours.

    Raises:
        UserError: it is not ours, or cannot be written.
    """
    check_json(path)
    atomic_write(path, (json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + '\n').encode())


def check_json(path: Path) -> None:
    """Check that ``path`` may be written: it is new, or a report of ours.

    Raises:
        UserError: it is neither.
    """
    if path.exists() and not _is_ours(path):
        raise UserError(f'{path} exists and was not written by {MARK}; name another file')
    check_writable(path.parent)


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

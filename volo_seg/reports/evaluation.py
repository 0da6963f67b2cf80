"""The evaluations and records that a work dir holds: ``metrics.json`` with its images, ``run.json``, contact sheets."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass, field
from pathlib import PurePath, PurePosixPath
from typing import Any

from volo_seg.reports.work_dir import WorkDir, count, number, text

WRITER = 'volo-seg'
_JPEG, _PNG = b'\xff\xd8\xff', b'\x89PNG\r\n'
_SHEET_NAME = re.compile(r'iter_(\d{1,12})\.jpg')
_MAX_CLASSES, _MAX_IMAGES, _MAX_RECORDS = 1000, 50, 50
_CSV_LIMIT = 256 * 2**20


@dataclass(frozen=True)
class ClassScore:
    """Scores of one class in percent; None where undefined."""

    name: str
    absent: bool
    iou: float | None
    accuracy: float | None
    precision: float | None
    pixels: int


@dataclass(frozen=True)
class WorstImage:
    """One of the worst images: its name, scores in percent, and a JPEG of image, prediction and truth."""

    name: str
    mean_iou: float | None
    accuracy: float | None
    jpeg: bytes


@dataclass
class Evaluation:
    """The content of one ``metrics.json`` and of the files beside it.

    Attributes:
        scores: ``mIoU``, ``aAcc`` and so on in percent.
        images: Number of images.
        classes: In the order of the class numbers.
        matrix: Pixels by true class (rows) and predicted class; None if it is missing or does not fit the classes.
        figure: The confusion matrix as PNG.
        image_ious: mIoU of each image in percent.
        worst: The worst images that have a JPEG.
    """

    scores: dict[str, float]
    images: int | None = None
    classes: list[ClassScore] = field(default_factory=list)
    matrix: list[list[int]] | None = None
    figure: bytes | None = None
    image_ious: list[float] = field(default_factory=list)
    worst: list[WorstImage] = field(default_factory=list)


def read_evaluation(work_dir: WorkDir) -> Evaluation | None:
    """The newest evaluation that volo-seg has written below ``work_dir``."""
    for file in reversed(work_dir.find('metrics.json', '*/metrics.json')):
        content = work_dir.read_json(file)
        if content is None or not str(content.get('written_by', '')).startswith(WRITER):
            continue
        values = {key: number(value) for key, value in content.items()}
        found = Evaluation({key: value for key, value in values.items() if value is not None})
        found.images = count(content.get('images'))
        found.classes = [
            ClassScore(
                text(row['class']),
                row.get('absent') is True,
                number(row.get('IoU')),
                number(row.get('Acc')),
                number(row.get('Precision')),
                count(row.get('truth_pixels')) or 0,
            )
            for row in _dicts(content.get('classes'))[:_MAX_CLASSES]
            if 'class' in row
        ]
        found.matrix = _matrix(content.get('confusion_matrix'), len(found.classes))
        if found.matrix is None and content.get('confusion_matrix') is not None:
            work_dir.note(file, 'has a confusion matrix that does not fit its classes; the matrix is left out.')
        found.figure = work_dir.read(file.with_name('confusion_matrix.png'), magic=_PNG)
        for entry in _dicts(content.get('worst_images'))[:_MAX_IMAGES]:
            # the last part of the name only: files are read from the folder `worst`
            name = PurePosixPath(text(entry.get('file'))).name
            jpeg = work_dir.read(file.parent / 'worst' / name, magic=_JPEG) if name.endswith('.jpg') else None
            if jpeg is not None:
                shown = '/'.join(PurePath(text(entry.get('image'))).parts[-2:])
                found.worst.append(WorstImage(shown, number(entry.get('mIoU')), number(entry.get('aAcc')), jpeg))
        found.image_ious = _image_ious(work_dir.read(file.with_name('per_image.csv'), limit=_CSV_LIMIT) or b'')
        return found
    return None


def read_records(work_dir: WorkDir) -> list[dict[str, Any]]:
    """The newest ``run.json`` files of the sessions, oldest first; the work dir's own where there is no other."""
    files = work_dir.find('*/run.json') or work_dir.find('run.json')
    records = [work_dir.read_json(file) for file in files[-_MAX_RECORDS:]]
    return [record for record in records if record is not None]


def read_sheets(work_dir: WorkDir, *, limit: int) -> list[tuple[int, bytes]]:
    """Iteration and JPEG of at most ``limit`` contact sheets, evenly spread, with the last one among them."""
    files = {}
    for file in sorted(work_dir.find('val_sheets/*.jpg', '*/val_sheets/*.jpg')):
        match = _SHEET_NAME.fullmatch(file.name)
        if match:
            files[int(match[1])] = file
    steps = sorted(files)
    if len(steps) > limit:
        steps = [steps[round(index * (len(steps) - 1) / max(1, limit - 1))] for index in range(limit)]
    sheets = [(step, work_dir.read(files[step], magic=_JPEG)) for step in steps]
    return [(step, jpeg) for step, jpeg in sheets if jpeg is not None]


def most_confused(evaluation: Evaluation, *, limit: int) -> list[tuple[str, str, int, float]]:
    """(true class, predicted class, pixels, share of the true class in [0, 1]), the most pixels first."""
    names, matrix = [row.name for row in evaluation.classes], evaluation.matrix or []
    pairs = [
        (-pixels, row, column)
        for row, counts in enumerate(matrix)
        for column, pixels in enumerate(counts)
        if row != column and pixels > 0
    ]
    return [(names[r], names[c], -pixels, -pixels / sum(matrix[r])) for pixels, r, c in sorted(pairs)[:limit]]


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def _matrix(rows: Any, size: int) -> list[list[int]] | None:
    if not size or not isinstance(rows, list) or len(rows) != size:
        return None
    whole = all(isinstance(row, list) and len(row) == size for row in rows)
    return rows if whole and all(count(value) is not None for row in rows for value in row) else None


def _image_ious(content: bytes) -> list[float]:
    """The column ``mIoU`` of ``per_image.csv``; rows without a percentage are left out."""
    values = []
    try:
        for row in csv.DictReader(io.StringIO(content.decode('utf-8', 'replace'), newline='')):
            try:
                value = float(row.get('mIoU') or 'nan')
            except (TypeError, ValueError):
                continue
            if 0 <= value <= 100:
                values.append(value)
    except csv.Error:
        return []
    return values

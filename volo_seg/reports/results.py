"""What evaluations left in a work dir: scores, scores image by image, pictures, and the record of the run."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

MARK = 'volo-seg'
_JPEG = b'\xff\xd8\xff'
_STEP = re.compile(r'iter_(\d+)\.jpg')


@dataclass
class Evaluation:
    """One ``metrics.json`` and what stands beside it."""

    folder: Path
    metrics: dict[str, Any]
    image_ious: list[float] = field(default_factory=list)

    @property
    def classes(self) -> list[dict[str, Any]]:
        return [row for row in self.metrics.get('classes') or [] if isinstance(row, dict) and 'class' in row]

    @property
    def matrix(self) -> list[list[int]] | None:
        """The confusion matrix, if it has a row and a column for each class."""
        rows, count = self.metrics.get('confusion_matrix'), len(self.classes)
        if not isinstance(rows, list) or len(rows) != count:
            return None
        whole = all(isinstance(row, list) and len(row) == count for row in rows)
        return rows if whole and all(isinstance(value, int) for row in rows for value in row) else None

    def worst(self) -> list[tuple[dict[str, Any], bytes]]:
        """The worst images, each with its JPEG; those whose picture is missing are left out."""
        found = []
        for entry in self.metrics.get('worst_images') or []:
            name = PurePosixPath(str(entry.get('file', ''))).name if isinstance(entry, dict) else ''
            content = read_jpeg(self.folder / 'worst' / name) if name else None
            if content is not None:
                found.append((entry, content))
        return found


def read_evaluation(work_dir: Path) -> Evaluation | None:
    """The newest evaluation below ``work_dir`` that is ours."""
    files = [file for pattern in ('metrics.json', '*/metrics.json') for file in work_dir.glob(pattern)]
    for file in sorted(files, key=lambda path: path.stat().st_mtime, reverse=True):
        content = read_json(file)
        if content is not None and str(content.get('written_by', '')).startswith(MARK):
            return Evaluation(file.parent, content, _image_ious(file.parent / 'per_image.csv'))
    return None


def read_records(work_dir: Path) -> list[dict[str, Any]]:
    """The ``run.json`` files of all sessions, oldest first; the work dir's own where there is no other."""
    files = sorted(work_dir.glob('*/run.json'), key=lambda path: path.stat().st_mtime)
    records = [read_json(file) for file in files or [work_dir / 'run.json']]
    return [record for record in records if record is not None]


def read_sheets(work_dir: Path, *, most: int) -> list[tuple[int, bytes]]:
    """Iteration and JPEG of at most ``most`` contact sheets, spread evenly, the last one among them."""
    found = {}
    for file in sorted([*work_dir.glob('val_sheets/*.jpg'), *work_dir.glob('*/val_sheets/*.jpg')]):
        match = _STEP.fullmatch(file.name)
        if match:
            found[int(match[1])] = file
    steps = sorted(found)
    if len(steps) > most:
        steps = [steps[round(index * (len(steps) - 1) / max(1, most - 1))] for index in range(most)]
    sheets = [(step, read_jpeg(found[step])) for step in steps]
    return [(step, content) for step, content in sheets if content is not None]


def read_jpeg(path: Path) -> bytes | None:
    """The bytes of a JPEG file; None if it is none."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    return content if content.startswith(_JPEG) else None


def read_json(path: Path) -> dict[str, Any] | None:
    """A dict out of a JSON file; None if it is missing, damaged or something else."""
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def most_confused(
    names: Sequence[str], matrix: Sequence[Sequence[int]], *, most: int
) -> list[tuple[str, str, int, float]]:
    """(true class, predicted class, pixels, share of the true class), the most pixels first."""
    pairs = [
        (pixels, row, column)
        for row, counts in enumerate(matrix)
        for column, pixels in enumerate(counts)
        if row != column and pixels > 0
    ]
    pairs.sort(key=lambda pair: (-pair[0], pair[1:]))
    return [(names[r], names[c], pixels, pixels / sum(matrix[r])) for pixels, r, c in pairs[:most]]


def _image_ious(path: Path) -> list[float]:
    try:
        with open(path, encoding='utf-8', newline='') as file:
            return [float(row['mIoU']) for row in csv.DictReader(file) if row.get('mIoU')]
    except (OSError, ValueError, csv.Error):
        return []

"""Scoring folders of label PNGs, whichever model wrote them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from volo_seg.errors import UserError
from volo_seg.evaluation.boundary import boundary_counts
from volo_seg.evaluation.confusion_matrix import confusion, listed
from volo_seg.evaluation.tally import Tally
from volo_seg.label_png import Labels, ranges, read_labels

CITYSCAPES_FRAME = re.compile(r'^(.+?_\d{6}_\d{6})')
Table = Mapping[int, int]


@dataclass(frozen=True)
class Pair:
    """A label file and the prediction for the same image."""

    truth: Path
    prediction: Path


def label_files(folder: Path, *, suffix: str) -> list[Path]:
    """All files below ``folder`` whose name ends with ``suffix``, sorted; hidden ones are left out.

    Raises:
        UserError: there is no such folder, or no such file in it.
    """
    if not folder.is_dir():
        raise UserError(f'{folder} is not a folder; check the path')
    found = sorted(path for path in folder.rglob(f'*{suffix}') if path.is_file() and not path.name.startswith('.'))
    if not found:
        raise UserError(f'{folder} holds no file that ends with {suffix!r}; check the folder and the suffix')
    return found


def pair_files(
    prediction_dir: Path,
    truth_dir: Path,
    *,
    truth_suffix: str = '.png',
    prediction_suffix: str = '.png',
    frame: re.Pattern[str] | None = None,
) -> tuple[list[Pair], list[Path]]:
    """Pair each label file with its prediction; return the pairs and the predictions left over.

    Files belong together if their paths below the two folders agree (less the suffixes); failing that, if
    their names do and no other file has that name. ``frame``: only its first group in a name counts.

    Raises:
        UserError: a prediction is missing, or it is not clear which one is meant.
    """
    predictions = label_files(prediction_dir, suffix=prediction_suffix)
    by_path = {_stem(path.relative_to(prediction_dir).as_posix(), prediction_suffix): path for path in predictions}
    by_name: dict[str, list[Path]] = defaultdict(list)
    for path in predictions:
        by_name[_key(path, prediction_suffix, frame)].append(path)
    pairs, missing = [], []
    for truth in label_files(truth_dir, suffix=truth_suffix):
        stem = _stem(truth.relative_to(truth_dir).as_posix(), truth_suffix)
        named = by_name.get(_key(truth, truth_suffix, frame), [])
        candidates = [by_path[stem]] if stem in by_path else named
        if len(candidates) > 1:
            raise UserError(f'{candidates[0]} and {candidates[1]} both match {truth}; keep one, or give the suffix')
        pairs += [Pair(truth, path) for path in candidates]
        missing += [] if candidates else [truth.relative_to(truth_dir).as_posix()]
    _check_pairs(pairs, missing, prediction_dir)
    used = {pair.prediction for pair in pairs}
    return pairs, [path for path in predictions if path not in used]


def map_labels(labels: Labels, table: Table, *, where: str) -> Labels:
    """Replace each value by ``table``'s (int32).

    Raises:
        UserError: a value is not in ``table``.
    """
    small = labels.dtype == np.uint8
    values = np.flatnonzero(np.bincount(labels.reshape(-1))) if small else np.unique(labels)
    unknown = [int(value) for value in values if int(value) not in table]
    if unknown:
        raise UserError(
            f'{where} holds {listed(unknown)}, but the labels known here are {ranges(table)}; check which '
            'numbering the file uses'
        )
    lookup = np.zeros(int(values.max(initial=0)) + 1, np.int32)
    lookup[values] = [table[int(value)] for value in values]
    return lookup[labels]


def score_folders(
    pairs: Iterable[Pair],
    *,
    num_classes: int,
    ignore_index: int,
    truth_table: Table | None = None,
    prediction_table: Table | None = None,
    boundary: bool = False,
) -> Tally:
    """Count all pairs. A table turns the values of a file into classes 0..C-1 or ``ignore_index``.

    A prediction of ``ignore_index`` where the truth has a class is a miss.

    Raises:
        UserError: a file cannot be read, sizes differ, or a value is out of range.
    """
    total = Tally.empty(num_classes)
    for pair in pairs:
        truth = torch.from_numpy(_read(pair.truth, truth_table))
        prediction = torch.from_numpy(_read(pair.prediction, prediction_table))
        matrix, ignored = confusion(
            truth,
            prediction,
            num_classes=num_classes,
            ignore_index=ignore_index,
            where=str(pair.truth),
            prediction_where=str(pair.prediction),
            count_missed=True,
        )
        tally = Tally.of_image(matrix, ignored=ignored, pixels=truth.numel())
        if boundary:
            tally.boundary += boundary_counts(
                truth, prediction, num_classes=num_classes, ignore_index=ignore_index, count_missed=True
            )
        total.add(tally)
    return total


def shift_table(num_classes: int, *, ignore_index: int) -> dict[int, int]:
    """The table of labels that count from 1: 0 means none, 1..C become 0..C-1, ``ignore_index`` stays."""
    return {ignore_index: ignore_index, 0: ignore_index} | {i + 1: i for i in range(num_classes)}


def _read(path: Path, table: Table | None) -> Labels:
    labels = read_labels(path)
    return labels if table is None else map_labels(labels, table, where=str(path))


def _stem(name: str, suffix: str) -> str:
    return name[: len(name) - len(suffix)]


def _key(path: Path, suffix: str, frame: re.Pattern[str] | None) -> str:
    match = frame.match(path.name) if frame else None
    return match[1] if match else _stem(path.name, suffix)


def _check_pairs(pairs: Sequence[Pair], missing: Sequence[str], prediction_dir: Path) -> None:
    if missing:
        names = ', '.join(missing[:10]) + (f' and {len(missing) - 10} more' if len(missing) > 10 else '')
        raise UserError(f'{prediction_dir} has no prediction for {names}; predict them, or score fewer labels')
    owners: dict[Path, Path] = {}
    for pair in pairs:
        other = owners.setdefault(pair.prediction, pair.truth)
        if other != pair.truth:
            raise UserError(
                f'{pair.prediction} matches both {other} and {pair.truth}; '
                'keep the predictions in the subfolders of their labels'
            )

"""Score folders of label PNGs."""

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
from volo_seg.io import find_files
from volo_seg.label_png import Labels, ranges, read_labels

CITYSCAPES_FRAME = re.compile(r'^(.+?_\d{6}_\d{6})')
Table = Mapping[int, int]


@dataclass(frozen=True)
class Pair:
    """A label file and the prediction for the same image."""

    truth: Path
    prediction: Path


def label_files(folder: Path, *, suffix: str) -> list[Path]:
    """The sorted paths of all files below ``folder`` that end with ``suffix``, without hidden files.

    Raises:
        UserError: The folder does not exist, or has no such file.
    """
    if not folder.is_dir():
        raise UserError(f'{folder} is not a folder; check the path')
    found = find_files(folder, suffixes=(suffix,), any_case=False)
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
    """Match each label file with its prediction; return the pairs and the predictions without a label file.

    Files match if their paths relative to the two folders are equal without the suffixes. Otherwise they match if their
    names are equal and unique; with ``frame``, the first group of its match is compared instead of the name.

    Raises:
        UserError: A prediction is missing or ambiguous.
    """
    predictions = label_files(prediction_dir, suffix=prediction_suffix)
    by_path = {
        path.relative_to(prediction_dir).as_posix().removesuffix(prediction_suffix): path for path in predictions
    }
    by_name: dict[str, list[Path]] = defaultdict(list)
    for path in predictions:
        by_name[_key(path, prediction_suffix, frame)].append(path)
    pairs, missing = [], []
    for truth in label_files(truth_dir, suffix=truth_suffix):
        stem = truth.relative_to(truth_dir).as_posix().removesuffix(truth_suffix)
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
    """Replace each value by its entry in ``table``; int32.

    Raises:
        UserError: A value is not in ``table``.
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
    """Count the pixels of all pairs. The tables map values of the files to classes 0..C-1 or ``ignore_index``.

    A pixel is missed if its prediction is ``ignore_index`` and its ground truth is a class.

    Raises:
        UserError: A file cannot be read, sizes differ, or a value is out of range.
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
    """The table for labels that start at 1: 1..C become 0..C-1, 0 becomes ``ignore_index``."""
    return {ignore_index: ignore_index, 0: ignore_index} | {i + 1: i for i in range(num_classes)}


def _read(path: Path, table: Table | None) -> Labels:
    labels = read_labels(path)
    return labels if table is None else map_labels(labels, table, where=str(path))


def _key(path: Path, suffix: str, frame: re.Pattern[str] | None) -> str:
    match = frame.match(path.name) if frame else None
    return match[1] if match else path.name.removesuffix(suffix)


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

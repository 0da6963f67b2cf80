"""Exact confusion matrices of pairs of label maps.

One bincount counts how often each pair of values occurs, without masks. Which values are classes, ignored or errors is
decided afterwards on the small table of counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from volo_seg.errors import UserError

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_MAX_BINS = 2**22
_MAX_PAIRS = 2**26


@dataclass(frozen=True)
class PairCounts:
    """``counts[i, j]`` pixels (int64, CPU) have the values ``truth[i]`` and ``prediction[j]``; values are distinct."""

    truth: Tensor
    prediction: Tensor
    counts: Tensor


def count_pairs(truth: Tensor, prediction: Tensor) -> PairCounts:
    """Count the pairs of values of two integer label maps of one shape, on the device that holds ``truth``.

    Raises:
        ValueError: The shapes differ, a map has fractions, or thousands of different values.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f'label maps of shape {tuple(truth.shape)} and {tuple(prediction.shape)} differ')
    truth, prediction = _as_integers(truth), _as_integers(prediction).to(truth.device)
    if truth.numel() == 0:
        none = torch.zeros(0, dtype=torch.int64)
        return PairCounts(none, none, torch.zeros(0, 0, dtype=torch.int64))
    (low_t, high_t), (low_p, high_p) = _bounds(truth), _bounds(prediction)
    if min(low_t, low_p) >= 0 and (high_t + 1) * (high_p + 1) <= _MAX_BINS:
        counts = _histogram(truth, prediction, high_t + 1, high_p + 1)
        return PairCounts(torch.arange(high_t + 1), torch.arange(high_p + 1), counts)
    values_t, places_t = torch.unique(truth, return_inverse=True)
    values_p, places_p = torch.unique(prediction, return_inverse=True)
    if len(values_t) * len(values_p) > _MAX_PAIRS:
        raise ValueError(f'maps of {len(values_t)} and {len(values_p)} different values are not label maps')
    counts = _histogram(places_t, places_p, len(values_t), len(values_p))
    return PairCounts(values_t.long().cpu(), values_p.long().cpu(), counts)


def confusion(
    truth: Tensor,
    prediction: Tensor,
    *,
    num_classes: int,
    ignore_index: int,
    where: str,
    prediction_where: str | None = None,
    count_missed: bool = False,
) -> tuple[Tensor, int]:
    """Count one image: the confusion matrix (C, C + 1), int64 on the CPU, and the number of ignored pixels.

    Rows are true classes and columns predicted ones. The last column counts *missed* pixels, whose prediction is
    ``ignore_index``.

    Args:
        truth: (H, W) labels.
        prediction: (H, W) labels.
        num_classes: C.
        ignore_index: Value of ``truth`` that is not counted.
        where: File of ``truth``, for messages.
        prediction_where: File of ``prediction``, for messages.
        count_missed: Accept ``ignore_index`` in ``prediction``.

    Raises:
        UserError: The sizes differ, or a value is neither a class nor ``ignore_index``.
    """
    if truth.shape != prediction.shape:
        raise UserError(
            f'{where}: the ground truth is {_size(truth)} but the prediction is {_size(prediction)} pixels; '
            'score predictions of full size (a config loads annotations after it resizes the image)'
        )
    try:
        pairs = count_pairs(truth, prediction)
    except ValueError as error:
        raise UserError(f'{where}: {error}') from error
    ignored = pairs.truth == ignore_index
    rows = _classes(pairs.truth, num_classes) & ~ignored
    _refuse_truth(pairs, ~rows & ~ignored, num_classes, ignore_index, where)
    missed = (pairs.prediction == ignore_index) & count_missed
    columns = _classes(pairs.prediction, num_classes) & ~missed
    _refuse_prediction(pairs, ~columns & ~missed, num_classes, prediction_where or where)
    matrix = torch.zeros(num_classes, num_classes + 1, dtype=torch.int64)
    matrix[pairs.truth[rows, None], pairs.prediction[columns]] = pairs.counts[rows][:, columns]
    matrix[pairs.truth[rows], num_classes] = pairs.counts[rows][:, missed].sum(1)
    return matrix, int(pairs.counts[ignored].sum())


def _as_integers(labels: Tensor) -> Tensor:
    if labels.dtype in _INTEGERS:
        return labels
    integers = labels.to(torch.int64)
    if labels.is_floating_point() and not torch.equal(integers.to(labels.dtype), labels):
        raise ValueError(f'a label map must hold whole numbers, not fractions ({labels.dtype})')
    return integers


def _bounds(labels: Tensor) -> tuple[int, int]:
    if labels.dtype == torch.uint8:
        return 0, 255
    low, high = torch.aminmax(labels)
    return int(low), int(high)


def _histogram(rows: Tensor, columns: Tensor, height: int, width: int) -> Tensor:
    index = rows.to(torch.int32).mul_(width) if rows.dtype != torch.int32 else rows * width
    index.add_(columns.to(torch.int32))
    return torch.bincount(index.reshape(-1), minlength=height * width).view(height, width).cpu()


def _classes(values: Tensor, num_classes: int) -> Tensor:
    return (values >= 0) & (values < num_classes)


def _size(labels: Tensor) -> str:
    return ' x '.join(str(side) for side in labels.shape)


def _refuse_truth(pairs: PairCounts, bad: Tensor, num_classes: int, ignore_index: int, where: str) -> None:
    pixels = pairs.counts.sum(1) * bad
    found = pairs.truth[pixels > 0].tolist()
    if not found:
        return
    if found == [255]:
        fix = 'set ignore_index=255 if 255 marks pixels without a label'
    elif found == [num_classes]:
        fix = 'set reduce_zero_label=True if 0 means "none" and classes start at 1, or add the missing class'
    else:
        fix = 'name all classes of the data set, or set ignore_index to the value of unlabelled pixels'
    raise UserError(
        f'{where}: the ground truth holds {listed(found)} ({int(pixels.sum())} pixels), which is neither a '
        f'class (0..{num_classes - 1}) nor ignore_index={ignore_index}; {fix}'
    )


def _refuse_prediction(pairs: PairCounts, bad: Tensor, num_classes: int, where: str) -> None:
    found = pairs.prediction[(pairs.counts.sum(0) * bad) > 0].tolist()
    if found:
        raise UserError(
            f'{where}: the prediction holds {listed(found)}, but the data set has the classes '
            f'0..{num_classes - 1}; predict with a model of {num_classes} classes, numbered as the labels are'
        )


def listed(values: list[int], *, limit: int = 10) -> str:
    """The first ``limit`` values as text: ``19, 20 and 3 more``."""
    text = ', '.join(str(value) for value in values[:limit])
    return text if len(values) <= limit else f'{text} and {len(values) - limit} more'

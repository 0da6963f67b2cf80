"""Resizing without torch: the rule of MMCV's ``Resize`` for images, and logits to labels at the size of the image."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from volo_seg.inference.base import Prediction
from volo_seg.windows import Size

CHUNK = 4 * 2**20
"""Bytes of logits that are processed at a time; see :mod:`volo_seg.models.resize.logit_source`."""


def fitted_size(size: Size, scale: Size) -> Size:
    """The (height, width) in pixels of an image of ``size`` = (height, width) resized with a fixed aspect ratio.

    The longer side of ``scale`` bounds the longer side of the image, the shorter side of ``scale`` the shorter one.
    No side becomes shorter than one pixel.
    """
    height, width = size
    factor = min(max(scale) / max(size), min(scale) / min(size))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def prediction_from_logits(
    logits: np.ndarray,
    size: Size,
    *,
    classes: int,
    align_corners: bool = False,
    threshold: float | None = None,
    confidence: bool = False,
    probabilities: bool = False,
) -> Prediction:
    """Resize ``logits`` (C, h, w) to ``size`` = (height, width) in pixels, and compute labels and probabilities.

    Gives the same results as the PyTorch predictor. One channel stands for two classes; pixels whose sigmoid exceeds
    ``threshold`` are of the second one.
    """
    labels = np.empty(size, np.uint8 if classes <= 256 else np.int32)
    confidences = np.empty(size, np.float32) if confidence else None
    scores = np.empty((classes, *size), np.float32) if probabilities else None
    for start, rows in enlarged_rows(logits, size, align_corners=align_corners):
        part = slice(start, start + rows.shape[1])
        highest = rows.max(0)
        labels[part] = _sigmoid(rows[0]) > threshold if len(rows) == 1 else _first_equal(rows, highest, labels.dtype)
        if scores is not None:
            scores[:, part] = _probabilities(rows, highest)
        if confidences is not None:
            if len(rows) == 1:
                confidences[part] = _sigmoid(np.where(labels[part] > 0, rows[0], -rows[0]))
            else:
                confidences[part] = 1 / np.exp(rows - highest).sum(0)
    return Prediction(labels, confidences, scores)


def enlarged_rows(logits: np.ndarray, size: Size, *, align_corners: bool) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first row, rows (C, n, W)) of ``logits`` (C, h, w) resized to ``size``, bilinear as in PyTorch.

    Channels stay first, because a transposition takes several times as long as everything else.
    """
    channels, height, width = logits.shape
    count = max(1, CHUNK // (4 * channels * max(width, size[1])))
    down = axis_weights(height, size[0], align_corners=align_corners)
    across = axis_weights(width, size[1], align_corners=align_corners)
    for start in range(0, size[0], count):
        lower, upper, weight = (values[start : start + count] for values in down)
        if height == size[0]:
            block = logits[:, start : start + count]
        else:
            block = _mixed(logits[:, lower], logits[:, upper], weight[:, None])
        if width != size[1]:
            block = _mixed(block.take(across[0], 2), block.take(across[1], 2), across[2])
        yield start, block


def axis_weights(source: int, target: int, *, align_corners: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of ``target`` pixels: its two neighbours among ``source`` pixels, and the weight of the second."""
    place = np.arange(target)
    if align_corners:
        unit, place = max(target - 1, 1), place * (source - 1)
    else:
        unit = 2 * target
        place = np.clip((2 * place + 1) * source - target, 0, unit * (source - 1))
    lower = place // unit
    weight = ((place - lower * unit) / unit).astype(np.float32)
    return lower, np.minimum(lower + 1, source - 1), weight


def _mixed(first: np.ndarray, second: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """``first + weight * (second - first)``; ``second`` is overwritten."""
    second -= first
    second *= weight
    second += first
    return second


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return (0.5 * np.tanh(0.5 * values) + 0.5).astype(np.float32)


def _first_equal(rows: np.ndarray, highest: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The first channel of ``rows`` (C, n, W) with the ``highest`` value (n, W): argmax, but four times as fast."""
    labels = np.zeros(highest.shape, dtype)
    for channel in range(len(rows) - 1, -1, -1):
        np.copyto(labels, channel, where=rows[channel] == highest)
    return labels


def _probabilities(rows: np.ndarray, highest: np.ndarray) -> np.ndarray:
    if len(rows) == 1:
        second = _sigmoid(rows)
        return np.concatenate([1 - second, second])
    scores = np.exp(rows - highest)
    scores /= scores.sum(0)
    return scores

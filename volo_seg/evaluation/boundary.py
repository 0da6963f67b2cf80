"""Boundary IoU: the IoU of the pixels near the contours of two label maps.

A pixel is on the inner boundary of its region if another label or the edge of the image is at most d pixels away
(square neighbourhood). This holds if minimum and maximum of its neighbourhood differ, so that one pass serves all
classes.

Source: Cheng et al., 'Boundary IoU: Improving Object-Centric Image Segmentation Evaluation',
arXiv:2103.16562.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

DILATION_RATIO = 0.02


def boundary_distance(height: int, width: int, *, ratio: float = DILATION_RATIO) -> int:
    """The width d of the boundary in pixels: ``ratio`` times the diagonal of the image, at least 1."""
    return max(1, round(ratio * math.hypot(height, width)))


def inner_boundary(labels: Tensor, *, distance: int) -> Tensor:
    """Boolean map (H, W): whether the square of side 2 * distance + 1 around a pixel contains another label.

    ``labels`` are not negative. Pixels outside the image count as another label.
    """
    padded = torch.nn.functional.pad(labels.to(torch.int16), (distance,) * 4, value=-1)
    width = 2 * distance + 1
    lowest = _sliding(torch.minimum, _sliding(torch.minimum, padded, width, 0), width, 1)
    highest = _sliding(torch.maximum, _sliding(torch.maximum, padded, width, 0), width, 1)
    return lowest != highest


def boundary_counts(
    truth: Tensor, prediction: Tensor, *, num_classes: int, ignore_index: int, count_missed: bool = False
) -> Tensor:
    """Count the boundary pixels that agree, of the truth and of the prediction: (3, C) int64, CPU.

    Both maps are (H, W) with classes 0..C-1 or ``ignore_index`` (in the prediction with ``count_missed`` only). Ignored
    pixels of the truth are blanked in both maps: they form a contour in both, and are not counted.
    """
    ignored = truth == ignore_index
    blank = ignored | (prediction == ignore_index) if count_missed else ignored
    truth = truth.masked_fill(ignored, num_classes)
    prediction = prediction.masked_fill(blank, num_classes)
    distance = boundary_distance(*truth.shape)
    in_truth = inner_boundary(truth, distance=distance)
    in_prediction = inner_boundary(prediction, distance=distance)
    agree = in_truth & in_prediction & (truth == prediction)
    parts = ((agree, truth), (in_truth, truth), (in_prediction, prediction))
    kept = [torch.where(mask, labels, num_classes).reshape(-1) for mask, labels in parts]
    return torch.stack([torch.bincount(labels, minlength=num_classes + 1)[:num_classes].cpu() for labels in kept])


def _sliding(reduce: Callable[[Tensor, Tensor], Tensor], values: Tensor, width: int, dim: int) -> Tensor:
    """``reduce`` (minimum or maximum) over windows of ``width`` along ``dim``; the window doubles at each step."""
    covered = 1
    while covered < width:
        step = min(covered, width - covered)
        length = values.shape[dim] - step
        values = reduce(values.narrow(dim, 0, length), values.narrow(dim, step, length))
        covered += step
    return values

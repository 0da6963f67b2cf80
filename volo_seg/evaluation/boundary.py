"""Boundary IoU: agreement of two label maps near the contours of their regions.

A pixel is on the inner boundary of its region if something else (another label, or the edge of the image)
lies within d pixels of it (square neighbourhood). That depends on the extremes of its neighbourhood alone, so
one pass serves all classes.

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
    """Width d of the boundary in pixels: a share of the image's diagonal, at least 1."""
    return max(1, round(ratio * math.hypot(height, width)))


def inner_boundary(labels: Tensor, *, distance: int) -> Tensor:
    """Boolean map (H, W): does the window of 2 * distance + 1 pixels around a pixel hold another label?

    ``labels`` are not negative; what lies outside the image counts as different.
    """
    padded = torch.nn.functional.pad(labels.to(torch.int16), (distance,) * 4, value=-1)
    width = 2 * distance + 1
    lowest = _sliding(torch.minimum, _sliding(torch.minimum, padded, width, 0), width, 1)
    highest = _sliding(torch.maximum, _sliding(torch.maximum, padded, width, 0), width, 1)
    return lowest != highest


def boundary_counts(
    truth: Tensor, prediction: Tensor, *, num_classes: int, ignore_index: int, count_missed: bool = False
) -> Tensor:
    """(3, C) int64 on the CPU: boundary pixels that agree, those of the truth, those of the prediction.

    Both maps are (H, W) with classes 0..C-1 or ``ignore_index`` (in the prediction: with ``count_missed``).
    Ignored pixels of the truth are blanked in both maps: they draw a contour in both, but do not count.
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
    return torch.stack([_per_class(labels, mask, num_classes) for mask, labels in parts])


def _per_class(labels: Tensor, mask: Tensor, num_classes: int) -> Tensor:
    kept = torch.where(mask, labels, num_classes).reshape(-1)
    return torch.bincount(kept, minlength=num_classes + 1)[:num_classes].cpu()


def _sliding(pick: Callable[[Tensor, Tensor], Tensor], values: Tensor, width: int, dim: int) -> Tensor:
    """``pick`` (minimum or maximum) over windows of ``width`` along ``dim``, doubling at each step."""
    reach = 1
    while reach < width:
        step = min(reach, width - reach)
        length = values.shape[dim] - step
        values = pick(values.narrow(dim, 0, length), values.narrow(dim, step, length))
        reach += step
    return values

"""Find labels that are probably wrong: where a trained model disagrees most, most confidently and unlike elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

THIN = 0.01
"""Pixels of a region within this distance from its edge do not count, as a share of the shorter side of the image."""
SMALLEST = 0.001
"""Smallest number of pixels of a pair of classes that is looked at, as a share of the image."""
FURTHEST, SIDE = 8, 240
"""Shifts are tried up to the longer side divided by ``FURTHEST``, in steps of a pixel of a map of ``SIDE`` pixels."""
COMMON = 10.0
"""How much the usual confusion of two classes counts against a region."""


@dataclass(frozen=True)
class Region:
    """A connected region in which the label is ``label`` and the prediction ``predicted``.

    ``box`` is (left, top, right, bottom) in pixels, right and bottom excluded; ``outline`` are its contours (N, 1, 2).
    ``mass`` is the sum of the margins of its inner pixels, as a share of the image; ``score`` is set by :func:`rank`.
    """

    label: int
    predicted: int
    box: tuple[int, int, int, int]
    confidence: float
    mass: float
    outline: tuple[np.ndarray, ...]
    score: float = 0.0


@dataclass(frozen=True)
class ImageReview:
    """The disagreements in one image.

    Attributes:
        regions: Connected regions of one label and one prediction.
        masses: (C, C) sums of their masses by label and prediction.
        labelled: (C,) share of each label in the image.
        shift: (x, y) in pixels by which the labels have to be moved to agree best with the prediction.
        gain: By how much they then agree better: difference of the mean probabilities of the labels.
    """

    regions: tuple[Region, ...]
    masses: np.ndarray
    labelled: np.ndarray
    shift: tuple[int, int]
    gain: float


@dataclass(frozen=True)
class Suspect:
    """An image with its score (share of the image whose labels are probably wrong) and its regions, worst first."""

    index: int
    score: float
    regions: tuple[Region, ...]
    shift: tuple[int, int] | None


def review_image(labels: np.ndarray, probabilities: np.ndarray) -> ImageReview:
    """Compare ``labels`` (H, W), of which those of C and above are ignored, with ``probabilities`` (C, H, W)."""
    classes, (height, width) = len(probabilities), labels.shape
    predicted = probabilities.argmax(0)
    valid = labels < classes
    known = np.where(valid, labels, 0).astype(np.int64)
    confidence = probabilities.max(0)
    margin = confidence - np.take_along_axis(probabilities, known[None], 0)[0]
    pairs = np.where(valid & (known != predicted), known * classes + predicted, -1)
    counts = np.bincount(pairs[pairs >= 0], minlength=classes * classes)
    masses, regions = np.zeros((classes, classes)), []
    for pair in np.flatnonzero(counts >= SMALLEST * labels.size):
        part = (pairs == pair).astype(np.uint8)
        depth = cv2.distanceTransform(np.pad(part, 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
        inner = depth > THIN * min(height, width)
        count, parts, boxes, _ = cv2.connectedComponentsWithStats(part, connectivity=8)
        sums = np.bincount(parts[inner], margin[inner], minlength=count) / labels.size
        label, other = divmod(int(pair), classes)
        masses[label, other] = sums.sum()
        for number in np.flatnonzero(sums > 0):
            x, y, w, h = (int(value) for value in boxes[number, :4])
            region = (parts[y : y + h, x : x + w] == number).astype(np.uint8)
            outline, _ = cv2.findContours(region, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=(x, y))
            mean = float(confidence[y : y + h, x : x + w][region > 0].mean())
            regions.append(Region(label, other, (x, y, x + w, y + h), mean, float(sums[number]), tuple(outline)))
    labelled = np.bincount(known[valid], minlength=classes) / labels.size
    return ImageReview(tuple(regions), masses, labelled, *_best_shift(np.where(valid, labels, classes), probabilities))


def rank(reviews: Sequence[ImageReview]) -> list[Suspect]:
    """The images, the most suspicious first.

    The score of a region is ``mass**2 / (mass + COMMON * usual)``: ``usual`` is the mass that its pair of classes has
    in an image on average, or has for so many pixels of the label, in the other images. What the model always
    confuses, thin classes for example, therefore counts little. The score of an image is that of its worst region, or
    the gain of the best shift if that is larger.
    """
    masses = np.sum([review.masses for review in reviews], axis=0)
    labelled = np.sum([review.labelled for review in reviews], axis=0)
    suspects = []
    for index, review in enumerate(reviews):
        others = masses - review.masses
        average = others / max(1, len(reviews) - 1)
        rate = others / np.maximum(labelled - review.labelled, 1e-9)[:, None]
        usual = np.maximum(average, rate * review.labelled[:, None])
        scored = [
            Region(**{**vars(one), 'score': one.mass**2 / (one.mass + COMMON * usual[one.label, one.predicted])})
            for one in review.regions
        ]
        scored.sort(key=lambda region: -region.score)
        worst = scored[0].score if scored else 0.0
        shifted = review.gain > worst and review.shift != (0, 0)
        score = max(worst, review.gain if shifted else 0.0)
        suspects.append(Suspect(index, float(score), tuple(scored), review.shift if shifted else None))
    return sorted(suspects, key=lambda suspect: -suspect.score)


def _best_shift(labels: np.ndarray, probabilities: np.ndarray) -> tuple[tuple[int, int], float]:
    """The shift (x, y) of ``labels`` with the largest mean probability, and its difference to that without a shift."""
    classes = len(probabilities)
    step = max(1, round(max(labels.shape) / SIDE))
    small = labels[::step, ::step]
    height, width = small.shape
    padded = (2 * height, 2 * width)
    agreement = np.zeros((padded[0], width + 1), np.complex128)
    for label in np.unique(small[small < classes]):
        likely = np.fft.rfft2(probabilities[label, ::step, ::step].astype(np.float64), padded)
        agreement += likely * np.fft.rfft2(small == label, padded).conj()
    overlap = np.fft.rfft2(np.ones_like(small, np.float64), padded) * np.fft.rfft2(small < classes, padded).conj()
    far = max(1, max(small.shape) // FURTHEST)
    tried = [np.r_[0 : min(far, side - 1) + 1, -min(far, side - 1) : 0] for side in (height, width)]
    sums, pixels = (np.fft.irfft2(part, padded)[np.ix_(*tried)] for part in (agreement, overlap))
    mean = sums / np.maximum(pixels, 1)
    row, column = np.unravel_index(mean.argmax(), mean.shape)
    return (int(tried[1][column]) * step, int(tried[0][row]) * step), float(mean[row, column] - mean[0, 0])

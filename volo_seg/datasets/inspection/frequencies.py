"""How often each class occurs, and class weights from that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from volo_seg.datasets.inspection.observation import Observation
from volo_seg.datasets.inspection.splits import Split

METHODS = ('inverse', 'median')


@dataclass(frozen=True)
class Frequencies:
    """Per class of a split, each (C,): its pixels, the images it is in, and the counted pixels of those images."""

    pixels: npt.NDArray[np.int64]
    images: npt.NDArray[np.int64]
    pixels_around: npt.NDArray[np.int64]
    ignored: int
    out_of_range: int

    @property
    def shares(self) -> npt.NDArray[np.float64]:
        """Share of each class among the counted pixels, in [0, 1]."""
        return self.pixels / max(1, int(self.pixels.sum()))


def count_classes(split: Split, observations: Sequence[Observation]) -> Frequencies:
    """Count the classes as training sees them."""
    classes = len(split.classes)
    pixels, images, around = (np.zeros(classes, np.int64) for _ in range(3))
    ignored = out_of_range = 0
    for seen in observations:
        here = np.zeros(classes, np.int64)
        for value, count in seen.values.items():
            label = int(split.lookup[value])
            if label < classes:
                here[label] += count
            elif label == split.ignore_index:
                ignored += count
            else:
                out_of_range += count
        pixels += here
        images += here > 0
        around += np.where(here > 0, here.sum(), 0)
    return Frequencies(pixels, images, around, ignored, out_of_range)


def class_weights(frequencies: Frequencies, method: str) -> list[float]:
    """A weight a class for the loss; 1 for a class that never occurs, which no pixel will use.

    ``inverse``: proportional to 1 / pixels, scaled so that the mean weight over pixels is 1.
    ``median``: median frequency balancing, frequency = pixels / pixels of the images with the class
    (Source: arXiv 1411.4734).
    """
    seen = frequencies.pixels > 0
    weights = np.ones(len(seen))
    if method == 'inverse':
        weights[seen] = frequencies.pixels.sum() / (seen.sum() * frequencies.pixels[seen])
    elif method == 'median':
        frequency = frequencies.pixels[seen] / frequencies.pixels_around[seen]
        weights[seen] = np.median(frequency) / frequency
    else:
        raise ValueError(f'method={method!r} is not one of {METHODS}')
    return [float(f'{weight:.6g}') for weight in weights]

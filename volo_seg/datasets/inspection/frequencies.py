"""Count how often each class occurs, and compute class weights from the counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from mmengine.config import Config

from volo_seg.datasets.inspection.check import label_counts
from volo_seg.datasets.inspection.observation import Observation
from volo_seg.datasets.inspection.splits import Split, read_splits
from volo_seg.errors import UserError

METHODS = ('inverse', 'median', 'sqrt')


@dataclass(frozen=True)
class Frequencies:
    """The frequencies of the C classes of a split.

    Attributes:
        pixels: (C,) pixels of each class.
        images: (C,) images that contain each class.
        pixels_around: (C,) pixels of all classes in the images that contain each class.
        ignored: Ignored pixels.
        out_of_range: Pixels whose label is neither a class nor ignored.
    """

    pixels: npt.NDArray[np.int64]
    images: npt.NDArray[np.int64]
    pixels_around: npt.NDArray[np.int64]
    ignored: int
    out_of_range: int

    @property
    def shares(self) -> npt.NDArray[np.float64]:
        """(C,) the share of each class in the counted pixels, in [0, 1]."""
        return self.pixels / max(1, int(self.pixels.sum()))


def count_classes(split: Split, observations: Sequence[Observation]) -> Frequencies:
    """Count the classes in the observed label images, after ``reduce_zero_label`` and ``label_map`` of the data set."""
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
    """The weight of each class in the loss; 1 for a class that does not occur.

    ``inverse`` is proportional to 1 / pixels, with a mean weight over pixels of 1. ``median`` is median frequency
    balancing, with frequency = pixels / pixels of the images that contain the class (Source: arXiv 1411.4734). ``sqrt``
    is its square root, which costs frequent classes less.
    """
    seen = frequencies.pixels > 0
    weights = np.ones(len(seen))
    if method == 'inverse':
        weights[seen] = frequencies.pixels.sum() / (seen.sum() * frequencies.pixels[seen])
    elif method in METHODS:
        frequency = frequencies.pixels[seen] / frequencies.pixels_around[seen]
        weights[seen] = (np.median(frequency) / frequency) ** (0.5 if method == 'sqrt' else 1)
    else:
        raise ValueError(f'method={method!r} is not one of {METHODS}')
    return [float(f'{weight:.6g}') for weight in weights]


def repeats(config: Config, place: str) -> int:
    """How often one pass over the training data reads the data set at the dotted ``place`` of ``config``."""
    times, part = 1, config
    for key in place.split('.'):
        part = part[int(key)] if isinstance(part, (list, tuple)) else part[key]
        if isinstance(part, Mapping) and part.get('type') == 'RepeatDataset':
            times *= part['times']
    return times


def training_weights(config: Config, method: str, *, processes: int) -> list[float]:
    """The class weights by ``method`` (see :func:`class_weights`) from all labels of the training split of ``config``.

    The labels of a data set in a ``RepeatDataset`` count as often as it is repeated.

    Raises:
        UserError: There are no labels to count.
    """
    counts = []
    for split in read_splits(config, 'train'):
        seen = count_classes(split, label_counts(split, processes=processes))
        times = repeats(config, split.place)
        counts.append(Frequencies(**{key: times * value for key, value in vars(seen).items()}))
    if not sum(int(count.pixels.sum()) for count in counts):
        raise UserError('no training label was counted for class weights; run volo-seg check to see why')
    return class_weights(
        Frequencies(
            pixels=sum((count.pixels for count in counts), np.zeros_like(counts[0].pixels)),
            images=sum((count.images for count in counts), np.zeros_like(counts[0].images)),
            pixels_around=sum((count.pixels_around for count in counts), np.zeros_like(counts[0].pixels_around)),
            ignored=sum(count.ignored for count in counts),
            out_of_range=sum(count.out_of_range for count in counts),
        ),
        method,
    )

"""Class weights from all training labels of a config."""

from __future__ import annotations

from functools import reduce

from mmengine.config import Config

from volo_seg.datasets.inspection.check import Watch, label_counts
from volo_seg.datasets.inspection.frequencies import Frequencies, class_weights, count_classes
from volo_seg.datasets.inspection.splits import read_splits
from volo_seg.errors import UserError


def training_weights(config: Config, method: str, *, processes: int, watch: Watch | None = None) -> list[float]:
    """A weight a class by ``method`` (see :func:`.class_weights`), from the labels of all parts of the train split.

    Raises:
        UserError: There is no label to count.
    """
    splits = list(read_splits(config, 'train'))
    counts = [count_classes(split, label_counts(split, processes=processes, watch=watch)) for split in splits]
    total = reduce(_sum, counts) if counts else None
    if total is None or not total.pixels.any():
        raise UserError('no training label could be counted for class weights; volo-seg check says why')
    return class_weights(total, method)


def _sum(one: Frequencies, other: Frequencies) -> Frequencies:
    return Frequencies(
        one.pixels + other.pixels,
        one.images + other.images,
        one.pixels_around + other.pixels_around,
        one.ignored + other.ignored,
        one.out_of_range + other.out_of_range,
    )

"""Random crops that contain a given class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mmseg.datasets.transforms
import numpy as np

from volo_seg import registry


@registry.TRANSFORMS.register_module()
class RandomCrop(mmseg.datasets.transforms.RandomCrop):
    """MMSegmentation's ``RandomCrop``; a sample with the key ``rare_class`` is cropped so that it keeps a pixel of it.

    :class:`.RareClassDataset` and :class:`.CopyPasteDataset` set that key. A pixel of the class is drawn, and then one
    of the crops that contain it, all alike. Without the key, or where no pixel of the class is left, this is
    MMSegmentation's transform. A config selects it with ``dict(type='RandomCrop', _scope_='volo_seg')``.

    Args:
        crop_size: (height, width) of the crop in pixels, or its side.
        cat_max_ratio: The crop is drawn anew, up to ten times, while one class has more than this share of it.
        ignore_index: The label that does not count for that share.
    """

    def __init__(self, *, crop_size: int | Sequence[int], cat_max_ratio: float = 1.0, ignore_index: int = 255) -> None:
        super().__init__(crop_size if isinstance(crop_size, int) else tuple(crop_size), cat_max_ratio, ignore_index)

    def crop_bbox(self, results: dict[str, Any]) -> tuple[int, int, int, int]:
        """Top, bottom, left and right of the crop."""
        labels = results['gt_seg_map']
        found = np.flatnonzero(labels == results['rare_class']) if 'rare_class' in results else ()
        if not len(found):
            return super().crop_bbox(results)
        for _ in range(10):
            row, column = divmod(int(np.random.choice(found)), labels.shape[1])  # noqa: NPY002
            top, bottom = _interval(row, labels.shape[0], self.crop_size[0])
            left, right = _interval(column, labels.shape[1], self.crop_size[1])
            box = top, bottom, left, right
            if self.cat_max_ratio >= 1:
                break
            values, counts = np.unique(self.crop(labels, box), return_counts=True)
            counts = counts[values != self.ignore_index]
            if len(counts) > 1 and counts.max() < self.cat_max_ratio * counts.sum():
                break
        return box


def _interval(place: int, side: int, crop: int) -> tuple[int, int]:
    """A random interval of length ``crop`` in [0, ``side``) that contains ``place``."""
    most = max(side - crop, 0)
    start = int(np.random.randint(max(0, min(place - crop + 1, most)), min(place, most) + 1))  # noqa: NPY002
    return start, start + crop

"""The label table of Cityscapes: 35 names with their ids, training ids and colours.

Source: Cordts et al., 'The Cityscapes Dataset for Semantic Urban Scene Understanding', arXiv:1604.01685,
and the table published with cityscapesScripts 2.3.0 (``helpers/labels.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

IGNORE = 255


@dataclass(frozen=True)
class Label:
    """A row of the table.

    Attributes:
        name: Name of the label.
        id: Value in ``labelIds``.
        train_id: Class in training; 255 is ignored, -1 does not occur in label images.
        color: RGB.
        ignored: Whether the label is left out of the evaluation.
        has_instances: Whether single objects have numbers.
    """

    name: str
    id: int
    train_id: int
    color: tuple[int, int, int]
    ignored: bool
    has_instances: bool


# name, id, training id, RGB, has instances
_ROWS: tuple[tuple[str, int, int, tuple[int, int, int], bool], ...] = (
    ('unlabeled', 0, IGNORE, (0, 0, 0), False),
    ('ego vehicle', 1, IGNORE, (0, 0, 0), False),
    ('rectification border', 2, IGNORE, (0, 0, 0), False),
    ('out of roi', 3, IGNORE, (0, 0, 0), False),
    ('static', 4, IGNORE, (0, 0, 0), False),
    ('dynamic', 5, IGNORE, (111, 74, 0), False),
    ('ground', 6, IGNORE, (81, 0, 81), False),
    ('road', 7, 0, (128, 64, 128), False),
    ('sidewalk', 8, 1, (244, 35, 232), False),
    ('parking', 9, IGNORE, (250, 170, 160), False),
    ('rail track', 10, IGNORE, (230, 150, 140), False),
    ('building', 11, 2, (70, 70, 70), False),
    ('wall', 12, 3, (102, 102, 156), False),
    ('fence', 13, 4, (190, 153, 153), False),
    ('guard rail', 14, IGNORE, (180, 165, 180), False),
    ('bridge', 15, IGNORE, (150, 100, 100), False),
    ('tunnel', 16, IGNORE, (150, 120, 90), False),
    ('pole', 17, 5, (153, 153, 153), False),
    ('polegroup', 18, IGNORE, (153, 153, 153), False),
    ('traffic light', 19, 6, (250, 170, 30), False),
    ('traffic sign', 20, 7, (220, 220, 0), False),
    ('vegetation', 21, 8, (107, 142, 35), False),
    ('terrain', 22, 9, (152, 251, 152), False),
    ('sky', 23, 10, (70, 130, 180), False),
    ('person', 24, 11, (220, 20, 60), True),
    ('rider', 25, 12, (255, 0, 0), True),
    ('car', 26, 13, (0, 0, 142), True),
    ('truck', 27, 14, (0, 0, 70), True),
    ('bus', 28, 15, (0, 60, 100), True),
    ('caravan', 29, IGNORE, (0, 0, 90), True),
    ('trailer', 30, IGNORE, (0, 0, 110), True),
    ('train', 31, 16, (0, 80, 100), True),
    ('motorcycle', 32, 17, (0, 0, 230), True),
    ('bicycle', 33, 18, (119, 11, 32), True),
    ('license plate', -1, -1, (0, 0, 142), False),
)

LABELS: tuple[Label, ...] = tuple(
    Label(name, id_, train_id, color, ignored=train_id in (IGNORE, -1), has_instances=has_instances)
    for name, id_, train_id, color, has_instances in _ROWS
)
BY_NAME: dict[str, Label] = {label.name: label for label in LABELS}
TRAIN_LABELS: tuple[Label, ...] = tuple(
    sorted((label for label in LABELS if not label.ignored), key=lambda label: label.train_id)
)


def id_to_train_id() -> npt.NDArray[Any]:
    """Return a (256,) uint8 table from label id to training id; 255 where a label is not trained."""
    table = np.full(256, IGNORE, np.uint8)
    for label in TRAIN_LABELS:
        table[label.id] = label.train_id
    return table


def train_id_to_id() -> npt.NDArray[Any]:
    """Return a (256,) uint8 table from training id (0..18) to label id; 0 (unlabeled) for all others."""
    table = np.zeros(256, np.uint8)
    for label in TRAIN_LABELS:
        table[label.train_id] = label.id
    return table


def id_to_color() -> npt.NDArray[Any]:
    """Return a (256, 3) uint8 table from label id to RGB colour; black for unused ids."""
    table = np.zeros((256, 3), np.uint8)
    for label in LABELS:
        if label.id >= 0:
            table[label.id] = label.color
    return table


def train_palette() -> npt.NDArray[Any]:
    """Return the (19, 3) uint8 RGB colours of the training classes, in their order."""
    return np.array([label.color for label in TRAIN_LABELS], np.uint8)


def train_names() -> tuple[str, ...]:
    """Return the 19 names of the training classes, in their order."""
    return tuple(label.name for label in TRAIN_LABELS)

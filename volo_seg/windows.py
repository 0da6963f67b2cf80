"""The grid of sliding windows and the ``test_cfg`` that describes it. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from volo_seg.errors import UserError

Size = tuple[int, int]
MAX_WINDOWS = 16
"""Upper bound of ``batch_windows='auto'``; larger batches are not faster."""
WINDOW_WEIGHTS: dict[str, Callable[[float], float]] = {
    'uniform': lambda position: 1.0,
    'hann': lambda position: math.sin(math.pi * position) ** 2,
    'gaussian': lambda position: math.exp(-32 * (position - 0.5) ** 2),  # sigma is 1/8 of the window
}
"""Weight (above 0) of a pixel by its position in (0, 1) along one side of its window."""


@dataclass(frozen=True)
class InferenceConfig:
    """The validated ``test_cfg`` of :class:`~volo_seg.models.VOLOSegmentor`.

    Args:
        mode: ``'whole'`` or ``'slide'``.
        crop_size: (height, width) of a window in pixels.
        stride: (vertical, horizontal) distance between windows in pixels, at most ``crop_size``.
        window_weights: Weight of a pixel in the mean over overlapping windows: ``'uniform'`` (as in MMSegmentation), or
            ``'hann'`` or ``'gaussian'``, which decrease towards the border of the window and so hide seams.
        batch_windows: Number of windows in one forward pass. ``'auto'`` is 1 on a CPU; on a GPU it is the number that
            fits into half of the free memory, measured with the first window, at most ``MAX_WINDOWS``.
        logits_budget: Memory in MiB that converting the head's output to labels may use at a time.
        keep_logits: Store ``seg_logits`` at image size in each result instead of computing them on access.
    """

    mode: str = 'whole'
    crop_size: Size = (0, 0)
    stride: Size = (0, 0)
    window_weights: str = 'uniform'
    batch_windows: int | str = 'auto'
    logits_budget: float = 64.0
    keep_logits: bool = False

    @classmethod
    def from_test_cfg(cls, test_cfg: Mapping[str, Any] | None) -> InferenceConfig:
        """Validate ``test_cfg``; keys that are not fields of this class are ignored.

        Raises:
            UserError: A value is missing or invalid, or the windows do not cover the image.
        """
        given = {key: value for key, value in (test_cfg or {}).items() if key in cls.__dataclass_fields__}
        mode = given.get('mode', 'whole')
        if mode not in ('whole', 'slide'):
            raise UserError(f"test_cfg.mode={mode!r} is not known; choose 'whole' or 'slide'")
        crop = stride = (0, 0)
        if mode == 'slide':
            crop, stride = (_check_size(key, given.get(key)) for key in ('crop_size', 'stride'))
            if stride[0] > crop[0] or stride[1] > crop[1]:
                raise UserError(
                    f'test_cfg.stride={stride} is larger than test_cfg.crop_size={crop} and leaves pixels between '
                    'windows; make it smaller'
                )
        config = cls(**{**given, 'crop_size': crop, 'stride': stride})
        if config.window_weights not in WINDOW_WEIGHTS:
            *others, last = map(repr, WINDOW_WEIGHTS)
            raise UserError(
                f'test_cfg.window_weights={config.window_weights!r} is not known; choose {", ".join(others)} or {last}'
            )
        if config.batch_windows != 'auto' and not _is_positive_int(config.batch_windows):
            raise UserError(
                f"test_cfg.batch_windows={config.batch_windows!r} must be a number of windows, 1 or more, or 'auto'"
            )
        budget = config.logits_budget
        if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not budget > 0:
            raise UserError(f'test_cfg.logits_budget={budget!r} must be a number of MiB above 0')
        return config

    @property
    def budget(self) -> int:
        """``logits_budget`` in bytes."""
        return int(self.logits_budget * 2**20)


def _check_size(key: str, value: Any) -> Size:
    if not isinstance(value, (tuple, list)) or len(value) != 2 or not all(map(_is_positive_int, value)):
        raise UserError(f"test_cfg.{key}={value!r} must be (height, width) in pixels for test_cfg.mode='slide'")
    return value[0], value[1]


def _is_positive_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


class WindowGrid:
    """Windows of one size that cover an image; iterating yields (top, left) in pixels, row by row.

    Args:
        image: (height, width) of the image in pixels.
        crop_size: (height, width) of a window; the part of it that the image has if the image is smaller.
        stride: (vertical, horizontal) distance between windows.

    Attributes:
        image: As given.
        size: (height, width) of every window.
        tops, lefts: First rows and first columns of the windows.
    """

    def __init__(self, image: Size, *, crop_size: Size, stride: Size) -> None:
        self.image = image
        self.size = min(crop_size[0], image[0]), min(crop_size[1], image[1])
        self.tops, self.lefts = (window_starts(*axis) for axis in zip(image, self.size, stride, strict=True))

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)

    def __iter__(self) -> Iterator[Size]:
        return ((top, left) for top in self.tops for left in self.lefts)


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows along an axis of ``length`` pixels; the last window ends at the border."""
    last = max(length - window, 0)
    return [min(start, last) for start in range(0, last + stride, stride)]


def window_profile(kind: str, length: int) -> tuple[float, ...]:
    """Weights of the ``length`` pixels along one side of a window; ``kind`` is a key of ``WINDOW_WEIGHTS``."""
    return tuple(WINDOW_WEIGHTS[kind]((pixel + 0.5) / length) for pixel in range(length))

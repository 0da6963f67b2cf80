"""Sliding windows: what a config asks for, where they lie, how many fit into memory at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from volo_seg.errors import UserError

Size = tuple[int, int]
LOGITS_BUDGET = 64.0
"""MiB; see :class:`InferenceConfig`."""
MOST_WINDOWS = 16
"""Windows at once at most when their number is chosen here; more gain nothing."""
WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    'uniform': torch.ones_like,
    'hann': lambda place: torch.sin(math.pi * place) ** 2,
    'gaussian': lambda place: torch.exp(-32 * (place - 0.5) ** 2),
}
"""What a pixel at ``place`` in (0, 1) along a window counts, above 0; the sigma of ``'gaussian'`` is 1/8 of it."""


@dataclass(frozen=True)
class InferenceConfig:
    """``test_cfg`` of the segmentor, checked.

    Args:
        mode: ``'whole'`` image at once, or ``'slide'``.
        crop_size: (height, width) of a window, pixels.
        stride: (down, across) from window to window, pixels, at most ``crop_size``.
        window_weights: ``'uniform'`` takes the plain mean where windows overlap, as MMSegmentation does; ``'hann'`` and
            ``'gaussian'`` count a pixel less towards the sides of its window, which hides the seams.
        batch_windows: Windows that go through the network together; ``'auto'`` takes one on a CPU, and on a GPU as
            many as fit into half of its free memory (measured with the first window), 16 at most.
        logits_budget: MiB that computing labels from the network's output may take at a time.
        keep_logits: Keep ``seg_logits`` of image size in each result; otherwise they are computed when looked at.

    Raises:
        UserError: A value is missing, of the wrong kind, or leaves pixels between windows.
    """

    mode: str = 'whole'
    crop_size: Size = (0, 0)
    stride: Size = (0, 0)
    window_weights: str = 'uniform'
    batch_windows: int | str = 'auto'
    logits_budget: float = LOGITS_BUDGET
    keep_logits: bool = False

    @classmethod
    def of(cls, config: Mapping[str, Any] | None) -> InferenceConfig:
        """Read ``test_cfg``; keys that are not of this class are other people's and stay unread."""
        config = config or {}
        mode = config.get('mode', 'whole')
        if mode not in ('whole', 'slide'):
            raise UserError(f"test_cfg.mode={mode!r} is not known; choose 'whole' or 'slide'")
        crop = stride = (0, 0)
        if mode == 'slide':
            crop, stride = _pair(config, 'crop_size'), _pair(config, 'stride')
            if stride[0] > crop[0] or stride[1] > crop[1]:
                raise UserError(
                    f'test_cfg.stride={stride} is larger than test_cfg.crop_size={crop} and leaves pixels between '
                    'windows; make it smaller'
                )
        return cls(
            mode,
            crop,
            stride,
            _weights(config.get('window_weights', 'uniform')),
            _batch(config.get('batch_windows', 'auto')),
            _budget(config.get('logits_budget', LOGITS_BUDGET)),
            bool(config.get('keep_logits', False)),
        )

    @property
    def budget(self) -> int:
        """``logits_budget`` in bytes."""
        return int(self.logits_budget * 2**20)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _pair(config: Mapping[str, Any], key: str) -> Size:
    value = config.get(key)
    if not isinstance(value, (tuple, list)) or len(value) != 2 or not all(_is_count(v) for v in value):
        raise UserError(f"test_cfg.{key}={value!r} must be (height, width) in pixels for test_cfg.mode='slide'")
    return value[0], value[1]


def _weights(value: Any) -> str:
    if value not in WEIGHTS:
        raise UserError(f'test_cfg.window_weights={value!r} is not known; choose {known_weights()}')
    return value


def known_weights() -> str:
    """The kinds of weights, for a message."""
    *others, last = map(repr, WEIGHTS)
    return f'{", ".join(others)} or {last}'


def _batch(value: Any) -> int | str:
    if value != 'auto' and not _is_count(value):
        raise UserError(f"test_cfg.batch_windows={value!r} must be a number of windows, 1 or more, or 'auto'")
    return value


def _budget(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise UserError(f'test_cfg.logits_budget={value!r} must be a number of MiB above 0')
    return float(value)


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows along one axis; the last one ends at the border, a short axis has one."""
    last = max(length - window, 0)
    return [min(start, last) for start in range(0, last + stride, stride)]


@dataclass(frozen=True)
class WindowGrid:
    """Windows of one ``size`` over an ``image``, row by row: iterating gives each one's (top, left), in pixels."""

    image: Size
    size: Size
    downs: list[int]
    acrosses: list[int]

    @classmethod
    def over(cls, image: Size, config: InferenceConfig) -> WindowGrid:
        """The windows that ``config`` asks for; an image that is smaller than a window has smaller windows."""
        size = (min(config.crop_size[0], image[0]), min(config.crop_size[1], image[1]))
        downs, acrosses = (window_starts(*axis) for axis in zip(image, size, config.stride, strict=True))
        return cls(image, size, downs, acrosses)

    def __len__(self) -> int:
        return len(self.downs) * len(self.acrosses)

    def __iter__(self) -> Iterator[Size]:
        return ((top, left) for top in self.downs for left in self.acrosses)


def window_profile(kind: str, length: int) -> Tensor:
    """What each of ``length`` pixels along one side of a window counts (float64, above 0); see :data:`WEIGHTS`."""
    return WEIGHTS[kind]((torch.arange(length, dtype=torch.float64) + 0.5) / length)


def windows_that_fit(first: int, device: torch.device) -> int:
    """How many windows go into half of the free memory of a GPU, if one takes ``first`` bytes; at least one."""
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(1, min(MOST_WINDOWS, free // 2 // max(first, 1)))


def measured_on_gpu(run: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, int]:
    """What ``run`` returns, and the bytes that it took on ``device`` at the worst moment."""
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = run()
    return result, torch.cuda.max_memory_allocated(device) - before

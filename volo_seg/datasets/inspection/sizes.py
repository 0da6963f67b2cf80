"""Sizes of training images, and the crop of a config chosen by them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from statistics import median_low
from typing import Any

from mmengine.config import Config

from volo_seg.config.sizes import SMALLEST_CROP, set_crop, steps
from volo_seg.datasets.inspection.check import evenly
from volo_seg.datasets.inspection.splits import read_splits
from volo_seg.image_files import ImageError, open_image, stored_orientation
from volo_seg.io import read_regular
from volo_seg.windows import Size

COUNT = 100
"""Images of a training set that are measured."""
SMALL_SHARE = 0.02
"""Share of an image that a crop should show at least."""


def image_sizes(config: Config, *, count: int = COUNT) -> list[Size]:
    """(height, width) as loaded of ``count`` evenly spread training images; unreadable ones are left out.

    Raises:
        UserError: The data set of the config cannot be read.
    """
    pairs = [pair for split in read_splits(config, 'train') for pair in split.pairing.pairs]
    sizes = []
    for path, _ in evenly(pairs, count):
        try:
            content = read_regular(path)
            image = open_image(io.BytesIO(content), name='image')
            turned = image.format != 'TIFF' and stored_orientation(image, content, name='image') > 4
        except (OSError, ImageError):
            continue
        sizes.append(image.size if turned else image.size[::-1])
    return sizes


def fit_crop(config: Config) -> str | None:
    """Shrink the training crop of ``config`` to its images if ``crop_from_data`` is set, and describe all sizes.

    A side of the crop becomes the smallest multiple of 32 that covers the median image, if that is less than what the
    config says. Returns the sentence for the log; None for a config without ``crop_from_data``, or without images that
    can be read.
    """
    sizes = image_sizes(config) if 'crop_from_data' in config else []
    cut = next((step for step in steps(config, 'train') if step['type'] == 'RandomCrop'), None)
    if not sizes or cut is None:
        return None
    median = _median(sizes)
    if config.crop_from_data:
        unit = SMALLEST_CROP
        fitted = tuple(min(side, -(-most // unit) * unit) for side, most in zip(cut['crop_size'], median, strict=True))
        if fitted != tuple(cut['crop_size']):
            set_crop(config, (fitted[0], fitted[1]))
    return _sentence(config, sizes, median, tuple(cut['crop_size']))


def _median(sizes: Sequence[Size]) -> Size:
    return median_low(height for height, _ in sizes), median_low(width for _, width in sizes)


def _sentence(config: Config, sizes: Sequence[Size], median: Size, crop: Size) -> str:
    least, most = min(sizes, key=lambda size: size[0] * size[1]), max(sizes, key=lambda size: size[0] * size[1])
    range_ = '' if least == most else f' (median; {_text(least)} to {_text(most)})'
    resize: Any = next((step for step in steps(config, 'train') if step['type'] == 'RandomResize'), {})
    low, high = resize.get('ratio_range') or (1.0, 1.0)
    fit = f'{resize["scale"][0]}x{resize["scale"][1]}' if resize.get('scale') else 'their size'
    test: Any = next((step for step in steps(config, 'val') if step['type'] == 'Resize'), {})
    tested = 'their own size'
    if test.get('scale'):
        tested = f'a size within {test["scale"][0]}x{test["scale"][1]}'
    elif test.get('scale_factor', 1.0) != 1.0:
        tested = f'{test["scale_factor"]} times their size'
    text = (
        f'image size (width x height): {_text(median)}{range_}, {len(sizes)} training images measured; training '
        f'resizes to {low:g}-{high:g} times {fit} and crops {_text(crop)}; validation and test run at {tested}'
    )
    share = crop[0] * crop[1] / (median[0] * median[1])
    if share < SMALL_SHARE and not resize.get('scale'):
        width, height = (max(1, round(side * (4 * SMALL_SHARE / share) ** -0.5)) for side in median[::-1])
        text += f'; a crop shows {share:.1%} of an image: --scale {width} {height} or a larger --crop shows more'
    return text


def _text(size: Size) -> str:
    return f'{size[1]}x{size[0]}'

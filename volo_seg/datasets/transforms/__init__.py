"""Registered data transforms."""

from volo_seg.compat import import_mmseg

import_mmseg()

from .cropping import RandomCrop  # noqa: E402
from .loading import LoadImageFromFile, LoadLabels  # noqa: E402
from .resizing import RandomResize  # noqa: E402
from .strong_augmentation import StrongColourAndBlur  # noqa: E402

__all__ = ['LoadImageFromFile', 'LoadLabels', 'RandomCrop', 'RandomResize', 'StrongColourAndBlur']

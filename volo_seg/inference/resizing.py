"""Resizing an image for the network, by MMSegmentation's rule, and with no side of no pixels."""

from __future__ import annotations

import cv2
import numpy as np

Size = tuple[int, int]


def fitted_size(size: Size, scale: Size) -> Size:
    """The (height, width) in pixels of an image of ``size`` = (height, width) made as large as ``scale`` lets it be.

    The longer side of ``scale`` bounds the image's longer side, its shorter side the shorter one, and the sides keep
    their ratio; but no side becomes less than one pixel, as that of a very long image would.
    """
    height, width = size
    factor = min(max(scale) / max(size), min(scale) / min(size))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def resize_to(image: np.ndarray, size: Size) -> np.ndarray:
    """``image`` (H, W, C) at ``size`` = (height, width), bilinear."""
    if image.shape[:2] == size:
        return image
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)

"""Strong augmentation of colours and sharpness, for networks that meet other cameras than the training data has."""

from __future__ import annotations

from typing import Any

import cv2
import mmcv.transforms
import numpy as np
from mmseg.registry import TRANSFORMS


@TRANSFORMS.register_module()
class StrongColourAndBlur(mmcv.transforms.BaseTransform):
    """Changes gamma, the gain and offset of each channel, saturation and sharpness of an image; labels stay.

    Each change is drawn on its own: gamma from exp(U(-s, s)), gains from exp(U(-s, s) / 2), offsets from U(-s, s) * 32,
    a mixture with the grey image (all grey in one of ten cases), blur by a Gaussian of up to ``sigma`` pixels in half
    of the cases, and normal noise of up to ``noise`` grey levels. After it, ``PhotoMetricDistortion`` is not needed.

    Args:
        strength: s above; 0 changes no colour.
        sigma: Largest standard deviation of the blur in pixels.
        noise: Largest standard deviation of the noise in grey levels.
        prob: Share of the images that are changed.
    """

    def __init__(self, *, strength: float = 0.5, sigma: float = 1.5, noise: float = 8.0, prob: float = 0.8) -> None:
        if min(strength, sigma, noise) < 0 or not 0 <= prob <= 1:
            raise ValueError(f'{strength=}, {sigma=} and {noise=} must be 0 or more, and {prob=} in [0, 1]')
        self.strength, self.sigma, self.noise, self.prob = strength, sigma, noise, prob

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Change ``img`` (H, W, 3), uint8 or float of 0..255; its dtype is kept."""
        draw, s = np.random, self.strength
        if draw.rand() >= self.prob:  # noqa: NPY002
            return results
        levels = np.arange(256, dtype=np.float32)[:, None]
        gamma, gains = np.exp(draw.uniform(-s, s)), np.exp(draw.uniform(-s, s, 3) / 2)  # noqa: NPY002
        table = 255 * (levels / 255) ** gamma * gains + draw.uniform(-s, s, 3) * 32  # noqa: NPY002
        original = results['img']
        image = cv2.LUT(original.clip(0, 255).astype(np.uint8), table.clip(0, 255).astype(np.float32)[None])
        grey = 1.0 if draw.rand() < 0.1 else max(0.0, draw.uniform(-s, s))  # noqa: NPY002
        if grey and s:
            image += grey * (image.mean(2, keepdims=True) - image)
        if draw.rand() < 0.5 and self.sigma:  # noqa: NPY002
            image = cv2.GaussianBlur(image, (0, 0), draw.uniform(0.1, max(0.1, self.sigma)))  # noqa: NPY002
        if self.noise:
            image += draw.standard_normal(image.shape).astype(np.float32) * draw.uniform(0, self.noise)  # noqa: NPY002
        image = image.clip(0, 255)
        results['img'] = (image.round() if original.dtype == np.uint8 else image).astype(original.dtype)
        return results

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(strength={self.strength}, sigma={self.sigma}, noise={self.noise}, prob={self.prob})'
        )

"""A model of the camera's lens and sensor."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from volo_seg.datasets.toyscapes.camera import Array
from volo_seg.datasets.toyscapes.light import Light


def develop(image: Array, light: Light, rng: np.random.Generator) -> Array:
    """Make a photograph of painted colours, (H, W, 3) uint8: lens blur, exposure, vignette, sensor noise."""
    height, width = image.shape[:2]
    blur = light.blur * max(height / 256, 1.0) ** 0.5
    out = cv2.GaussianBlur(image, (0, 0), blur).astype(np.float32)
    levels = np.arange(height, dtype=np.float32)[:, None] / height - 0.5
    across = np.arange(width, dtype=np.float32)[None] / width - 0.5
    out *= (1.0 - 0.35 * (levels**2 + across**2))[..., None]
    out *= light.gain.astype(np.float32)
    noise = rng.standard_normal((height, width), dtype=np.float32)[..., None]
    tinted = rng.integers(-128, 128, (height, width, 3), dtype=np.int8).astype(np.float32) / 74.0
    out += light.noise * (0.7 * noise + 0.5 * tinted)
    developed = np.clip(out, 0, 255).astype(np.uint8)
    curve = 255.0 * (np.arange(256) / 255.0) ** light.gamma
    bent: Array = cv2.LUT(developed, np.round(curve).astype(np.uint8))
    return bent


def develop_random(image: Array, light: Light, rng: np.random.Generator) -> Array:
    """Photograph painted colours, (H, W, 3) uint8, with any camera: the steps of ``develop`` and those of a cheap lens.

    Added are motion blur, lateral chromatic aberration, a tone curve, coarse noise, sharpening and JPEG artefacts.
    """
    height, width = image.shape[:2]
    if rng.random() < 0.12:
        image = _smear(image, float(rng.uniform(1.5, 4.0)) * height / 256, float(rng.uniform(0, np.pi)))
    if rng.random() < 0.3:
        image = _fringe(image, float(rng.uniform(-0.004, 0.004)))
    exposure = np.exp(rng.normal(0, 0.2)) * 100 / max(float(image.mean()), 8)  # of an automatic camera
    exposed = replace(light, gain=light.gain * float(np.clip(exposure, 0.7, 4.0)))
    picture = develop(image, exposed, rng)
    if rng.random() < 0.35:  # a camera sharpens its picture
        soft = cv2.GaussianBlur(picture, (0, 0), float(rng.uniform(0.8, 1.6)))
        amount = float(rng.uniform(0.3, 1.2))
        picture = cv2.addWeighted(picture, 1 + amount, soft, -amount, 0)
    contrast, grey = float(rng.uniform(0.85, 1.25)), float(rng.uniform(90, 150))
    levels = np.arange(256.0)
    curve = levels + (contrast - 1) * (levels - grey) + float(rng.normal(0, 8))
    picture = cv2.LUT(picture, np.clip(curve, 0, 255).astype(np.uint8))
    if rng.random() < 0.5:
        hue = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)[..., None]
        share = float(rng.uniform(0.5, 1.4))
        picture = np.clip(hue + share * (picture.astype(np.float32) - hue), 0, 255).astype(np.uint8)
    if rng.random() < 0.5:
        _, data = cv2.imencode('.jpg', picture, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(30, 95))])
        picture = cv2.imdecode(data, cv2.IMREAD_COLOR)
    return np.asarray(picture, np.uint8)


def _smear(image: Array, length: float, angle: float) -> Array:
    """Blur along a line ``length`` pixels long at ``angle`` radians."""
    size = 2 * int(np.ceil(length / 2)) + 1
    kernel, middle = np.zeros((size, size), np.float32), size // 2
    reach = np.array([np.cos(angle), np.sin(angle)]) * length / 2
    start, end = (tuple(np.round(middle + sign * reach).astype(int).tolist()) for sign in (-1, 1))
    cv2.line(kernel, start, end, 1.0)
    return cv2.filter2D(image, -1, kernel / kernel.sum())


def _fringe(image: Array, share: float) -> Array:
    """Scale blue and red against green by ``share`` of the size around the middle."""
    height, width = image.shape[:2]
    channels = list(cv2.split(image))
    for channel, scale in ((0, 1 + share), (2, 1 - share)):
        grow = np.array([[scale, 0, (1 - scale) * width / 2], [0, scale, (1 - scale) * height / 2]])
        channels[channel] = cv2.warpAffine(channels[channel], grow, (width, height), borderMode=cv2.BORDER_REPLICATE)
    return cv2.merge(channels)

"""Time of day and weather of a scene, and a model of the camera's sensor."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from volo_seg.datasets.toyscapes.camera import Array


@dataclass(frozen=True)
class Light:
    """Sun direction (unit vector towards the sun), its share of the light in [0, 1], haze and sensor values.

    Colours are BGR in [0, 255]; ``visibility`` is the distance in metres at which haze hides 63 per cent.
    """

    sun: Array
    sun_share: float
    sky_top: Array
    sky_low: Array
    visibility: float
    gain: Array
    gamma: float
    blur: float
    noise: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Light:
        """Draw one of: clear day, overcast day, low warm sun, dim dusk."""
        kind = rng.choice(4, p=[0.45, 0.33, 0.14, 0.08])
        azimuth, height = rng.uniform(0, 2 * np.pi), (rng.uniform(0.5, 1.2), 1.2, 0.3, 0.4)[kind]
        sun = np.array([np.cos(azimuth) * np.cos(height), np.sin(height), np.sin(azimuth) * np.cos(height)])
        share = (rng.uniform(0.5, 0.75), rng.uniform(0.0, 0.15), rng.uniform(0.5, 0.7), 0.1)[kind]
        tops = ((222, 158, 96), (214, 208, 200), (200, 160, 130), (150, 120, 104))
        lows = ((240, 222, 200), (228, 226, 222), (150, 190, 235), (178, 168, 178))
        low, high = ((0.92, 1.15), (0.85, 1.05), (0.9, 1.05), (0.68, 0.85))[kind]
        tint = np.array([(1, 1, 1), (1.03, 1, 0.98), (0.9, 0.98, 1.06), (1.08, 1, 0.95)][kind])
        return cls(
            sun=sun,
            sun_share=float(share),
            sky_top=np.clip(np.array(tops[kind]) + rng.normal(0, 14, 3), 0, 255),
            sky_low=np.clip(np.array(lows[kind]) + rng.normal(0, 8, 3), 0, 255),
            visibility=float(rng.choice([110.0, 250.0, 500.0], p=[0.1, 0.35, 0.55])),
            gain=rng.uniform(low, high) * tint * rng.normal(1.0, 0.03, 3),
            gamma=float(rng.uniform(0.9, 1.1)),
            blur=float(rng.uniform(0.35, 0.75)),
            noise=float(rng.uniform(1.5, 5.0)),
        )

    def shade(self, normal: Array) -> float:
        """Return the brightness factor of a face with the unit ``normal``."""
        facing = max(0.0, float(normal @ self.sun))
        return (1.0 - self.sun_share) * (0.86 + 0.14 * float(normal[1])) + self.sun_share * (0.5 + 0.75 * facing)

    def haze(self, depth: float) -> float:
        """Return the share in [0, 1] of haze in front of something ``depth`` metres away."""
        return float(1.0 - np.exp(-max(depth, 0.0) / self.visibility))


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

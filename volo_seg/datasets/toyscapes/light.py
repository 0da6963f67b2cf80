"""Time of day and weather of a scene."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from volo_seg.datasets.toyscapes.camera import Array


@dataclass(frozen=True)
class Light:
    """Sun direction (unit vector towards the sun), its share of the light in [0, 1], haze and sensor values.

    Colours are BGR in [0, 255]; ``visibility`` is the distance in metres at which haze hides 63 per cent;
    ``ambient``: brightness (BGR factors) of everything under the sky; ``wet``: how much the ground mirrors, in [0, 1].
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
    ambient: Array = field(default_factory=lambda: np.ones(3))
    wet: float = 0.0

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

    @classmethod
    def draw_random(cls, rng: np.random.Generator) -> Light:
        """Draw any light: sun from any side, overcast, dusk, haze, rain, a street much darker than the sky."""
        azimuth, height = rng.uniform(0, 2 * np.pi), rng.uniform(0.15, 1.3)
        sun = np.array([np.cos(azimuth) * np.cos(height), np.sin(height), np.sin(azimuth) * np.cos(height)])
        blue, bright, dusk = rng.random(), rng.uniform(0.55, 1.25), rng.random() < 0.12
        top = bright * (np.array([235.0, 225, 215]) * (1 - blue) + np.array([225.0, 165, 105]) * blue)
        low = (
            bright * np.array([240.0, 232, 224]) + rng.normal(0, 10) + rng.uniform(0, 0.25) * np.array([-80.0, -20, 20])
        )
        if dusk:
            top, low = top * 0.4, low * rng.uniform(0.4, 0.7)
        dark = float(np.exp(rng.uniform(np.log(0.32), np.log(1.1)))) * (0.7 if dusk else 1.0)
        return cls(
            sun=sun,
            sun_share=float(rng.uniform(0.3, 0.85) if rng.random() < 0.55 else rng.uniform(0, 0.2)),
            sky_top=np.clip(top, 0, 255),
            sky_low=np.clip(low, 0, 255),
            visibility=float(rng.choice([60.0, 150.0, 400.0, 1500.0], p=[0.03, 0.12, 0.45, 0.4])),
            gain=rng.uniform(0.8, 1.2) * np.exp(rng.normal(0, 0.04, 3)),
            gamma=float(np.exp(rng.normal(0, 0.12))),
            blur=float(rng.uniform(0.2, 0.9) if rng.random() < 0.9 else rng.uniform(0.9, 1.6)),
            noise=float(rng.uniform(0.0, 5.0) if rng.random() < 0.9 else rng.uniform(5.0, 12.0)),
            ambient=dark * np.exp(rng.normal(0, 0.05, 3)),
            wet=float(rng.uniform(0.1, 0.45)) if rng.random() < 0.1 else 0.0,
        )

    def shade(self, normal: Array) -> float:
        """Return the brightness factor of a face with the unit ``normal``."""
        facing = max(0.0, float(normal @ self.sun))
        return (1.0 - self.sun_share) * (0.86 + 0.14 * float(normal[1])) + self.sun_share * (0.5 + 0.75 * facing)

    def haze(self, depth: float) -> float:
        """Return the share in [0, 1] of haze in front of something ``depth`` metres away."""
        return float(1.0 - np.exp(-max(depth, 0.0) / self.visibility))

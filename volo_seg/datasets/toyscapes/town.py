"""The layout of a street, and the list of its objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from volo_seg.datasets.toyscapes.camera import Array
from volo_seg.datasets.toyscapes.sketch import Patch, Thing, View

Place = tuple[float, float]  # metres right of the world's origin, metres ahead
SIDES = ((0, -1.0), (1, 1.0))  # left, right: index and sign of x


@dataclass(frozen=True)
class Street:
    """A street's cross-section in metres from its middle; index 0 is the left side, 1 the right.

    ``bend``: sideways metres per squared metre ahead. ``crossing``: where a side street begins and ends.
    ``rails``: x of the middle of a tram track.
    """

    half: float
    verge: tuple[float, float]  # grass between kerb and pavement
    pavement: tuple[float, float]
    bend: float
    crossing: tuple[float, float] | None
    rails: float | None

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Street:
        """Draw a street of two to four lanes."""
        half = float(rng.uniform(3.2, 7.0))
        verges = [float(rng.uniform(1.2, 3.0)) if rng.random() < 0.38 else 0.0 for _ in SIDES]
        pavements = [float(rng.uniform(2.2, 5.0)) for _ in SIDES]
        start = float(rng.uniform(14, 55))
        crossing = (start, start + float(rng.uniform(6, 11))) if rng.random() < 0.45 else None
        rails = float(rng.choice([-1.0, 1.0]) * (half + 1.6)) if rng.random() < 0.26 else None
        if rails is None and rng.random() < 0.16:
            rails = -half / 2
        bend = float(rng.normal(0, 0.0009))
        return cls(half, (verges[0], verges[1]), (pavements[0], pavements[1]), bend, crossing, rails)

    def kerb(self, side: int) -> float:
        """Return the distance from the middle at which verge or pavement begin on ``side``."""
        tracks = self.rails is not None and abs(self.rails) > self.half and (self.rails > 0) == (side == 1)
        return self.half + (3.2 if tracks else 0.0)

    def edge(self, side: int) -> float:
        """Return the distance from the middle at which houses, walls and fences stand."""
        return self.kerb(side) + self.verge[side] + self.pavement[side]

    def at(self, x: float, z: float) -> Place:
        """Return the world place ``x`` metres right of the street's middle and ``z`` metres ahead."""
        return x + self.bend * z * z, z

    def crosses(self, start: float, end: float) -> bool:
        """Tell whether the side street touches the stretch from ``start`` to ``end`` metres ahead."""
        return self.crossing is not None and start < self.crossing[1] and end > self.crossing[0]


class Town:
    """Collects the objects of a scene and their shadows."""

    def __init__(self, rng: np.random.Generator, view: View, street: Street) -> None:
        self.rng, self.view, self.street = rng, view, street
        self.things: list[Thing] = []
        self.shadows: list[Array] = []  # polygons on the ground, in pixels

    def add(self, things: list[Thing], foot: Sequence[Place] = (), *, width: float = 0.0, tall: float = 0.0) -> None:
        """Keep ``things``; on a ``foot`` (two ends) ``width`` metres wide and ``tall`` they throw a shadow."""
        self.things += things
        if not foot or not things:
            return
        ends = np.array([(x, 0.0, z) for x, z in foot])
        along = (ends[1] - ends[0]) / max(float(np.linalg.norm(ends[1] - ends[0])), 1e-6)
        across = np.array([along[2], 0.0, -along[0]]) * width / 2
        base = np.concatenate([ends + across, ends - across])
        sun, share = self.view.light.sun, min(1.0, 2 * self.view.light.sun_share)
        cast = np.concatenate([base, base - np.array([sun[0], 0.0, sun[2]]) / max(float(sun[1]), 0.25) * tall * share])
        hull = cv2.convexHull(cast[:, [0, 2]].astype(np.float32))[:, 0]
        shape = self.view.camera.project(np.stack([hull[:, 0], np.zeros(len(hull)), hull[:, 1]], axis=1))
        if len(shape) >= 3:
            self.shadows.append(shape)

    def cover_lens(self) -> None:
        """Hide the lower rim behind our own bonnet (``ego vehicle``) or a dark border (``out of roi``)."""
        rng, (height, width) = self.rng, self.view.camera.size
        bonnet, rise, tone = rng.random() < 0.75, float(rng.uniform(0.03, 0.09)), float(rng.uniform(25, 90))
        x, power = np.linspace(0, 1, 17), float(rng.uniform(2.5, 5))
        curve = rise * (1 - np.abs(2 * x - 1) ** power) + 0.012 if bonnet else np.full(17, 0.018)
        top = np.stack([x * (width - 1), height - 1 - np.maximum(curve * height, 1)], axis=1)
        outline = np.round(np.concatenate([top, [(width - 1, height - 1), (0, height - 1)]])).astype(np.int32)

        def paint(patch: Patch) -> None:
            fall = np.linspace(1.5, 0.7, patch.image.shape[0])[:, None, None]
            patch.image[:] = np.clip((tone if bonnet else 4.0) * fall * np.ones(3), 0, 255).astype(np.uint8)

        self.things.append(Thing('ego vehicle' if bonnet else 'out of roi', outline, paint, 0.0, 5))

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

    @classmethod
    def draw_random(cls, rng: np.random.Generator) -> Street:
        """Draw anything from a lane between houses to a wide avenue or a square, straight or in a curve."""
        half = float(np.exp(rng.uniform(np.log(2.0), np.log(9.0))))
        verges = [float(rng.uniform(0.8, 4.0)) if rng.random() < 0.2 else 0.0 for _ in SIDES]
        pavements = [float(np.exp(rng.uniform(np.log(1.3), np.log(7.0)))) for _ in SIDES]
        if rng.random() < 0.12:  # a square without houses on one side or both
            pavements[int(rng.integers(2))] += float(rng.uniform(10, 40))
        start = float(rng.uniform(5, 60))
        crossing = (start, start + float(rng.uniform(5, 16))) if rng.random() < 0.45 else None
        rails = float(rng.choice([-1.0, 1.0]) * (half + 1.6)) if rng.random() < 0.12 else None
        bend = float(rng.normal(0, 0.0008) if rng.random() < 0.65 else rng.normal(0, 0.004))
        return cls(half, (verges[0], verges[1]), (pavements[0], pavements[1]), bend, crossing, rails)

    def eye(self, rng: np.random.Generator) -> float:
        """Draw the camera's x: in a lane of either direction, near the kerb, or on the pavement."""
        place = rng.random()
        if place < 0.65:
            return float(rng.normal(0.4, 0.25)) * self.half * float(rng.choice([-1.0, 1.0], p=[0.4, 0.6]))
        side, sign = SIDES[rng.integers(2)]
        if place < 0.92:
            return sign * (self.half + float(rng.uniform(-1.6, 0.2)))
        return sign * (self.kerb(side) + float(rng.uniform(0.1, 0.8)) * min(self.pavement[side], 4.0))

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


@dataclass(frozen=True)
class Habits:
    """How a town is built and used; the defaults are those of the plain style.

    ``sides``: how often houses, walls, fences and parks line a stretch; ``storeys``: heights of houses in metres;
    ``gap``: metres between vehicles; ``first``: metres ahead of the first vehicle of the lanes;
    ``mix``: shares of car, truck, bus, cycle, motor; ``parked``: chance of a row of parked cars a side;
    ``trees``, ``lamps``: chance of a row a side; ``bare``: share of trees without leaves; ``giant``: largest size;
    ``signs``, ``people``, ``cycles``: (least, most) of each; ``reach``: metres ahead within which people stand.
    """

    sides: tuple[float, ...] = (0.44, 0.2, 0.2, 0.16)
    storeys: tuple[float, float] = (6.0, 22.0)
    gap: tuple[float, float] = (4.0, 16.0)
    first: tuple[tuple[float, float], tuple[float, float]] = ((9.0, 26.0), (6.0, 24.0))
    mix: tuple[float, ...] = (0.42, 0.16, 0.14, 0.14, 0.14)
    parked: float = 0.7
    trees: float = 0.45
    lamps: float = 0.75
    bare: float = 0.0
    giant: float = 12.0
    signs: tuple[int, int] = (0, 4)
    people: tuple[int, int] = (3, 12)
    cycles: tuple[int, int] = (1, 5)
    reach: float = 22.0

    @classmethod
    def draw_random(cls, rng: np.random.Generator) -> Habits:
        """Draw empty and crowded towns, of stone or of trees, in summer and in winter."""
        busy = float(rng.choice([200.0, 50.0, 20.0, 8.0], p=[0.15, 0.3, 0.35, 0.2]))
        start = float(rng.uniform(5, 40))
        houses, park = rng.uniform(0.2, 1.0), rng.uniform(0.05, 0.4)
        sides = np.array([houses, rng.uniform(0, 0.25), rng.uniform(0, 0.35), park])
        low = float(rng.uniform(5, 14))
        people = int(rng.choice([2, 8, 18, 36], p=[0.2, 0.35, 0.3, 0.15]))
        return cls(
            sides=tuple(float(share) for share in sides / sides.sum()),
            storeys=(low, low + float(rng.uniform(2, 16))),
            gap=(2.0, busy),
            first=((start, start + busy), (start * 0.7, start + busy)),
            mix=tuple(float(share) for share in rng.dirichlet([6.0, 0.7, 0.7, 3.0, 0.9])),
            parked=float(rng.choice([0.0, 0.3, 0.8])),
            trees=float(rng.choice([0.0, 0.3, 0.8])),
            lamps=float(rng.uniform(0.2, 1.0)),
            bare=float(rng.choice([0.0, 0.2, 0.9], p=[0.4, 0.2, 0.4])),
            giant=float(rng.uniform(9, 20)),
            signs=(0, int(rng.integers(2, 8))),
            people=(0, people + 1),
            cycles=(0, int(rng.integers(2, 8))),
            reach=float(rng.uniform(15, 60)),
        )


class Town:
    """Collects the objects of a scene and their shadows."""

    def __init__(self, rng: np.random.Generator, view: View, street: Street, habits: Habits) -> None:
        self.rng, self.view, self.street, self.habits = rng, view, street, habits
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
        if self.view.random and rng.random() < 0.7:  # the camera looks over the bonnet
            return
        bonnet, rise, tone = rng.random() < 0.75, float(rng.uniform(0.03, 0.09)), float(rng.uniform(25, 90))
        x, power = np.linspace(0, 1, 17), float(rng.uniform(2.5, 5))
        curve = rise * (1 - np.abs(2 * x - 1) ** power) + 0.012 if bonnet else np.full(17, 0.018)
        top = np.stack([x * (width - 1), height - 1 - np.maximum(curve * height, 1)], axis=1)
        outline = np.round(np.concatenate([top, [(width - 1, height - 1), (0, height - 1)]])).astype(np.int32)

        def paint(patch: Patch) -> None:
            fall = np.linspace(1.5, 0.7, patch.image.shape[0])[:, None, None]
            patch.image[:] = np.clip((tone if bonnet else 4.0) * fall * np.ones(3), 0, 255).astype(np.uint8)

        self.things.append(Thing('ego vehicle' if bonnet else 'out of roi', outline, paint, 0.0, 5))

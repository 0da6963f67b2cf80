"""The parts of vehicles: a side profile drawn out to a width, wheels, windows and lamps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from volo_seg.datasets.toyscapes.camera import Array
from volo_seg.datasets.toyscapes.sketch import Sketch, circle

UP = np.array([0.0, 1.0, 0.0])
GLASS = np.array([78.0, 66.0, 58.0])
TYRE = np.array([32.0, 32.0, 34.0])


@dataclass(frozen=True)
class Profile:
    """A closed side view: (along, height) as shares of length and height, front at +0.5.

    ``glass``: edges i -> i + 1 that are windows; ``belt``: share of the height where the cabin begins.
    """

    points: tuple[tuple[float, float], ...]
    glass: tuple[int, ...]
    belt: float


class Body:
    """A vehicle's own axes, (along, height, across) in metres; ``size``: length, width, height; ``glass``: BGR."""

    def __init__(
        self, place: tuple[float, float], yaw: float, size: tuple[float, float, float], glass: Array = GLASS
    ) -> None:
        self.glass = glass
        self.origin = np.array([place[0], 0.0, place[1]])
        self.forward = np.array([np.sin(yaw), 0.0, np.cos(yaw)])
        self.right = np.array([np.cos(yaw), 0.0, -np.sin(yaw)])
        self.length, self.width, self.height = size
        self._axes = np.array([self.forward, UP, self.right])

    def world(self, local: Array | Sequence[tuple[float, float, float]] | tuple[float, float, float]) -> Array:
        """Return the world points, (N, 3), of local metres (N, 3)."""
        points: Array = self.origin + np.asarray(local) @ self._axes
        return points

    def at(self, along: float, height: float, across: float) -> Array:
        """Return the world point (3,) of local metres."""
        return self.world((along, height, across))

    def side(self, points: Sequence[tuple[float, float]], across: float, lean: float = 0.0, belt: float = 1.0) -> Array:
        """Return (N, 3) of shares (along, height) on one side, which leans in by ``lean`` above ``belt``."""
        shares = np.array(points)
        inset = 1.0 - lean * np.maximum(0.0, shares[:, 1] - belt) / max(1.0 - belt, 1e-6)
        return self.world(np.stack([shares[:, 0] * self.length, shares[:, 1] * self.height, across * inset], axis=1))


def hull(sketch: Sketch, body: Body, profile: Profile, paint: Array, lean: float) -> None:
    """Draw the strips across the body (roof, glass, front, rear) and then its sides."""
    left, right = (body.side(profile.points, half, lean, profile.belt) for half in (-body.width / 2, body.width / 2))
    for i in range(len(left) - 1):
        (ax, ay, az), (wx, _, wz) = left[i + 1] - left[i], right[i] - left[i]
        outward = np.array([ay * wz, az * wx - ax * wz, -ay * wx])  # their cross product; the second is level
        if not sketch.faces(outward, left[i]):
            continue
        strip = np.array([left[i], left[i + 1], right[i + 1], right[i]])
        sketch.face(strip, paint, outward)
        if i in profile.glass:
            middle = strip.mean(0)
            sketch.face(middle + (strip - middle) * 0.86, body.glass, outward)
    for points, sign in ((left, -1.0), (right, 1.0)):
        sketch.face(points, paint, sign * body.right)


def wheels(sketch: Sketch, body: Body, radius: float, spots: tuple[float, ...]) -> None:
    """Draw wheels at ``spots``, shares of the length: discs on the side seen, treads beneath either end."""
    for sign in (-1.0, 1.0):
        if not sketch.faces(sign * body.right, body.at(0, 0, sign * body.width / 2)):
            continue
        for spot in spots:
            centre = body.at(spot * body.length, radius, sign * (body.width / 2 + 0.02))
            sketch.face(circle(centre, body.forward, UP, radius), TYRE)
            sketch.face(circle(centre, body.forward, UP, radius * 0.55), TYRE + 70)
    for along in (min(spots) * body.length, max(spots) * body.length):
        for across in (-0.42 * body.width, 0.42 * body.width):
            corners = ((0.0, -0.1), (0.0, 0.1), (radius, 0.1), (radius, -0.1))
            tread = body.world([(along, height, across + wide) for height, wide in corners])
            sketch.shapes.insert(0, (sketch.view.camera.project(tread), TYRE, 0.0))


def row(start: float, end: float, count: int, gap: float) -> list[tuple[float, float]]:
    """Return ``count`` spans between two shares of the length, ``gap`` apart on either side."""
    edges = np.linspace(start, end, count + 1)
    return [(float(a) + gap, float(b) - gap) for a, b in zip(edges[:-1], edges[1:], strict=True)]


def panes(sketch: Sketch, body: Body, spans: list[tuple[float, float]], low: float, high: float, colour: Array) -> None:
    """Draw upright quads (windows, stripes) on both sides; all numbers are shares of length and height."""
    for sign in (-1.0, 1.0):
        if not sketch.faces(sign * body.right, body.at(0, 0, sign * body.width / 2)):
            continue
        for start, end in spans:
            quad = body.side([(start, low), (start, high), (end, high), (end, low)], sign * (body.width / 2 + 0.01))
            sketch.face(quad, colour, sign * body.right)


def lamps(sketch: Sketch, body: Body, height: float, lit: bool) -> None:
    """Draw head lamps in front or tail lamps behind, and a number plate."""
    white, red, plate = (
        np.array([225.0, 240.0, 245.0]),
        np.array([40.0, 35.0, 235.0 if lit else 150.0]),
        np.full(3, 215.0),
    )
    for share, colour in ((0.5, white), (-0.5, red)):
        along, outward = share * (body.length + 0.04), 2 * share * body.forward
        if not sketch.faces(outward, body.at(along, 0, 0)):
            continue
        tall = 0.055 * min(body.height, 1.6)
        for across, wide, y, tone in (
            (-0.38, 0.1, height, colour),
            (0.38, 0.1, height, colour),
            (0.0, 0.12, 0.68 * height, plate),
        ):
            low, high = (across - wide) * body.width, (across + wide) * body.width
            corners = [(along, y - tall, low), (along, y + tall, low), (along, y + tall, high), (along, y - tall, high)]
            sketch.face(body.world(corners), tone, outward)

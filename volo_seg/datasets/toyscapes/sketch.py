"""Project, outline and paint objects that consist of flat pieces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from volo_seg.datasets.toyscapes.camera import NEAR, Array, Camera
from volo_seg.datasets.toyscapes.light import Light
from volo_seg.datasets.toyscapes.materials import tile

_SHIFT = 4  # cv2's sub-pixel bits
_ANGLES = np.linspace(0, 2 * np.pi, 12, endpoint=False)
_RING = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)
SEE_THROUGH = frozenset({'fence', 'vegetation', 'bicycle'})


@dataclass(frozen=True)
class View:
    """The camera and the light of a scene; ``random``: materials, shapes and colours vary beyond the plain style."""

    camera: Camera
    light: Light
    random: bool = False


@dataclass(frozen=True)
class Patch:
    """The piece of the picture in which a thing is painted, in place.

    ``image`` (h, w, 3) uint8 BGR; ``corner`` = (x0, y0) of its first pixel; ``wanted`` (h, w) bool:
    the pixels that will be kept.
    """

    image: Array
    corner: tuple[int, int]
    wanted: Array
    view: View
    rng: np.random.Generator

    def pixels(self) -> tuple[Array, Array]:
        """Return u and v, float32 (N,), of the wanted pixels."""
        v, u = np.nonzero(self.wanted)
        return (u + self.corner[0]).astype(np.float32), (v + self.corner[1]).astype(np.float32)

    def axes(self) -> tuple[Array, Array]:
        """Return u (w,) and v (h,), int64, of the patch's columns and rows."""
        height, width = self.wanted.shape
        return np.arange(width) + self.corner[0], np.arange(height) + self.corner[1]

    def fill(self, colour: Array, depth: Array | float) -> None:
        """Put ``colour`` (N, 3), behind the haze of ``depth`` metres, on the wanted pixels."""
        light = self.view.light
        clear = np.exp(np.asarray(depth, np.float32) * np.float32(-1.0 / light.visibility))[..., None]
        low = light.sky_low.astype(np.float32)
        self.image[self.wanted] = np.clip(low + (colour - low) * clear, 0, 255).astype(np.uint8)

    def roughen(self, amount: float) -> None:
        """Add blotches of ``amount`` levels."""
        left, top = self.rng.integers(0, 256, 2)
        u, v = self.axes()
        noise = tile('blotch')[((v + top) & 255)[:, None], ((u + left) & 255)[None]] * np.float32(amount)
        self.image[:] = np.clip(self.image + noise[..., None], 0, 255).astype(np.uint8)


Painter = Callable[[Patch], None]


@dataclass(frozen=True)
class Thing:
    """One labelled polygon: ``outline`` (N, 2) integer pixels inside the image.

    Things are drawn by rising ``layer`` and, within a layer, falling ``depth`` in metres.
    """

    label: str
    outline: Array
    paint: Painter
    depth: float
    layer: int


def outlines(shapes: Sequence[Array], size: tuple[int, int], *, smallest: float = 3.0) -> list[Array]:
    """Return the contours of the union of pixel polygons, largest first: (N, 2) int32 inside the image."""
    height, width = size
    shapes = [shape for shape in shapes if len(shape) >= 3]
    if not shapes:
        return []
    points = np.concatenate(shapes)
    x0, y0 = np.maximum(np.floor(points.min(0)).astype(int), 0)
    x1, y1 = np.minimum(np.ceil(points.max(0)).astype(int) + 1, [width, height])
    if x1 - x0 < 2 or y1 - y0 < 2:
        return []
    canvas = np.zeros((y1 - y0, x1 - x0), np.uint8)
    corner = np.array([x0, y0])
    for shape in shapes:
        cv2.fillPoly(canvas, [np.round(shape - corner).astype(np.int32)], 1)
    found = cv2.findContours(canvas, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]
    simple = [cv2.approxPolyDP(contour, 0.6, True)[:, 0] for contour in found]
    sized = [(_extent(polygon), polygon) for polygon in simple if len(polygon) >= 3]
    kept = sorted((pair for pair in sized if pair[0] >= smallest), key=lambda pair: -pair[0])
    return [(polygon + corner).astype(np.int32) for _, polygon in kept]


def _extent(polygon: Array) -> float:
    return float(abs(cv2.contourArea(polygon))) + 0.5 * float(np.ptp(polygon, axis=0).max())


class Sketch:
    """A thing drawn from flat pieces in the order given, farthest first."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.shapes: list[tuple[Array, Array | None, float]] = []  # pixels, BGR or unpainted, line width or 0

    def faces(self, outward: Array, point: Array) -> bool:
        """Tell whether a face with the normal ``outward`` through ``point`` looks at the eye."""
        return bool(outward @ (point - self.view.camera.eye) < 0)

    def face(self, points: Array, colour: Array, outward: Array | None = None) -> None:
        """Add a polygon, (N, 3) metres; with ``outward`` (3,) it is lit, and left out if it faces away."""
        if outward is not None:
            if not self.faces(outward, points[0]):
                return
            colour = colour * self.view.light.shade(outward / max(float(np.sqrt(outward @ outward)), 1e-9))
        self.shapes.append((self.view.camera.project(points), colour, 0.0))

    def capsule(self, start: Array, end: Array, radii: tuple[float, float], colour: Array) -> None:
        """Add a rounded rod between two points (3,), with a radius in metres at each end."""
        camera = self.view.camera
        ends = camera.homogeneous(np.array([start, end]))
        if min(ends[0, 2], ends[1, 2]) < NEAR:
            return
        pixels = ends[:, :2] / ends[:, 2:]
        scale = [max(camera.focal * radius / depth, 0.35) for radius, depth in zip(radii, ends[:, 2], strict=True)]
        ring = np.concatenate([pixels[0] + scale[0] * _RING, pixels[1] + scale[1] * _RING])
        self.shapes.append((cv2.convexHull(ring.astype(np.float32))[:, 0], colour, 0.0))

    def ring(self, points: Array, colour: Array, thickness: float) -> None:
        """Add a closed line, (N, 3) metres, ``thickness`` metres wide; its inside stays unpainted."""
        depth = max(self.view.camera.depth(points[0]), NEAR)
        shape = self.view.camera.project(points)
        self.shapes.append((shape, None, 0.0))
        self.shapes.append((shape, colour, max(thickness * self.view.camera.focal / depth, 1.0)))

    def thing(self, label: str, depth: float, *, layer: int = 4) -> list[Thing]:
        """Return the sketch as one thing, or nothing if it is out of sight."""
        found = outlines([shape for shape, _, _ in self.shapes], self.view.camera.size)
        return [Thing(label, found[0], lambda patch: self.paint(patch, depth), depth, layer)] if found else []

    def paint(self, patch: Patch, depth: float) -> None:
        """Paint the pieces over a patch, behind the haze of ``depth`` metres."""
        haze, low = self.view.light.haze(depth), self.view.light.sky_low
        for shape, colour, thickness in self.shapes:
            if colour is None or len(shape) < 3:
                continue
            points = [np.round((shape - patch.corner) * (1 << _SHIFT)).astype(np.int32)]
            b, g, r = np.clip(colour * (1 - haze) + low * haze, 0, 255)
            value = (float(b), float(g), float(r))
            if thickness:
                cv2.polylines(patch.image, points, True, value, round(thickness), cv2.LINE_AA, _SHIFT)
            else:
                cv2.fillPoly(patch.image, points, value, cv2.LINE_AA, _SHIFT)
        patch.roughen(5.0)


def circle(centre: Array, along: Array, up: Array, radius: float) -> Array:
    """Return 12 points, (12, 3) metres, of a circle in the plane of two unit vectors."""
    points: Array = centre + radius * (_RING @ np.array([along, up]))
    return points

"""A pinhole camera over a flat street: metres to pixels, and pixels back to points of a plane.

World axes in metres: x right, y up, z forward along the street; the ground is y = 0. Pixels: u right, v down.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
NEAR = 0.4  # metres in front of the eye; nothing nearer is drawn


@dataclass(frozen=True)
class Camera:
    """Position and projection of the camera. ``size`` is (H, W) in pixels, ``focal`` in pixels."""

    size: tuple[int, int]
    focal: float
    eye: Array  # (3,) metres
    matrix: Array  # (3, 3): world offset from the eye -> (u * depth, v * depth, depth)
    hill: float = 0.0  # metres that the ground rises per squared metre ahead

    @classmethod
    def draw(cls, rng: np.random.Generator, size: tuple[int, int], lateral: float) -> Camera:
        """Draw a camera at ``lateral`` metres from the street's middle, slightly turned and rolled."""
        focal = rng.uniform(0.76, 1.0) * max(size)
        yaw, roll = rng.normal(0.0, 0.045), rng.normal(0.0, 0.008)
        horizon, tall = rng.uniform(0.37, 0.47), rng.uniform(1.25, 1.75)
        return cls.placed(size, focal, (yaw, roll), horizon, np.array([lateral, tall, 0.0]))

    @classmethod
    def draw_random(cls, rng: np.random.Generator, size: tuple[int, int], lateral: float) -> Camera:
        """Draw any camera that looks along a street: from a wide to a tele lens, low or high, pitched and rolled."""
        focal = float(np.exp(rng.uniform(np.log(0.95), np.log(2.3)))) * size[0]
        turn = (rng.normal(0.0, 0.09), rng.normal(0.0, 0.02))
        eye = np.array([lateral, rng.uniform(1.1, 2.0) if rng.random() < 0.8 else rng.uniform(2.0, 3.2), 0.0])
        hill = float(rng.normal(0.0, 4e-4)) if rng.random() < 0.4 else 0.0
        return cls.placed(size, focal, turn, float(rng.uniform(0.3, 0.6)), eye, hill=hill)

    @classmethod
    def placed(
        cls,
        size: tuple[int, int],
        focal: float,
        turned: tuple[float, float],
        horizon: float,
        eye: Array,
        *,
        hill: float = 0.0,
    ) -> Camera:
        """Return a camera ``turned`` by (yaw, roll) radians whose horizon lies at a share of the height."""
        (height, width), (yaw, roll) = size, turned
        centre = (width * 0.5, height * horizon)
        turn = np.array([[np.cos(yaw), 0, -np.sin(yaw)], [0, 1, 0], [np.sin(yaw), 0, np.cos(yaw)]])
        tilt = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
        optics = np.array([[focal, 0, centre[0]], [0, focal, centre[1]], [0, 0, 1]])
        return cls(size, focal, eye, optics @ tilt @ np.diag([1.0, -1.0, 1.0]) @ turn, hill)

    def project(self, points: Array) -> Array:
        """Project a polygon, (N, 3) metres, to (M, 2) pixels; what lies nearer than ``NEAR`` is cut off."""
        homogeneous = self.homogeneous(points)
        if homogeneous[:, 2].min() < NEAR:
            homogeneous = _cut(homogeneous, np.array([0.0, 0.0, 1.0]), -NEAR)
            if len(homogeneous) < 3:
                return np.zeros((0, 2))
        pixels: Array = homogeneous[:, :2] / homogeneous[:, 2:]
        return self._trim(pixels)

    def homogeneous(self, points: Array) -> Array:
        """Return (u * depth, v * depth, depth), (N, 3), of points in metres above the ground, hill included."""
        offsets = np.asarray(points, np.float64) - self.eye
        if self.hill:
            offsets[:, 1] += self.hill * offsets[:, 2] ** 2
        homogeneous: Array = offsets @ self.matrix.T
        return homogeneous

    def ground(self, u: Array, v: Array) -> tuple[Array, Array, Array]:
        """Return x, z and depth in metres, float32 (N,), of the ground seen at the pixels (``u``, ``v``)."""
        if not self.hill:
            inverse = self.plane(np.zeros(3), np.array([1.0, 0, 0]), np.array([0, 0, 1.0]))
            return plane_coordinates(inverse, u, v)
        right, up, ahead = np.linalg.inv(self.matrix).astype(np.float32) @ np.stack([u, v, np.ones_like(u)])
        eye = np.float32(self.eye[1])  # the ray eye + t * (right, up, ahead) meets y = hill * z ** 2
        root = np.sqrt(np.maximum(up * up + np.float32(4 * self.hill) * ahead * ahead * eye, 0))
        t = 2 * eye / np.maximum(root - up, np.float32(2e-3))
        return right * t + np.float32(self.eye[0]), ahead * t, t

    def _trim(self, pixels: Array) -> Array:
        """Cut a pixel polygon to a window three times the image, so that coordinates stay small."""
        height, width = self.size
        if np.abs(pixels).max() < 2 * min(height, width):
            return pixels
        for normal, offset in (((1, 0), width), ((-1, 0), 2 * width), ((0, 1), height), ((0, -1), 2 * height)):
            pixels = _cut(pixels, np.array(normal, np.float64), float(offset))
            if len(pixels) < 3:
                return np.zeros((0, 2))
        return pixels

    def depth(self, point: Array) -> float:
        """Return how far ``point`` (3,) lies in front of the eye, in metres."""
        return float(self.matrix[2] @ (np.asarray(point) - self.eye))

    def plane(self, origin: Array, along: Array, up: Array) -> Array:
        """Return the (3, 3) map from pixels to ``origin + s * along + t * up``; see ``plane_coordinates``."""
        basis = np.stack([along, up, np.asarray(origin, np.float64) - self.eye], axis=1)
        inverse: Array = np.linalg.inv(self.matrix @ basis + 1e-9 * np.eye(3))  # never singular, even edge-on
        return inverse


def plane_coordinates(inverse: Array, u: Array, v: Array) -> tuple[Array, Array, Array]:
    """Return s, t and depth in metres, float32 (N,), of the pixels (``u``, ``v``), float32 (N,)."""
    s, t, nearness = inverse.astype(np.float32) @ np.stack([u, v, np.ones_like(u)])
    depth = 1.0 / np.maximum(nearness, np.float32(1e-3))
    return s * depth, t * depth, depth


def _cut(points: Array, normal: Array, offset: float) -> Array:
    """Keep the part of a polygon where ``normal . p + offset >= 0`` (Sutherland-Hodgman, one plane)."""
    side = points @ normal + offset
    if (side >= 0).all():
        return points
    kept: list[Array] = []
    for here, there, a, b in zip(points, np.roll(points, -1, 0), side, np.roll(side, -1), strict=True):
        if a >= 0:
            kept.append(here)
        if (a >= 0) != (b >= 0):
            kept.append(here + (there - here) * (a / (a - b)))
    return np.array(kept) if kept else points[:0]

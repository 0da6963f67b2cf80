"""Upright planes along the street: house fronts, walls and fences, textured in metres of the plane."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from volo_seg.datasets.toyscapes.camera import NEAR, Array, Camera, plane_coordinates
from volo_seg.datasets.toyscapes.materials import BARS, CURTAINS, FRONTS, PANES, SHOPS, WALLS, jitter, lookup, pick
from volo_seg.datasets.toyscapes.sketch import Painter, Patch, Thing, View, outlines

UP = np.array([0.0, 1.0, 0.0])


@dataclass(frozen=True)
class Plane:
    """A rectangle that stands on the ground from ``start`` to ``end`` = (x, z); ``outward`` (3,): normal."""

    start: tuple[float, float]
    end: tuple[float, float]
    height: float
    outward: Array

    @property
    def length(self) -> float:
        """Length along the ground in metres."""
        return float(np.hypot(self.end[0] - self.start[0], self.end[1] - self.start[1]))

    def corners(self) -> Array:
        """Return the four corners, (4, 3) metres."""
        (x0, z0), (x1, z1) = self.start, self.end
        return np.array([(x0, 0, z0), (x0, self.height, z0), (x1, self.height, z1), (x1, 0, z1)], np.float64)

    def faces(self, camera: Camera) -> bool:
        """Tell whether its outer side looks at the eye."""
        return float(self.outward @ (self.corners().mean(0) - camera.eye)) < 0

    def coordinates(self, patch: Patch) -> tuple[Array, Array, Array]:
        """Return metres along, metres up and depth, float32 (N,), of the wanted pixels of ``patch``."""
        origin = np.array([self.start[0], 0.0, self.start[1]])
        along = (np.array([self.end[0], 0.0, self.end[1]]) - origin) / max(self.length, 1e-6)
        return plane_coordinates(patch.view.camera.plane(origin, along, UP), *patch.pixels())

    def reach(self, camera: Camera) -> float:
        """Return the depth of its nearest end in metres, at least ``NEAR``."""
        return max(NEAR, min(camera.depth(np.array([x, 0.0, z])) for x, z in (self.start, self.end)))


@dataclass(frozen=True)
class Style:
    """The style of a house: colours (BGR), window size and pitch in metres, ground floor."""

    wall: Array
    pane: Array
    pitch: tuple[float, float]
    window: tuple[float, float]
    brick: bool
    shop: Array | None
    shift: tuple[int, int]
    contrast: float = 0.32  # between window panes
    dark: float = 1.25  # brightness of shop windows
    roof: float = 0.0  # metres of dark roof at the top

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Style:
        """Draw a style: plaster, brick or glass."""
        glassy = rng.random() < 0.15
        shop = pick(rng, SHOPS, 25)
        pitch = (rng.uniform(1.4, 1.8), 3.2) if glassy else (rng.uniform(2.2, 3.8), rng.uniform(2.8, 3.6))
        return cls(
            wall=pick(rng, FRONTS, 14),
            pane=pick(rng, CURTAINS if glassy else PANES, 14),
            pitch=pitch,
            window=(0.86, 0.8) if glassy else (rng.uniform(0.32, 0.55), rng.uniform(0.42, 0.62)),
            brick=bool(rng.random() < 0.35),
            shop=shop if rng.random() < 0.5 else None,
            shift=(int(rng.integers(256)), int(rng.integers(256))),
        )

    @classmethod
    def draw_random(cls, rng: np.random.Generator) -> Style:
        """Draw any house: few or many windows, dark or mirroring, dark shop fronts, a roof in sight or not."""
        style, shop = cls.draw(rng), pick(rng, SHOPS, 50)
        return replace(
            style,
            wall=np.clip(style.wall * np.exp(rng.normal(0, 0.35)), 20, 250),
            pane=np.clip(style.pane * np.exp(rng.normal(-0.2, 0.6)), 8, 230),
            pitch=(float(rng.uniform(1.2, 4.5)), float(rng.uniform(2.6, 4.2))),
            window=(float(rng.uniform(0.25, 0.95)), float(rng.uniform(0.3, 0.9))),
            shop=shop if rng.random() < 0.55 else None,
            contrast=float(rng.uniform(0.1, 0.9)),
            dark=float(rng.uniform(0.1, 1.3)),
            roof=float(rng.uniform(1.5, 4.0)) if rng.random() < 0.4 else 0.0,
        )


def stand(view: View, plane: Plane, label: str, paint: Painter, *, layer: int, gable: float = 0.0) -> list[Thing]:
    """Return ``plane`` as a thing painted by ``paint(patch)``; ``gable``: metres of a pointed roof on top."""
    corners = plane.corners()
    if gable:
        ridge = corners[1:3].mean(0) + gable * UP
        corners = np.stack([corners[0], corners[1], ridge, corners[2], corners[3]])
    found = outlines([view.camera.project(corners)], view.camera.size)
    return [Thing(label, outline, paint, plane.reach(view.camera), layer) for outline in found[:1]]


def house_front(view: View, plane: Plane, style: Style, *, layer: int = 3, gable: float = 0.0) -> list[Thing]:
    """Draw one face of a house with rows of windows; ``building``."""
    if not plane.faces(view.camera):
        return []
    factor = view.light.shade(plane.outward)

    def paint(patch: Patch) -> None:
        s, t, depth = plane.coordinates(patch)
        colour = _front(s, t, depth / view.camera.focal, plane, style) * np.float32(factor)
        patch.fill(colour, depth)

    return stand(view, plane, 'building', paint, layer=layer, gable=gable)


def _front(s: Array, t: Array, pixel: Array, plane: Plane, style: Style) -> Array:
    """Return the colours, float32 (N, 3), of a house front at metres (s, t); ``pixel`` = metres a pixel."""
    rough = lookup('blotch', s, t, 9.0, style.shift) * 0.07
    if style.brick:
        fade = np.clip(0.06 / np.maximum(pixel, 1e-4), 0, 1)
        course = ((t * 7.0) % 1.0 < 0.18) | (((s * 3.5 + 0.5 * (np.floor(t * 7.0) % 2)) % 1.0) < 0.09)
        rough = rough + (lookup('grain', s, t, 14.0) * 0.07 - 0.16 * course) * fade
    colour = style.wall.astype(np.float32) * (1 + rough)[..., None]
    level = t - (3.6 if style.shop is not None else 0.3)
    column, row = s / style.pitch[0], level / style.pitch[1]
    across, upward = column - np.floor(column), row - np.floor(row)
    wide, tall = style.window
    inside = (np.abs(across - 0.5) < wide / 2) & (np.abs(upward - 0.52) < tall / 2)
    inside &= (level > 0) & (t < plane.height - 0.7) & (s > 0.4) & (s < plane.length - 0.4)
    frame = inside & ((np.abs(across - 0.5) > wide / 2 - 0.035) | (np.abs(upward - 0.52) > tall / 2 - 0.03))
    lit = lookup('cloud', np.floor(column) * 37.0, np.floor(row) * 59.0, 1.0, style.shift)
    pane = (
        style.pane.astype(np.float32) * np.maximum(1.0 + style.contrast * lit + 0.25 * (upward - 0.5), 0.1)[..., None]
    )
    np.copyto(colour, pane, where=inside[..., None])
    np.copyto(colour, np.float32(0.5) * (colour + 215), where=frame[..., None])
    if style.shop is not None:
        _shop(colour, s, t, style)
    ledge = (np.abs(t - plane.height + 0.35) < 0.3) | (np.abs(t - 3.5) < 0.12)
    colour[ledge] *= 0.8
    colour[t < 0.5] *= 0.82
    if style.roof:
        top = t > plane.height - style.roof
        colour[top] = np.float32(75) * (1 + rough[top] - 0.2 * ((t[top] * 3.0) % 1.0 < 0.2))[..., None]
    return colour


def _shop(colour: Array, s: Array, t: Array, style: Style) -> None:
    """Paint a ground floor of shop windows, doors and a fascia over ``colour``, in place."""
    assert style.shop is not None
    bay = (s / 4.2) % 1.0
    window = (t > 0.6) & (t < 2.7) & (bay > 0.08) & (bay < 0.7)
    door = (t > 0.05) & (t < 2.5) & (bay > 0.76) & (bay < 0.95)
    colour[window] = style.pane * style.dark
    if style.contrast != Style.contrast:  # goods, lights and mirrored things behind the glass
        seen = lookup('blotch', s[window], t[window], 22.0, style.shift) + lookup('leaf', s[window], t[window], 9.0)
        colour[window] *= np.exp(np.float32(0.35) * seen)[..., None]
    colour[door] = style.shop * 0.6
    fascia = (t > 2.8) & (t < 3.45)
    colour[fascia] = style.shop
    colour[fascia & (np.abs(t - 3.12) < 0.14) & (((s * 2.3) % 1.0) < 0.6) & (bay > 0.15) & (bay < 0.8)] = 225.0


def wall(rng: np.random.Generator, view: View, plane: Plane, *, layer: int = 3) -> list[Thing]:
    """Draw a free-standing wall of concrete, plaster or brick with a coping on top; ``wall``."""
    base = pick(rng, WALLS, 12)
    kind, shift, factor = rng.integers(3), tuple(rng.integers(0, 256, 2)), view.light.shade(plane.outward)

    def paint(patch: Patch) -> None:
        s, t, depth = plane.coordinates(patch)
        rough = 0.1 * lookup('blotch', s, t, 14.0, shift) + 0.05 * lookup('grain', s, t, 20.0, shift)
        if kind == 0:
            rough -= 0.22 * (((s / 2.5) % 1.0) < 0.03)
        elif kind == 1:
            rough -= 0.16 * (((t * 5.0) % 1.0 < 0.15) | (((s * 2.2 + 0.5 * (np.floor(t * 5.0) % 2)) % 1.0) < 0.08))
        rough += 0.2 * (t > plane.height - 0.18) - 0.18 * np.clip(1 - t / 0.5, 0, 1)
        patch.fill(base.astype(np.float32) * np.float32(factor) * (1 + rough)[..., None], depth)

    return stand(view, plane, 'wall', paint, layer=layer)


def fence(rng: np.random.Generator, view: View, plane: Plane, *, layer: int = 3) -> list[Thing]:
    """Draw a fence of bars, pickets or mesh; what shows between them belongs to it; ``fence``."""
    kind = rng.choice(3)
    base = jitter(rng, BARS[kind], 14) * view.light.shade(plane.outward)
    pitch, share = ((rng.uniform(0.18, 0.28), 0.42), (rng.uniform(0.16, 0.24), 0.75), (rng.uniform(0.3, 0.5), 0.6))[
        kind
    ]

    def paint(patch: Patch) -> None:
        s, t, depth = plane.coordinates(patch)
        soft = np.clip(pitch / np.maximum(3.0 * depth / view.camera.focal, 1e-4) - 0.3, 0, 1)
        bars = ((s / pitch) % 1.0 < share) * soft + share * (1 - soft)
        if kind == 0:
            bars = np.maximum(bars, ((t / pitch) % 1.0 < share) * soft)
        rails = (np.abs(t - plane.height + 0.12) < 0.07) | (np.abs(t - 0.25) < 0.06) | ((s / 2.4) % 1.0 < 0.045)
        cover = np.maximum(bars, rails)[..., None].astype(np.float32)
        behind = patch.image[patch.wanted]
        patch.fill(np.broadcast_to(base.astype(np.float32), behind.shape), depth)
        patch.image[patch.wanted] = (cover * patch.image[patch.wanted] + (1 - cover) * behind).astype(np.uint8)

    return stand(view, plane, 'fence', paint, layer=layer)

"""Flat surfaces seen along the street (road, pavement, grass, rails), and the sky above them."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from volo_seg.datasets.toyscapes.camera import Array, plane_coordinates
from volo_seg.datasets.toyscapes.light import Light
from volo_seg.datasets.toyscapes.materials import ASPHALT, GRASS, GRAVEL, SLABS, lookup, pick, tile
from volo_seg.datasets.toyscapes.sketch import Patch, Thing, View, outlines

FAR = 170.0  # metres; beyond it the backdrop begins


@dataclass(frozen=True)
class Surface:
    """The style of a flat surface; in metres: ``lines`` (x, width, dash or 0), ``zebra`` (z0, z1), ``rails`` x."""

    colour: Array
    kind: str  # asphalt, slabs, grass, gravel
    shift: tuple[int, int]
    pitch: float = 1.0
    lines: tuple[tuple[float, float, float], ...] = ()
    zebra: tuple[tuple[float, float], ...] = ()
    rails: tuple[float, ...] = ()
    paint: Array = field(default_factory=lambda: np.array([225.0, 230.0, 230.0]))


def surface(rng: np.random.Generator, kind: str, **marks: tuple[tuple[float, ...], ...] | tuple[float, ...]) -> Surface:
    """Draw a surface of ``kind``; ``marks`` are its lines, zebra bands or rails."""
    palette = {'asphalt': ASPHALT, 'slabs': SLABS, 'grass': GRASS, 'gravel': GRAVEL}[kind]
    colour = pick(rng, palette, 9)
    shift = (int(rng.integers(256)), int(rng.integers(256)))
    return Surface(colour, kind, shift, float(rng.uniform(0.45, 1.6)), **marks)  # type: ignore[arg-type]


def strip(
    view: View, label: str, edges: tuple[float, float], span: tuple[float, float], bend: float, look: Surface
) -> list[Thing]:
    """Draw a strip of ground between x = ``edges`` and z = ``span`` in metres, with the street's ``bend``."""
    z = np.geomspace(max(span[0], 0.5), span[1], 24)
    sides = [np.stack([np.full_like(z, x) + bend * z**2, np.zeros_like(z), z], axis=1) for x in edges]
    shape = view.camera.project(np.concatenate([sides[0], sides[1][::-1]]))

    def paint(patch: Patch) -> None:
        inverse = view.camera.plane(np.zeros(3), np.array([1.0, 0, 0]), np.array([0, 0, 1.0]))
        x, z_, depth = plane_coordinates(inverse, *patch.pixels())
        depth = np.minimum(depth, 2 * FAR)
        colour = _ground(x - np.float32(bend) * z_ * z_, z_, depth / view.camera.focal, look, view.light)
        patch.fill(colour, depth)

    return [Thing(label, outline, paint, FAR, 0) for outline in outlines([shape], view.camera.size)]


def _ground(x: Array, z: Array, pixel: Array, look: Surface, light: Light) -> Array:
    """Return colours, float32 (N, 3), at street metres (x, z), where a pixel is ``pixel`` metres wide."""
    sharp = np.clip(0.05 / np.maximum(pixel, 1e-4), 0, 1)
    rough = 0.05 * lookup('blotch', x, z, 5.0, look.shift) * np.clip(0.4 / pixel, 0, 1)
    rough += 0.05 * lookup('grain', x, z, 18.0, look.shift) * sharp
    if look.kind == 'grass':
        rough += 0.1 * lookup('leaf', x, z, 16.0, look.shift) * sharp + 0.06 * lookup('cloud', x, z, 9.0, look.shift)
    elif look.kind == 'slabs':
        joint = ((x / look.pitch) % 1.0 < 0.06) | ((z / look.pitch) % 1.0 < 0.06)
        rough -= 0.16 * joint * np.clip(look.pitch * 0.12 / pixel, 0, 1)
    elif look.kind == 'gravel':
        rough += 0.14 * lookup('grain', x, z, 9.0, look.shift) * sharp
    colour: Array = look.colour.astype(np.float32) * (light.shade(np.array([0.0, 1.0, 0.0])) * (1 + rough))[..., None]
    for cover in _marks(x, z, pixel, look):
        worn = cover * (0.85 + 0.1 * lookup('blotch', x, z, 30.0, look.shift))
        colour += (look.paint.astype(np.float32) - colour) * np.clip(worn, 0, 1)[..., None]
    for centre in look.rails:
        near = np.clip((0.11 - np.abs(x - np.float32(centre))) / pixel + 0.5, 0, 1)
        colour += (np.float32(62) - colour) * (0.8 * near)[..., None]
    return colour


def _marks(x: Array, z: Array, pixel: Array, look: Surface) -> list[Array]:
    """Return the shares in [0, 1] of each pixel that lane lines and zebra crossings cover."""
    covers = []
    for centre, width, dash in look.lines:
        cover = np.clip((width / 2 - np.abs(x - np.float32(centre))) / pixel + 0.5, 0, 1) * np.clip(width / pixel, 0, 1)
        covers.append(cover * ((z / dash) % 1.0 < 0.5) if dash else cover)
    covers.extend(((z > z0) & (z < z1) & ((x / 0.9) % 1.0 < 0.55)).astype(np.float32) for z0, z1 in look.zebra)
    return covers


def sky(rng: np.random.Generator, view: View) -> Thing:
    """Draw the sky over the whole picture; the town then covers its lower part."""
    height, width = view.camera.size
    shift, cover = rng.integers(0, 256, 2), np.float32(rng.uniform(-1.2, 1.4))
    top, low = view.light.sky_top.astype(np.float32), view.light.sky_low.astype(np.float32)
    outline = np.array([(0, 0), (width - 1, 0), (width - 1, height - 1), (0, height - 1)], np.int32)

    def paint(patch: Patch) -> None:
        u, v = patch.axes()
        share = np.clip(v * (2.2 / height), 0, 1).astype(np.float32)[:, None, None]
        base = top * (1 - share) + low * share
        columns, lines = (
            (u * (200.0 / width)).astype(int) + shift[0],
            (np.sqrt(v / height) * 240).astype(int) + shift[1],
        )
        noise = cv2.GaussianBlur(
            tile('cloud')[lines[:, None] & 255, columns[None] & 255], (0, 0), max(width / 400, 0.5)
        )
        white = np.clip(0.6 * (noise + cover), 0, 0.9)[..., None]
        cloud = 0.45 * low + 132 - 14 * noise[..., None]
        patch.image[:] = np.clip(base + (cloud - base) * white, 0, 255).astype(np.uint8)

    return Thing('sky', outline, paint, FAR * 4, 0)


def backdrop(rng: np.random.Generator, view: View, label: str, colour: Array) -> list[Thing]:
    """Draw a far skyline of roofs (``building``) or woods (``vegetation``) that hides the horizon."""
    steps = int(rng.integers(14, 40))
    x = np.linspace(-1.3 * FAR, 1.3 * FAR, steps)
    if label == 'building':
        x, heights = np.repeat(x, 2)[1:-1], np.repeat(rng.uniform(4, 20, steps - 1), 2)
    else:
        heights = rng.uniform(5, 13) * rng.uniform(0.7, 1.2, steps)
    heights = heights * np.float64(rng.uniform(0.6, 1.3))
    top = np.stack([x, heights, np.full_like(x, FAR)], axis=1)
    low = np.array([(x[-1], -1.5, FAR), (x[0], -1.5, FAR)])
    shape, seed = view.camera.project(np.concatenate([top, low])), int(rng.integers(256))

    def paint(patch: Patch) -> None:
        u, v = (axis.astype(int) for axis in patch.pixels())
        noise = tile('leaf' if label == 'vegetation' else 'blotch')[(3 * v + seed) & 255, (2 * u + seed) & 255]
        patch.fill(colour.astype(np.float32) * (0.8 + 0.14 * noise)[..., None], 0.45 * FAR)

    return [Thing(label, outline, paint, FAR, 0) for outline in outlines([shape], view.camera.size)]

"""Flat surfaces seen along the street (road, pavement, grass, rails), and the sky above them."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from volo_seg.datasets.toyscapes.camera import Array
from volo_seg.datasets.toyscapes.light import Light
from volo_seg.datasets.toyscapes.materials import ASPHALT, GRASS, GRAVEL, SLABS, lookup, pick, tile
from volo_seg.datasets.toyscapes.sketch import Patch, Thing, View, outlines

FAR = 170.0  # metres; beyond it the backdrop begins
_TURN = np.linspace(0, 2 * np.pi, 12, endpoint=False)


@dataclass(frozen=True)
class Surface:
    """The style of a flat surface; in metres: ``lines`` (x, width, dash or 0), ``zebra`` (z0, z1), ``rails`` x.

    ``kerbs``: (x, width in metres, brightness) of stones and gutters along an edge; ``decals``: (polygon (N, 2) of
    metres (x, z), BGR) of patches, cracks, covers, arrows; ``flat``: length of a slab over its width.
    """

    colour: Array
    kind: str  # asphalt, slabs, grass, gravel
    shift: tuple[int, int]
    pitch: float = 1.0
    lines: tuple[tuple[float, float, float], ...] = ()
    zebra: tuple[tuple[float, float], ...] = ()
    rails: tuple[float, ...] = ()
    paint: Array = field(default_factory=lambda: np.array([225.0, 230.0, 230.0]))
    kerbs: tuple[tuple[float, float, float], ...] = ()
    decals: tuple[tuple[Array, Array], ...] = ()
    flat: float = 1.0


def surface(rng: np.random.Generator, kind: str, **marks: tuple[tuple[float, ...], ...] | tuple[float, ...]) -> Surface:
    """Draw a surface of ``kind``; ``marks`` are its lines, zebra bands or rails."""
    palette = {'asphalt': ASPHALT, 'slabs': SLABS, 'grass': GRASS, 'gravel': GRAVEL}[kind]
    colour = pick(rng, palette, 9)
    shift = (int(rng.integers(256)), int(rng.integers(256)))
    return Surface(colour, kind, shift, float(rng.uniform(0.45, 1.6)), **marks)  # type: ignore[arg-type]


def any_surface(rng: np.random.Generator, kind: str, colour: Array | None = None) -> Surface:
    """Draw a surface of ``kind`` in any shade of grey, sometimes coloured, or in ``colour``; slabs of any size."""
    if colour is None:
        natural = pick(rng, {'asphalt': ASPHALT, 'slabs': SLABS, 'grass': GRASS, 'gravel': GRAVEL}[kind], 9)
        grey = np.full(3, rng.uniform(60, 190)) * np.exp(rng.normal(0, 0.04, 3))
        colour = natural if kind == 'grass' or rng.random() < 0.3 else grey
    shift = (int(rng.integers(256)), int(rng.integers(256)))
    paint = np.array([225.0, 230.0, 230.0]) if rng.random() < 0.75 else np.array([60.0, 170.0, 210.0])
    pitch, flat = float(np.exp(rng.uniform(np.log(0.12), np.log(1.8)))), float(rng.choice([1.0, 2.0, 0.5]))
    return Surface(colour, kind, shift, pitch, paint=paint, flat=flat)


def decals(rng: np.random.Generator, colour: Array, half: float, paint: Array | None) -> list[tuple[Array, Array]]:
    """Draw what lies on a ground of ``colour`` within ``half`` metres: patches, cracks, covers, arrows in ``paint``."""
    found: list[tuple[Array, Array]] = []

    def place() -> Array:
        return np.array([rng.uniform(-half, half), 2.0 + 38 * rng.random() ** 2])

    square = np.array([(-1, -1), (-1, 1), (1, 1), (1, -1)], np.float64)
    for _ in range(int(rng.integers(0, 7))):  # repaired patches and trenches
        size = np.exp(rng.uniform(np.log([0.2, 0.4]), np.log([2.0, 9.0])))
        found.append((place() + square * size, colour * rng.uniform(0.7, 1.25)))
    for _ in range(int(rng.integers(0, 7))):  # cracks and seams
        path = place() + np.cumsum(rng.normal(0, 0.35, (9, 2)) + rng.normal(0, 0.4, 2), axis=0)
        wide = np.array([rng.uniform(0.01, 0.04), 0.0])
        found.append((np.concatenate([path - wide, (path + wide)[::-1]]), colour * rng.uniform(0.4, 0.8)))
    for _ in range(int(rng.integers(0, 4))):  # covers and drains
        shape = np.stack([np.cos(_TURN), np.sin(_TURN)], axis=1) * 0.35 if rng.random() < 0.6 else square * 0.25
        found.append((place() + shape, colour * rng.uniform(0.4, 0.9)))
    if paint is not None and rng.random() < 0.4:
        arrow = np.array([(-0.08, 0), (-0.08, 2), (-0.35, 2), (0, 3.4), (0.35, 2), (0.08, 2), (0.08, 0)])
        starts = [np.array([lane * half, rng.uniform(4, 25)]) for lane in (-0.5, 0.5)]
        found += [(start + arrow * (1.0, -np.sign(start[0])), paint) for start in starts]
    if paint is not None and rng.random() < 0.15:  # a coloured cycle lane
        side, tint = half * rng.choice([-1.0, 1.0]), colour * rng.choice([(0.8, 0.85, 1.5), (0.8, 1.2, 0.9)])
        long = np.linspace(1, 60, 20)
        edges = [np.stack([np.full(20, x), long], axis=1) for x in (side, side * 0.72)]
        found.insert(0, (np.concatenate([edges[0], edges[1][::-1]]), tint))
    return found


def strip(
    view: View, label: str, edges: tuple[float, float], span: tuple[float, float], bend: float, look: Surface
) -> list[Thing]:
    """Draw a strip of ground between x = ``edges`` and z = ``span`` in metres, with the street's ``bend``."""
    z = np.geomspace(max(span[0], 0.5), span[1], 24)
    sides = [np.stack([np.full_like(z, x) + bend * z**2, np.zeros_like(z), z], axis=1) for x in edges]
    shape = view.camera.project(np.concatenate([sides[0], sides[1][::-1]]))

    def paint(patch: Patch) -> None:
        x, z_, depth = view.camera.ground(*patch.pixels())
        depth = np.minimum(depth, 2 * FAR)
        colour = _ground(x - np.float32(bend) * z_ * z_, z_, depth / view.camera.focal, look, view.light)
        patch.fill(colour, depth)
        shade = view.light.shade(np.array([0.0, 1.0, 0.0]))
        for shape, tone in look.decals:
            points = np.stack([shape[:, 0] + bend * shape[:, 1] ** 2, np.zeros(len(shape)), shape[:, 1]], axis=1)
            pixels = np.round((view.camera.project(points) - patch.corner) * 16).astype(np.int32)
            if len(pixels) >= 3:
                cv2.fillPoly(patch.image, [pixels], np.clip(tone * shade, 0, 255).tolist(), cv2.LINE_AA, 4)

    return [Thing(label, outline, paint, FAR, 0) for outline in outlines([shape], view.camera.size)]


def _ground(x: Array, z: Array, pixel: Array, look: Surface, light: Light) -> Array:
    """Return colours, float32 (N, 3), at street metres (x, z), where a pixel is ``pixel`` metres wide."""
    sharp = np.clip(0.05 / np.maximum(pixel, 1e-4), 0, 1)
    rough = 0.05 * lookup('blotch', x, z, 5.0, look.shift) * np.clip(0.4 / pixel, 0, 1)
    rough += 0.05 * lookup('grain', x, z, 18.0, look.shift) * sharp
    if look.kind == 'grass':
        rough += 0.1 * lookup('leaf', x, z, 16.0, look.shift) * sharp + 0.06 * lookup('cloud', x, z, 9.0, look.shift)
    elif look.kind == 'slabs':
        joint = ((x / look.pitch) % 1.0 < 0.06) | ((z / (look.pitch * look.flat)) % 1.0 < 0.06)
        rough -= 0.16 * joint * np.clip(look.pitch * 0.12 / pixel, 0, 1)
    elif look.kind == 'gravel':
        rough += 0.14 * lookup('grain', x, z, 9.0, look.shift) * sharp
    colour: Array = look.colour.astype(np.float32) * (light.shade(np.array([0.0, 1.0, 0.0])) * (1 + rough))[..., None]
    for cover in _marks(x, z, pixel, look):
        worn = cover * (0.85 + 0.1 * lookup('blotch', x, z, 30.0, look.shift))
        colour += (look.paint.astype(np.float32) - colour) * np.clip(worn, 0, 1)[..., None]
    for centre, width, tone in look.kerbs:
        cover = np.clip((width / 2 - np.abs(x - np.float32(centre))) / pixel + 0.5, 0, 1) * np.clip(width / pixel, 0, 1)
        colour *= (1 + np.float32(tone - 1) * cover)[..., None]
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

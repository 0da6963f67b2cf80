"""Trees, bushes and hedges: leaves from noise, lit by the sun, with gaps that show the background."""

from __future__ import annotations

import cv2
import numpy as np

from volo_seg.datasets.toyscapes.camera import NEAR, Array
from volo_seg.datasets.toyscapes.materials import BARK, LEAVES, TILE, pick, tile
from volo_seg.datasets.toyscapes.sketch import Patch, Sketch, Thing, View, outlines

PINE = np.array([(0, 1.25), (-0.18, 0.44), (-0.11, 0.44), (-0.38, -0.38), (-0.22, -0.38), (-0.5, -1.25),
                 (0.5, -1.25), (0.22, -0.38), (0.38, -0.38), (0.11, 0.44), (0.18, 0.44)])  # fmt: skip


def _crown(rng: np.random.Generator, count: int, flat: float) -> Array:
    """Draw an uneven outline around the origin, (count, 2), of radius about one, squeezed by ``flat``."""
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    radius = np.ones(count)
    for k in (2, 3, 5, 8, 11):
        radius += rng.uniform(0.02, 0.16) * np.cos(k * angles + rng.uniform(0, 6.3))
    return np.stack([np.cos(angles), flat * np.sin(angles)], axis=1) * radius[:, None]


def tree(
    rng: np.random.Generator, view: View, place: tuple[float, float], *, layer: int = 4, giant: float = 12.0
) -> list[Thing]:
    """Draw a broad-leaved tree or a conifer, 4 to ``giant`` metres tall; its trunk is ``vegetation`` too."""
    foot = np.array([place[0], 0.0, place[1]])
    tall, pine = rng.uniform(4.0, giant), rng.random() < 0.15
    half = tall * rng.uniform(0.2, 0.38)
    if pine:
        shape = PINE
        middle = 0.56 * tall
    else:
        shape, middle = _crown(rng, 40, rng.uniform(0.75, 1.1)), tall - half
    scale = half if not pine else 0.34 * tall
    points = foot + np.stack([shape[:, 0] * scale, middle + shape[:, 1] * scale, np.zeros(len(shape))], axis=1)
    trunk = pick(rng, BARK, 14)
    sketch = Sketch(view)
    sketch.capsule(foot, foot + np.array([rng.normal(0, 0.15), middle, 0.0]), (0.022 * tall, 0.014 * tall), trunk)
    crown = view.camera.project(points)
    return _leafy(
        rng, view, crown, sketch, view.camera.depth(foot), layer, gaps=rng.uniform(0.9 if view.random else 1.2, 2.6)
    )


def bare_tree(rng: np.random.Generator, view: View, place: tuple[float, float], size: float, layer: int) -> list[Thing]:
    """Draw a tree in winter, ``size`` metres tall: forked branches and twigs, and what shows between them."""
    rng = np.random.default_rng(
        int(rng.integers(1 << 30))
    )  # a larger picture shows more forks, and then the same scene
    sketch, bark = Sketch(view), pick(rng, BARK, 14) * rng.uniform(0.8, 2.2)
    foot = np.array([place[0], 0.0, place[1]])
    pixels, depth = view.camera.focal / max(view.camera.depth(foot), NEAR), view.camera.depth(foot)
    levels = int(np.clip(np.log2(max(size * pixels, 1)) - 1, 2, 6))
    tips, spread = [(np.zeros(2), np.array([rng.normal(0, 0.04), 1.0]), 0.3 * size)], rng.uniform(0.35, 0.65)
    rods, ends = [], []
    for level in range(levels + 1):
        forked = []
        for start, way, long in tips:
            end = start + way * long
            rods.append((start, end, level))
            ends.append(end)
            for turn in rng.normal(0, 0.15, 3 if level < 4 else 2) + np.linspace(
                -spread, spread, 3 if level < 4 else 2
            ):
                cos, sin = np.cos(turn), np.sin(turn)
                way_on = np.array([cos * way[0] - sin * way[1], sin * way[0] + cos * way[1] + 0.08])
                forked.append((end, way_on / np.hypot(*way_on), long * rng.uniform(0.55, 0.85)))
        tips = forked
    hull = cv2.convexHull(np.array(ends[1:] if len(ends) > 3 else [*ends, ends[0] + 0.1], np.float32))[:, 0]
    crown = view.camera.project(np.stack([foot[0] + hull[:, 0], hull[:, 1], np.full(len(hull), foot[2])], axis=1))
    thick = 0.03 * size * 0.62 ** np.arange(levels + 1)
    sketch.capsule(foot, foot + np.array([rods[0][1][0], rods[0][1][1], 0]), (thick[0], 0.7 * thick[0]), bark)
    found = outlines([crown, *(piece for piece, _, _ in sketch.shapes)], view.camera.size) if len(crown) > 2 else []
    if not found or depth < NEAR:
        return []
    lines = np.array([[start, end] for start, end, _ in rods])
    points = np.stack([foot[0] + lines[..., 0], lines[..., 1], np.full(lines.shape[:2], foot[2])], axis=-1)
    flat = view.camera.homogeneous(points.reshape(-1, 3))
    ends_px = np.round(flat[:, :2] / flat[:, 2:] * 16).astype(np.int32).reshape(-1, 2, 2)
    order = np.array([level for _, _, level in rods])
    haze, density, seed = view.light.haze(depth), rng.uniform(0.3, 1.0), int(rng.integers(1 << 16))

    def paint(patch: Patch) -> None:
        colour = bark * (1 - haze) + view.light.sky_low * haze
        twigs = np.abs(_sample('leaf', patch, float(np.clip(30.0 / pixels, 0.8, 4.0)), seed)) < density
        inside = np.zeros(twigs.shape, np.uint8)
        cv2.fillPoly(inside, [np.round(crown - patch.corner).astype(np.int32)], 1)
        soft = patch.image * np.float32(0.4) + colour.astype(np.float32) * np.float32(0.6)
        np.copyto(patch.image, soft.astype(np.uint8), where=(twigs & (inside > 0))[..., None])
        corner = np.array(patch.corner) * 16
        for level in range(levels, -1, -1):
            wide = max(1, round(2 * thick[level] * pixels))
            tone = tuple((colour * (1.0 + 0.08 * level)).tolist())
            cv2.polylines(patch.image, list(ends_px[order == level] - corner), False, tone, wide, cv2.LINE_AA, 4)

    return [Thing('vegetation', found[0], paint, depth, layer)]


def _sample(kind: str, patch: Patch, texels: float, seed: int) -> Array:
    """Return the noise of a tile over a patch, float32 (h, w), ``texels`` a pixel."""
    across, down = patch.axes()
    columns = ((across * texels).astype(np.int64) + seed) & (TILE - 1)
    rows = ((down * texels).astype(np.int64) + (seed >> 8)) & (TILE - 1)
    return tile(kind)[rows[:, None], columns[None]]


def hedge(
    rng: np.random.Generator, view: View, start: tuple[float, float], end: tuple[float, float], *, layer: int
) -> list[Thing]:
    """Draw a row of bushes along the ground from ``start`` to ``end`` = (x, z), 0.8 to 2.5 metres high."""
    steps = 14
    height = rng.uniform(0.8, 2.5)
    x, z = (np.linspace(a, b, steps) for a, b in zip(start, end, strict=True))
    top = np.stack([x, height * rng.uniform(0.75, 1.15, steps), z], axis=1)
    low = np.stack([x, np.zeros(steps), z], axis=1)[::-1]
    shape = view.camera.project(np.concatenate([top, low]))
    depth = view.camera.depth(np.array([start[0], 0.0, min(start[1], end[1])]))
    return _leafy(rng, view, shape, Sketch(view), max(depth, NEAR), layer, gaps=9.0)


def _leafy(
    rng: np.random.Generator, view: View, shape: Array, trunk: Sketch, depth: float, layer: int, *, gaps: float
) -> list[Thing]:
    green, seed = pick(rng, LEAVES, 9), int(rng.integers(1 << 30))
    if len(shape) < 3 or depth < NEAR:
        return []
    found = outlines([shape, *(piece for piece, _, _ in trunk.shapes)], view.camera.size)
    if not found:
        return []
    centre, half = (shape.min(0) + shape.max(0)) / 2, np.maximum(np.ptp(shape, axis=0) / 2, 1.0)
    texels = float(np.clip(26.0 * depth / view.camera.focal, 0.35, 6.0))  # leaves shrink with distance

    def paint(patch: Patch) -> None:
        trunk.paint(patch, depth)
        _leaves(patch, green, centre, half, texels, gaps, seed, view.light.haze(depth))

    return [Thing('vegetation', found[0], paint, depth, layer)]


def _leaves(
    patch: Patch, green: Array, centre: Array, half: Array, texels: float, gaps: float, seed: int, haze: float
) -> None:
    """Paint leaves over ``patch``; ``gaps``: deviations of noise below which the background shows."""
    across, down = patch.axes()
    leaf, clumps = (_sample(kind, patch, texels, seed) for kind in ('leaf', 'blotch'))
    u = ((across - centre[0]) / half[0])[None].astype(np.float32)
    v = ((down - centre[1]) / half[1])[:, None].astype(np.float32)
    sun, share = patch.view.light.sun, patch.view.light.sun_share
    lit = 0.82 + share * 0.3 * (u * np.sign(sun[0]) - v) * (u * u + v * v < 2) - 0.12 * v
    factor = lit + 0.2 * leaf + 0.14 * clumps
    colour = green.astype(np.float32) * np.clip(factor, 0.2, 1.7)[..., None]
    colour = colour * (1 - haze) + patch.view.light.sky_low.astype(np.float32) * haze
    distance = u * u + v * v
    covered = (leaf + 0.6 * clumps > -gaps - 1.6 * (1.0 - distance)) & (distance < 1.9)
    np.copyto(patch.image, np.clip(colour, 0, 255).astype(np.uint8), where=covered[..., None])

"""Trees, bushes and hedges: leaves from noise, lit by the sun, with gaps that show the background."""

from __future__ import annotations

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


def tree(rng: np.random.Generator, view: View, place: tuple[float, float], *, layer: int = 4) -> list[Thing]:
    """Draw a broad-leaved tree or a conifer, 4 to 12 metres tall; its trunk is ``vegetation`` too."""
    foot = np.array([place[0], 0.0, place[1]])
    tall, pine = rng.uniform(4.0, 12.0), rng.random() < 0.15
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
    return _leafy(rng, view, crown, sketch, view.camera.depth(foot), layer, gaps=rng.uniform(1.2, 2.6))


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
    columns = ((across * texels).astype(np.int64) + seed) & (TILE - 1)
    rows = ((down * texels).astype(np.int64) + (seed >> 8)) & (TILE - 1)
    leaf = tile('leaf')[rows[:, None], columns[None]]
    clumps = tile('blotch')[rows[:, None], columns[None]]
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

"""Objects on pavements: poles, traffic lights and signs, and litter bins (``static``)."""

from __future__ import annotations

import numpy as np

from volo_seg.datasets.toyscapes.camera import Array
from volo_seg.datasets.toyscapes.materials import LITTER, STEEL, jitter, pick
from volo_seg.datasets.toyscapes.sketch import Sketch, Thing, View

UP = np.array([0.0, 1.0, 0.0])


def _pole(
    rng: np.random.Generator, view: View, foot: Array, height: float, radius: float, arm: Array | None = None
) -> list[Thing]:
    sketch, colour = Sketch(view), pick(rng, STEEL, 10)
    if view.random:
        radius *= float(np.exp(rng.normal(0, 0.35)))
    top = foot + height * UP
    sketch.capsule(foot, top, (radius * 1.15, radius), colour)
    offset = 0.35 * radius * np.array([np.sign(view.light.sun[0]), 0, 0])
    sketch.capsule(foot + offset, top + offset, (radius * 0.4,) * 2, np.minimum(colour * 1.3, 250))
    if arm is not None:
        sketch.capsule(top, top + arm, (radius * 0.8, radius * 0.7), colour)
    return sketch.thing('pole', view.camera.depth(foot))


def lamp_post(rng: np.random.Generator, view: View, place: tuple[float, float], inward: float) -> list[Thing]:
    """Draw a street lamp: a pole 5 to 9 metres high with an arm towards the road (``inward`` = +1 or -1)."""
    foot = np.array([place[0], 0.0, place[1]])
    arm = np.array([inward * rng.uniform(0.8, 2.2), rng.uniform(0.1, 0.6), 0.0])
    return _pole(rng, view, foot, rng.uniform(5.0, 9.0), rng.uniform(0.07, 0.12), arm)


def bollard(rng: np.random.Generator, view: View, place: tuple[float, float]) -> list[Thing]:
    """Draw a short pole at the kerb."""
    return _pole(rng, view, np.array([place[0], 0.0, place[1]]), rng.uniform(0.8, 1.1), 0.07)


def traffic_light(rng: np.random.Generator, view: View, place: tuple[float, float], inward: float) -> list[Thing]:
    """Draw a pole with a signal head; sometimes a second head hangs on an arm over the road."""
    foot = np.array([place[0], 0.0, place[1]])
    high = rng.random() < 0.4
    height = rng.uniform(4.8, 5.6) if high else rng.uniform(2.9, 3.4)
    arm = np.array([inward * rng.uniform(2.0, 3.5), 0.2, 0.0]) if high else None
    things = _pole(rng, view, foot, height, 0.08, arm)
    state = int(rng.integers(3))
    spots = [foot + np.array([0.0, min(height, 3.3) - 0.5, -0.12])]
    if arm is not None:
        spots.append(foot + (height - 0.25) * UP + arm + np.array([0, 0, -0.12]))
    for spot in spots:
        things += _signal(view, spot, state, rng.uniform(0.95, 1.3))
    return things


def _signal(view: View, centre: Array, state: int, scale: float) -> list[Thing]:
    sketch = Sketch(view)
    wide, tall = 0.18 * scale, 0.48 * scale
    corners = [(-wide, -tall), (-wide, tall), (wide, tall), (wide, -tall)]
    sketch.face(np.stack([centre + np.array([x, y, 0]) for x, y in corners]), np.array([38.0, 40.0, 38.0]))
    lamps = ((40.0, 40.0, 250.0), (40.0, 190.0, 250.0), (130.0, 230.0, 60.0))
    for i, colour in enumerate(lamps):
        spot = centre + np.array([0, (1 - i) * 0.31 * scale, -0.02])
        sketch.capsule(spot, spot, (0.115 * scale,) * 2, np.array(colour) * (1.0 if i == state else 0.22))
    return sketch.thing('traffic light', view.camera.depth(centre) - 0.02)


def traffic_sign(rng: np.random.Generator, view: View, place: tuple[float, float]) -> list[Thing]:
    """Draw a sign on a pole: round, triangular, square or a large direction board; sometimes two."""
    foot = np.array([place[0], 0.0, place[1]])
    height = rng.uniform(2.4, 3.2)
    things = _pole(rng, view, foot, height, 0.05)
    y = height - 0.3
    for _ in range(1 + int(rng.random() < 0.3)):
        things += _plate(rng, view, foot + np.array([0.0, y, -0.07]))
        y -= 0.85
    return things


def _plate(rng: np.random.Generator, view: View, centre: Array) -> list[Thing]:
    kind = rng.choice(5, p=[0.3, 0.22, 0.2, 0.14, 0.14])
    size = rng.uniform(0.2, 0.5) if view.random else rng.uniform(0.33, 0.48)
    red, blue, white, yellow = (45, 40, 200), (175, 85, 30), (235, 235, 235), (40, 200, 235)
    rim, inner = ((red, white), (red, white), (blue, blue), (white, yellow), (blue, blue))[kind]
    if kind == 0 and rng.random() < 0.35:
        rim, inner = (blue, blue) if rng.random() < 0.6 else (red, red)
    count, start = ((16, 0.0), (3, np.pi / 2), (4, np.pi / 4), (4, 0.0), (4, np.pi / 4))[kind]
    angles = np.arange(count) * 2 * np.pi / count + start
    stretch = 1.9 if kind == 4 else 1.0
    shape = np.stack([np.cos(angles) * stretch, np.sin(angles), np.zeros(count)], axis=1) * size * 1.15
    sketch = Sketch(view)
    factor = view.light.shade(np.array([0.0, 0.0, -1.0]))
    sketch.face(centre + shape, jitter(rng, rim, 8) * factor)
    sketch.face(centre + 0.72 * shape, jitter(rng, inner, 8) * factor)
    bar = np.array([[-0.5, -0.12, 0], [-0.5, 0.12, 0], [0.5, 0.12, 0], [0.5, -0.12, 0]]) * size * stretch
    sketch.face(centre + bar, np.array(white if inner != white else (40, 40, 40), np.float64) * factor)
    return sketch.thing('traffic sign', view.camera.depth(centre) - 0.02)


def litter(rng: np.random.Generator, view: View, place: tuple[float, float]) -> list[Thing]:
    """Draw a bin, a cabinet or a box: ``static``, ignored in training."""
    sketch, colour = Sketch(view), pick(rng, LITTER, 20)
    wide, tall = rng.uniform(0.25, 0.55), rng.uniform(0.7, 1.4)
    x, z = place
    front = np.array([(x - wide, 0.0, z), (x - wide, tall, z), (x + wide, tall, z), (x + wide, 0.0, z)])
    sketch.face(front, colour)
    lid = front[1:3].repeat(2, axis=0)
    lid[1:3] += np.array([(0.2 * wide, 0.1 * tall, 0.3), (-0.2 * wide, 0.1 * tall, 0.3)])
    sketch.face(lid, np.minimum(colour * 1.25, 250))
    return sketch.thing('static', view.camera.depth(np.array([x, 0.0, z])))

"""Cars, lorries, buses and trams."""

from __future__ import annotations

import numpy as np

from volo_seg.datasets.toyscapes.bodywork import GLASS, UP, Body, Profile, hull, lamps, panes, row, wheels
from volo_seg.datasets.toyscapes.materials import BUSES, CARS, LOADS, TRAMS, pick
from volo_seg.datasets.toyscapes.sketch import Sketch, Thing, View

SEDAN = Profile(
    ((-0.49, 0.18), (-0.5, 0.58), (-0.46, 0.66), (-0.36, 0.68), (-0.21, 0.98), (0.07, 1.0), (0.24, 0.68),
     (0.46, 0.58), (0.5, 0.42), (0.49, 0.18)), (3, 5), 0.66)  # fmt: skip
HATCH = Profile(
    ((-0.49, 0.18), (-0.5, 0.55), (-0.47, 0.66), (-0.39, 0.97), (0.04, 1.0), (0.23, 0.67), (0.46, 0.58),
     (0.5, 0.4), (0.49, 0.18)), (2, 4), 0.64)  # fmt: skip
VAN = Profile(
    ((-0.5, 0.14), (-0.5, 0.5), (-0.49, 0.58), (-0.46, 0.98), (0.2, 1.0), (0.37, 0.6), (0.48, 0.5),
     (0.5, 0.14)), (2, 4), 0.58)  # fmt: skip
BOX = Profile(
    ((-0.5, 0.1), (-0.5, 0.45), (-0.5, 0.86), (-0.49, 1.0), (0.49, 1.0), (0.5, 0.86), (0.5, 0.42),
     (0.5, 0.1)), (1, 5), 0.45)  # fmt: skip
TRAM = Profile(
    ((-0.49, 0.08), (-0.5, 0.4), (-0.48, 0.85), (-0.45, 1.0), (0.45, 1.0), (0.48, 0.85), (0.5, 0.4),
     (0.49, 0.08)), (1, 5), 0.4)  # fmt: skip


def car(rng: np.random.Generator, view: View, place: tuple[float, float], yaw: float) -> list[Thing]:
    """Draw a saloon, hatchback or van at ``place`` = (x, z), heading ``yaw`` radians right of forward."""
    kind = rng.choice(3, p=[0.4, 0.4, 0.2])
    profile = (SEDAN, HATCH, VAN)[kind]
    size = ((4.5, 1.8, 1.45), (4.0, 1.75, 1.52), (4.8, 1.95, 1.95))[kind]
    if view.random:
        profile, body = _any_car(rng, profile, size, place, yaw)
    else:
        body = Body(place, yaw, (size[0] * rng.uniform(0.93, 1.07), size[1], size[2] * rng.uniform(0.95, 1.08)))
    paint = pick(rng, CARS, 16)
    sketch = Sketch(view)
    hull(sketch, body, profile, paint, 0.22)
    rear, front = profile.points[profile.glass[0]], profile.points[profile.glass[1] + 1]
    back, fore = profile.points[profile.glass[0] + 1], profile.points[profile.glass[1]]
    glass = [(rear[0] + 0.05, profile.belt + 0.04), (back[0] + 0.04, 0.92), (fore[0] - 0.01, 0.93),
             (front[0] - 0.05, profile.belt + 0.04)]  # fmt: skip
    for sign in (-1.0, 1.0):
        sketch.face(body.side(glass, sign * (body.width / 2 + 0.01), 0.22, profile.belt), body.glass, sign * body.right)
    if view.random and rng.random() < 0.5:  # a dark sill
        panes(sketch, body, [(-0.47, 0.47)], 0.16, float(rng.uniform(0.22, 0.34)), paint * rng.uniform(0.2, 0.7))
    wheels(sketch, body, 0.32, (-0.31, 0.31))
    lamps(sketch, body, 0.48 * body.height, bool(rng.random() < 0.5))
    return sketch.thing('car', view.camera.depth(body.origin))


def _any_car(
    rng: np.random.Generator, profile: Profile, size: tuple[float, float, float], place: tuple[float, float], yaw: float
) -> tuple[Profile, Body]:
    """Bend ``profile`` and stretch ``size`` into any car between a city car and a van; its glass is dark or mirrors."""
    points = np.array(profile.points)
    points[1:-1] += rng.normal(0, 0.018, points[1:-1].shape)
    points[:, 1] = np.clip(points[:, 1], 0.15, 1.0)
    bent = Profile(tuple((float(x), float(y)) for x, y in points), profile.glass, profile.belt)
    sides = (size[0] * rng.uniform(0.75, 1.15), size[1] * rng.uniform(0.92, 1.08), size[2] * rng.uniform(0.9, 1.2))
    return bent, Body(place, yaw, sides, np.clip(GLASS * np.exp(rng.normal(0.1, 0.5)), 12, 220))


def truck(rng: np.random.Generator, view: View, place: tuple[float, float], yaw: float) -> list[Thing]:
    """Draw a lorry: a cab, and behind it a higher plain box."""
    length, height = rng.uniform(6.5, 9.5), rng.uniform(2.9, 3.6)
    whole = Body(place, yaw, (length, 2.45, height))
    load = Body(_ahead(place, yaw, -0.13 * length), yaw, (length * 0.74, 2.45, height))
    cab = Body(_ahead(place, yaw, 0.38 * length), yaw, (length * 0.22, 2.3, height * rng.uniform(0.72, 0.86)))
    box = pick(rng, LOADS, 14)
    sketch = Sketch(view)
    raised = Profile(((-0.5, 0.27), (-0.5, 1.0), (0.5, 1.0), (0.5, 0.27)), (), 1.0)
    chassis = Profile(((-0.5, 0.14), (-0.5, 0.3), (0.5, 0.3), (0.5, 0.14)), (), 1.0)
    nose = Profile(((-0.5, 0.12), (-0.5, 1.0), (0.34, 1.0), (0.48, 0.52), (0.5, 0.12)), (2,), 0.5)
    pieces = [(load, raised, box), (cab, nose, pick(rng, CARS, 16))]
    hull(sketch, whole, chassis, np.array([45.0, 45.0, 46.0]), 0.0)
    for body, profile, paint in sorted(pieces, key=lambda piece: -view.camera.depth(piece[0].origin)):
        hull(sketch, body, profile, paint, 0.06 if profile is nose else 0.0)
        if profile is nose:
            panes(sketch, cab, [(-0.25, 0.33)], 0.55, 0.88, GLASS)
        else:
            low, high = sorted(rng.uniform(0.35, 0.9, 2))
            panes(sketch, load, [(-0.46, 0.46)], low, high, box * rng.uniform(0.7, 1.1))
    wheels(sketch, whole, 0.5, (-0.34, -0.2, 0.36))
    lamps(sketch, whole, 0.75, bool(rng.random() < 0.5))
    return sketch.thing('truck', view.camera.depth(whole.origin))


def bus(rng: np.random.Generator, view: View, place: tuple[float, float], yaw: float) -> list[Thing]:
    """Draw a city bus: one box with a long band of windows and doors."""
    body = Body(place, yaw, (rng.uniform(10.0, 12.5), 2.5, rng.uniform(2.9, 3.2)))
    paint = pick(rng, BUSES, 12)
    sketch = Sketch(view)
    hull(sketch, body, BOX, paint, 0.03)
    panes(sketch, body, row(-0.47, 0.47, 7, 0.008), 0.46, 0.84, GLASS)
    panes(sketch, body, [(0.37, 0.45), (-0.06, 0.04)], 0.12, 0.84, GLASS * 0.8)
    panes(sketch, body, [(-0.49, 0.49)], 0.32, 0.38, pick(rng, LOADS, 20))
    wheels(sketch, body, 0.48, (-0.28, 0.29))
    lamps(sketch, body, 0.7, bool(rng.random() < 0.5))
    return sketch.thing('bus', view.camera.depth(body.origin))


def tram(rng: np.random.Generator, view: View, place: tuple[float, float], yaw: float) -> list[Thing]:
    """Draw a tram (``train``): long, jointed, slanted at both ends, a current collector on its roof."""
    body = Body(place, yaw, (rng.uniform(19.0, 27.0), 2.4, rng.uniform(3.2, 3.5)))
    paint = pick(rng, TRAMS, 12)
    sketch = Sketch(view)
    roof = body.at(rng.uniform(-3, 3), body.height, 0.0)
    for lean in (-0.9, 0.9):
        sketch.capsule(roof, roof + 0.6 * UP + lean * body.forward, (0.05, 0.05), np.array([60.0] * 3))
    hull(sketch, body, TRAM, paint, 0.05)
    joints = np.linspace(-0.5, 0.5, 4)
    for a, b in zip(joints[:-1], joints[1:], strict=True):
        panes(sketch, body, row(a + 0.02, b - 0.02, 4, 0.004), 0.42, 0.8, GLASS)
    panes(sketch, body, [(j - 0.008, j + 0.008) for j in joints[1:-1]], 0.08, 0.97, np.array([50.0] * 3))
    panes(sketch, body, [(-0.48, 0.48)], 0.84, 0.9, np.array([215.0] * 3))
    panes(sketch, body, [(-0.48, 0.48)], 0.06, 0.14, np.array([48.0] * 3))
    lamps(sketch, body, 0.85, False)
    return sketch.thing('train', view.camera.depth(body.origin))


def _ahead(place: tuple[float, float], yaw: float, metres: float) -> tuple[float, float]:
    return place[0] + metres * float(np.sin(yaw)), place[1] + metres * float(np.cos(yaw))

"""People on foot, and riders with their bicycles and motorcycles, made of rounded limbs."""

from __future__ import annotations

import numpy as np

from volo_seg.datasets.toyscapes.bodywork import TYRE, UP, Body
from volo_seg.datasets.toyscapes.camera import Array
from volo_seg.datasets.toyscapes.materials import CARS, CLOTHES, HAIR, JACKETS, SKINS, TROUSERS, pick
from volo_seg.datasets.toyscapes.sketch import Sketch, Thing, View, circle


def person(rng: np.random.Generator, view: View, place: tuple[float, float], yaw: float) -> list[Thing]:
    """Draw a person standing or walking at ``place`` = (x, z), 1.1 to 1.95 metres tall."""
    tall = rng.uniform(1.1, 1.4) if rng.random() < 0.12 else rng.uniform(1.58, 1.95)
    body = Body(place, yaw, (1.0, 1.0, tall))
    top, legs, skin = pick(rng, CLOTHES, 16), pick(rng, TROUSERS, 10), pick(rng, SKINS, 8)
    stride, swing = rng.uniform(0.02, 0.2) * tall, rng.uniform(-0.14, 0.14) * tall
    if view.random:  # any build and pose
        stride *= rng.uniform(0.3, 1.6)
        swing *= rng.uniform(0.5, 2.5)
    sketch = Sketch(view)
    hip, neck = 0.5 * tall, 0.82 * tall
    for sign in (-1.0, 1.0):
        foot = body.at(sign * stride, 0.05 * tall, sign * 0.06 * tall)
        sketch.capsule(body.at(0, hip, sign * 0.05 * tall), foot, (0.05 * tall, 0.032 * tall), legs * (1 + 0.08 * sign))
        sketch.capsule(foot, foot + 0.07 * tall * body.forward, (0.03, 0.03), TYRE)
    arm = body.at(swing, 0.47 * tall, -0.16 * tall)
    sketch.capsule(body.at(0, 0.78 * tall, -0.11 * tall), arm, (0.036 * tall, 0.026 * tall), top * 0.85)
    shade = 0.8 + 0.3 * view.light.shade(-view.camera.matrix[2])
    coat = rng.uniform(0.36, 0.52) * tall
    sketch.capsule(body.at(0, coat, 0), body.at(0, 0.76 * tall, 0), (0.085 * tall, 0.105 * tall), top * shade)
    low = rng.uniform(0.45, 0.85) if view.random and rng.random() < 0.4 else 0.47
    arm = body.at(-swing, low * tall, 0.16 * tall)
    sketch.capsule(body.at(0, 0.78 * tall, 0.11 * tall), arm, (0.036 * tall, 0.026 * tall), top * 0.95)
    if rng.random() < 0.3:
        bag = body.at(-0.1 * tall, rng.uniform(0.42, 0.66) * tall, rng.choice([-1.0, 1.0]) * 0.12 * tall)
        sketch.capsule(bag, bag + 0.12 * tall * UP, (0.075 * tall,) * 2, pick(rng, CLOTHES, 25))
    _head(sketch, body.at(0, neck, 0), body.at(0, 0.93 * tall, 0), tall, skin, pick(rng, HAIR, 14))
    return sketch.thing('person', view.camera.depth(body.origin))


def _head(sketch: Sketch, neck: Array, head: Array, tall: float, skin: Array, hair: Array) -> None:
    sketch.capsule(neck, head, (0.035 * tall, 0.06 * tall), skin)
    above = head + 0.025 * tall * UP
    sketch.capsule(above, above, (0.062 * tall,) * 2, hair)


def _frame(sketch: Sketch, body: Body, radius: float, base: float, thick: float, colour: Array) -> None:
    """Draw two wheels (rings, and uprights so that they show from behind) and the tubes between them."""
    for along in (-base / 2, base / 2):
        hub = body.at(along, radius, 0)
        sketch.capsule(hub - 0.7 * radius * UP, hub + 0.7 * radius * UP, (thick, thick), TYRE)
        sketch.ring(circle(hub, body.forward, UP, radius), TYRE, thick)
    seat, crank, bar = body.at(-0.18, 0.86, 0), body.at(-0.08, radius, 0), body.at(base / 2 - 0.12, 0.95, 0)
    rear, front = body.at(-base / 2, radius, 0), body.at(base / 2, radius, 0)
    for start, end in ((rear, crank), (crank, seat), (crank, bar), (seat, bar), (bar, front), (rear, seat)):
        sketch.capsule(start, end, (0.03, 0.03), colour)
    for side in (-0.25, 0.25):
        sketch.capsule(bar, bar + side * body.right, (0.03, 0.03), TYRE)
    sketch.shapes.append((sketch.view.camera.project(np.stack([rear, seat, bar, front, crank])), None, 0.0))


def bicycle(rng: np.random.Generator, view: View, place: tuple[float, float], yaw: float) -> list[Thing]:
    """Draw a bicycle; what shows through its wheels belongs to it, as in Cityscapes."""
    sketch, body = Sketch(view), Body(place, yaw, (1.75, 0.5, 1.05))
    _frame(sketch, body, 0.35, 1.05, 0.03, pick(rng, CARS, 20))
    return sketch.thing('bicycle', view.camera.depth(body.origin))


def motorcycle(rng: np.random.Generator, view: View, place: tuple[float, float], yaw: float) -> list[Thing]:
    """Draw a motorcycle or scooter: smaller, thicker wheels and a solid body."""
    sketch, body = Sketch(view), Body(place, yaw, (2.1, 0.7, 1.1))
    paint = pick(rng, CARS, 20)
    for along in (-0.68, 0.68):
        hub = body.at(along, 0.3, 0)
        sketch.capsule(hub - 0.2 * UP, hub + 0.2 * UP, (0.1, 0.1), TYRE)
        sketch.face(circle(hub, body.forward, UP, 0.31), TYRE)
        sketch.face(circle(hub, body.forward, UP, 0.15), TYRE + 80)
    sketch.capsule(body.at(-0.35, 0.4, 0), body.at(0.3, 0.42, 0), (0.2, 0.2), np.array([70.0, 70.0, 72.0]))
    sketch.capsule(body.at(-0.75, 0.78, 0), body.at(-0.05, 0.76, 0), (0.1, 0.15), TYRE + 12)
    sketch.capsule(body.at(0.0, 0.72, 0), body.at(0.4, 0.85, 0), (0.2, 0.17), paint)
    sketch.capsule(body.at(0.68, 0.3, 0), body.at(0.42, 1.0, 0), (0.06, 0.05), TYRE + 60)
    for side in (-0.36, 0.36):
        sketch.capsule(body.at(0.4, 1.02, 0), body.at(0.3, 1.06, side), (0.04, 0.04), TYRE)
    lamp = np.array([220.0, 235.0, 240.0]) if body.forward[2] < 0 else np.array([35.0, 30.0, 200.0])
    spot = body.at(0.62, 0.88, 0) if body.forward[2] < 0 else body.at(-0.8, 0.7, 0)
    sketch.capsule(spot, spot, (0.08, 0.08), lamp)
    return sketch.thing('motorcycle', view.camera.depth(body.origin))


def rider(rng: np.random.Generator, view: View, place: tuple[float, float], yaw: float, *, motor: bool) -> list[Thing]:
    """Draw a cyclist or, with ``motor``, a motorcyclist: two things, the vehicle first."""
    vehicle = (motorcycle if motor else bicycle)(rng, view, place, yaw)
    body, sketch = Body(place, yaw, (1.0, 1.0, 1.75)), Sketch(view)
    top, legs, skin = pick(rng, JACKETS, 14), pick(rng, TROUSERS, 10), pick(rng, SKINS, 8)
    seat, knee = (0.85, 0.6) if motor else (0.93, 0.62)
    for sign, drop in ((-1.0, 0.0), (1.0, 0.0 if motor else 0.16)):
        hip, bend = body.at(-0.22, seat, sign * 0.1), body.at(0.18, knee + 0.12 - drop / 2, sign * 0.17)
        sketch.capsule(hip, bend, (0.1, 0.075), legs * (1 + 0.08 * sign))
        sketch.capsule(bend, body.at(0.02, 0.38 - drop, sign * 0.16), (0.07, 0.06), legs)
    shoulders = body.at(0.1, 1.42, 0)
    sketch.capsule(body.at(-0.22, seat + 0.05, 0), shoulders, (0.16, 0.19), top)
    for sign in (-1.0, 1.0):
        shoulder = shoulders + sign * 0.2 * body.right
        sketch.capsule(shoulder, body.at(0.42, 1.05, sign * 0.26), (0.07, 0.05), top * (0.9 + 0.1 * sign))
    helmet = pick(rng, JACKETS if motor or rng.random() < 0.5 else HAIR, 14)
    _head(sketch, body.at(0.12, 1.48, 0), body.at(0.18, 1.64, 0), 1.9 if motor else 1.7, skin, helmet)
    depth = view.camera.depth(body.origin)
    return vehicle + sketch.thing('rider', depth - 0.01)

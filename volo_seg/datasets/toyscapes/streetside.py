"""Place the ground of a street, the horizon, and houses, walls, fences and parks on both sides."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from volo_seg.datasets.toyscapes import facades, ground, plants
from volo_seg.datasets.toyscapes.facades import Plane, Style
from volo_seg.datasets.toyscapes.ground import FAR, Surface
from volo_seg.datasets.toyscapes.materials import ROOFS, WOODS, pick
from volo_seg.datasets.toyscapes.town import SIDES, Place, Town

HOUSES, WALL, FENCE, PARK = range(4)


def lay_ground(town: Town) -> None:
    """Lay the sky, grass or paving to the horizon, then pavements, side street, road and rails."""
    rng, street = town.rng, town.street
    town.things.append(ground.sky(rng, town.view))
    for _, sign in SIDES:
        grassy = rng.random() < 0.6
        look = ground.surface(rng, 'grass' if grassy else 'slabs')
        _strip(town, 'terrain' if grassy else 'sidewalk', (0.0, sign * 400.0), (0.5, 1.2 * FAR), look)
    slabs, verge = ground.surface(rng, 'slabs'), ground.surface(rng, 'grass')
    for side, sign in SIDES:
        kerb, grass = street.kerb(side), street.verge[side]
        _strip(town, 'sidewalk', (sign * kerb, sign * street.edge(side)), (0.5, FAR), slabs)
        if grass:
            _strip(town, 'terrain', (sign * kerb, sign * (kerb + grass)), (0.5, FAR), verge)
    look = ground.surface(rng, 'asphalt', lines=_lines(town), zebra=_zebra(town))
    _lay_road(town, look)


def lay_any_ground(town: Town) -> None:
    """Lay a ground of any materials; the pavement is often as grey as the road, and a kerb tells them apart."""
    rng, street = town.rng, town.street
    town.things.append(ground.sky(rng, town.view))
    road = ground.any_surface(rng, 'asphalt' if rng.random() < 0.85 else 'slabs')
    kind, near = ('asphalt', 'slabs')[int(rng.random() < 0.65)], road.colour * rng.uniform(0.85, 1.5)
    paving = ground.any_surface(rng, kind, near if rng.random() < 0.5 else None)
    for _, sign in SIDES:
        grassy = rng.random() < 0.4
        look = ground.any_surface(rng, 'grass') if grassy else paving
        _strip(town, 'terrain' if grassy else 'sidewalk', (0.0, sign * 400.0), (0.5, 1.2 * FAR), look)
    verge, stone, wide = (
        ground.any_surface(rng, 'grass'),
        float(rng.choice([0.75, 1.3, 1.6])),
        float(rng.uniform(0.12, 0.4)),
    )
    for side, sign in SIDES:
        kerb, grass = street.kerb(side), street.verge[side]
        stones = ((sign * (kerb + wide / 2), wide, stone), (sign * kerb, 0.12, float(rng.uniform(0.3, 0.8))))
        dirt = tuple(
            (shape + (sign * (kerb + street.pavement[side] / 2), 0.0), tone)
            for shape, tone in ground.decals(rng, paving.colour, street.pavement[side] / 2, None)
        )
        edges = (sign * kerb, sign * street.edge(side))
        _strip(town, 'sidewalk', edges, (0.5, FAR), replace(paving, kerbs=stones, decals=dirt))
        if grass:
            _strip(town, 'terrain', (sign * (kerb + wide), sign * (kerb + grass)), (0.5, FAR), verge)
    gutters = tuple((sign * (street.half - 0.15), 0.3, float(rng.uniform(0.7, 1.1))) for _, sign in SIDES)
    lines = _lines(town)
    if rng.random() < 0.4:
        lines += tuple((sign * (street.half - x), 0.09, 0.0) for _, sign in SIDES for x in (0.35, 0.6))
    dirt = tuple(ground.decals(rng, road.colour, street.half, road.paint))
    _lay_road(town, replace(road, lines=lines, zebra=_zebra(town), kerbs=gutters, decals=dirt))


def _lay_road(town: Town, look: Surface) -> None:
    street = town.street
    if street.crossing:
        _strip(town, 'road', (-90.0, 90.0), street.crossing, Surface(look.colour, look.kind, look.shift, look.pitch))
    _strip(town, 'road', (-street.half, street.half), (0.5, FAR), look)
    if street.rails is not None:
        _lay_rails(town, street.rails)


def _lay_rails(town: Town, middle: float) -> None:
    paved = abs(middle) < town.street.half
    kind = 'asphalt' if paved else ('gravel', 'grass')[town.rng.integers(2)]
    track = ground.surface(town.rng, kind, rails=(middle - 0.72, middle + 0.72))
    _strip(town, 'rail track', (middle - 1.35, middle + 1.35), (0.5, FAR), track)


def _strip(town: Town, label: str, edges: tuple[float, float], span: tuple[float, float], look: Surface) -> None:
    town.things += ground.strip(town.view, label, edges, span, town.street.bend, look)


def _lines(town: Town) -> tuple[tuple[float, float, float], ...]:
    """Draw lane lines: (x, width, dash or 0) in metres."""
    half, rng = town.street.half, town.rng
    middle = (0.0, 0.15, float(rng.choice([0.0, 6.0, 9.0])))
    rims = ((-half + 0.25, 0.13, 0.0), (half - 0.25, 0.13, 0.0)) if rng.random() < 0.5 else ()
    lanes = ((-half / 2, 0.12, 6.0), (half / 2, 0.12, 6.0)) if half > 5.6 else ()
    return (middle, *rims, *lanes) if rng.random() < 0.85 else rims


def _zebra(town: Town) -> tuple[tuple[float, float], ...]:
    """Draw pedestrian crossings: (start, end) in metres ahead."""
    rng, crossing = town.rng, town.street.crossing
    if crossing and rng.random() < 0.6:
        return ((crossing[0] - 4.0, crossing[0] - 1.0),)
    start = float(rng.uniform(6, 25))
    return ((start, start + 3.0),) if rng.random() < 0.15 else ()


def raise_backdrop(town: Town) -> None:
    """Put woods, roofs or both along the horizon."""
    rng = town.rng
    for label in rng.permutation(['vegetation', 'building'])[: 1 + int(rng.random() < 0.7)]:
        colour = pick(rng, WOODS if label == 'vegetation' else ROOFS, 14)
        town.things += ground.backdrop(rng, town.view, str(label), colour)


def build_sides(town: Town) -> None:
    """Line both sides with stretches of houses, walls, fences or open park; the side street stays clear."""
    rng, street = town.rng, town.street
    for side, sign in SIDES:
        z = float(rng.uniform(-6, 4))
        while z < 120:
            kind, stop = int(rng.choice(4, p=town.habits.sides)), min(z + float(rng.uniform(14, 60)), 125.0)
            after = stop + float(rng.uniform(0, 2))
            if street.crossing and street.crosses(z, stop + 1.5):
                stop, after = street.crossing[0] - 1.5, street.crossing[1] + 1.5
            if stop - z > 3:
                _stretch(town, side, sign, (z, stop), kind)
            z = after


def _stretch(town: Town, side: int, sign: float, span: tuple[float, float], kind: int) -> None:
    """Fill one side from ``span`` = (start, end) metres ahead with ``kind``."""
    rng, view, edge = town.rng, town.view, town.street.edge(side)
    if kind == HOUSES:
        _houses(town, sign * edge, span, town.habits.storeys, close=True)
        return
    if rng.random() < 0.45:
        _houses(town, sign * (edge + float(rng.uniform(8, 16))), span, (4.0, 10.0), close=False)
    for _ in range(int(rng.integers(1, 5))):
        z = float(rng.uniform(max(span[0], 3), max(span[1], 4)))
        plant(town, sign * (edge + float(rng.uniform(2.5, 8))), z, layer=2)
    start, end = town.street.at(sign * edge, max(span[0], 0.0)), town.street.at(sign * edge, span[1])
    outward = np.array([-sign, 0.0, 0.0])
    if kind == WALL:
        plane = Plane(start, end, float(rng.uniform(1.5, 3.6)), outward)
        town.add(facades.wall(rng, view, plane), (start, end), width=0.3, tall=plane.height)
    elif kind == FENCE:
        town.add(facades.fence(rng, view, Plane(start, end, float(rng.uniform(1.3, 2.6)), outward)))
    elif rng.random() < 0.5:
        town.add(plants.hedge(rng, view, start, end, layer=3))


def _houses(town: Town, edge: float, span: tuple[float, float], heights: tuple[float, float], *, close: bool) -> None:
    """Fill a stretch with houses whose fronts stand at x = ``edge``, wall to wall or not."""
    rng, z = town.rng, span[0]
    while z < span[1] - 3:
        deep = min(float(rng.uniform(7, 20)), span[1] - z)
        back = float(np.sign(edge)) * float(rng.uniform(0, 2.5)) if rng.random() < 0.3 else 0.0
        _house(town, edge + back, (z, z + deep), float(rng.uniform(*heights)), layer=3 if close else 1)
        z += deep + (float(rng.uniform(2, 9)) if rng.random() < (0.25 if close else 0.7) else 0.0)


def _house(town: Town, edge: float, span: tuple[float, float], tall: float, *, layer: int) -> None:
    """Build a house: its front on the street and its side towards the camera."""
    rng, view, sign = town.rng, town.view, float(np.sign(edge))
    style, deep = (Style.draw_random if view.random else Style.draw)(rng), float(rng.uniform(8, 14))
    near, far = town.street.at(edge, span[0]), town.street.at(edge, span[1])
    front = Plane(near, far, tall, np.array([-sign, 0.0, 0.0]))
    flank = Plane(near, (near[0] + sign * deep, near[1]), tall, np.array([0.0, 0.0, -1.0]))
    gable = float(rng.uniform(1.5, 4.0)) if tall < 10 and rng.random() < 0.6 else 0.0
    shadow: tuple[Place, ...] = (near, far) if view.light.sun_share > 0.3 else ()
    town.add(facades.house_front(view, front, style, layer=layer), shadow, width=0.1, tall=tall)
    town.add(facades.house_front(view, flank, style, layer=layer, gable=gable))


def plant(town: Town, x: float, z: float, *, layer: int = 4) -> None:
    """Plant a tree ``x`` metres right of the street's middle and ``z`` metres ahead."""
    place = town.street.at(x, z)
    foot = ((place[0] - 1.2, place[1]), (place[0] + 1.2, place[1]))
    rng, habits = town.rng, town.habits
    if habits.bare and rng.random() < habits.bare:
        tree = plants.bare_tree(rng, town.view, place, float(rng.uniform(5.0, habits.giant)), layer)
    else:
        tree = plants.tree(rng, town.view, place, layer=layer, giant=habits.giant)
    town.add(tree, foot, width=2.0, tall=4.0)

"""Place street furniture, vehicles, riders and pedestrians."""

from __future__ import annotations

import numpy as np

from volo_seg.datasets.toyscapes import furniture, people, vehicles
from volo_seg.datasets.toyscapes.streetside import plant
from volo_seg.datasets.toyscapes.town import SIDES, Place, Town

LENGTHS = {'car': 4.5, 'truck': 8.0, 'bus': 11.5, 'train': 22.0, 'cycle': 2.0, 'motor': 2.0}
KINDS = ('car', 'truck', 'bus', 'cycle', 'motor')  # of what moves in a lane
DRAW = {'car': vehicles.car, 'truck': vehicles.truck, 'bus': vehicles.bus, 'train': vehicles.tram}


def furnish(town: Town) -> None:
    """Set lamps, trees, signs, bollards and bins along both kerbs, and traffic lights."""
    rng, street = town.rng, town.street
    for side, sign in SIDES:
        kerb, start = sign * (street.kerb(side) + 0.5), float(rng.uniform(4, 14))
        if rng.random() < town.habits.lamps:
            for z in np.arange(start, 50, float(rng.uniform(11, 24))):
                town.add(furniture.lamp_post(rng, town.view, street.at(kerb, float(z)), -sign))
        if rng.random() < town.habits.trees:
            for z in np.arange(start + 4, 55, float(rng.uniform(7, 15))):
                plant(town, kerb + sign * float(rng.uniform(0.2, 0.9)), float(z))
        for _ in range(int(rng.integers(*town.habits.signs))):
            x, z = kerb + sign * float(rng.uniform(-0.1, 0.6)), float(rng.uniform(5, 20))
            town.add(furniture.traffic_sign(rng, town.view, street.at(x, z)))
        if rng.random() < 0.2:
            for z in np.arange(float(rng.uniform(3, 8)), 25, 2.2):
                town.add(furniture.bollard(rng, town.view, street.at(kerb - sign * 0.2, float(z))))
        if rng.random() < 0.4:
            place = street.at(sign * (street.edge(side) - 0.6), float(rng.uniform(5, 20)))
            town.add(furniture.litter(rng, town.view, place))
    _signals(town)


def _signals(town: Town) -> None:
    rng, crossing = town.rng, town.street.crossing
    if not crossing and rng.random() < 0.6:
        return
    z = min(crossing[0] - 1.0 if crossing else 30.0, float(rng.uniform(7, 17)))
    for side, sign in SIDES:
        place = town.street.at(sign * (town.street.kerb(side) + 0.6), z)
        town.add(furniture.traffic_light(rng, town.view, place, -sign))


def drive(town: Town) -> None:
    """Put vehicles into the lanes, along the kerbs, on the rails and into the side street."""
    rng, street = town.rng, town.street
    for x, yaw, first in zip((street.half / 2, -street.half / 2), (0.0, np.pi), town.habits.first, strict=True):
        _lane(town, x, yaw, float(rng.uniform(*first)))
    for _, sign in SIDES:
        if street.half > 4.4 and rng.random() < town.habits.parked:
            _park(town, sign)
    if street.rails is not None and rng.random() < 0.88:
        z = float(rng.uniform(16, 32))
        _vehicle(town, 'train', street.at(street.rails, z), float(rng.choice([0.0, np.pi])))
    if street.crossing and rng.random() < 0.7:
        kind = str(rng.choice(['car', 'truck', 'bus'], p=[0.6, 0.2, 0.2]))
        place = street.at(float(rng.uniform(-12, 12)), sum(street.crossing) / 2 - 1.5)
        _vehicle(town, kind, place, float(rng.choice([-1, 1])) * np.pi / 2)


def _lane(town: Town, x: float, yaw: float, z: float) -> None:
    """Fill the lane around ``x`` from ``z`` metres ahead; where rails lie in it, it stays free."""
    rng, street = town.rng, town.street
    if street.rails is not None and abs(street.rails - x) < 1.5:
        return
    while z < 50:
        kind = str(rng.choice(KINDS, p=town.habits.mix))
        z += LENGTHS[kind] / 2
        if kind in ('cycle', 'motor'):
            aside = float(rng.uniform(0.0, 0.35)) * street.half * float(np.sign(x))
            place, heading = street.at(x + aside, z * 0.65), yaw + float(rng.normal(0, 0.12))
            ride = people.rider(rng, town.view, place, heading, motor=kind == 'motor')
            town.add(ride, _ends(place, heading, 1.8), width=0.5, tall=1.2)
        else:
            place = street.at(x + float(rng.normal(0, 0.25)), z)
            _vehicle(town, kind, place, yaw + float(rng.normal(0, 0.03)))
        z += LENGTHS[kind] / 2 + float(rng.uniform(*town.habits.gap))


def _park(town: Town, sign: float) -> None:
    """Line a kerb with parked cars and, now and then, a lorry."""
    rng, street, z = town.rng, town.street, float(town.rng.uniform(3, 14))
    while z < 50:
        kind = 'truck' if rng.random() < 0.06 else 'car'
        long = LENGTHS[kind]
        if not street.crosses(z - 1.0, z + long + 1.0):
            _vehicle(town, kind, street.at(sign * (street.half - 1.0), z + long / 2), 0.0 if sign > 0 else np.pi)
        z += long + (float(rng.uniform(0.7, 1.6)) if rng.random() < 0.7 else float(rng.uniform(5, 20)))


def _vehicle(town: Town, kind: str, place: Place, yaw: float) -> None:
    heading = yaw + float(np.arctan(2 * town.street.bend * place[1]))
    foot = _ends(place, heading, LENGTHS[kind])
    town.add(DRAW[kind](town.rng, town.view, place, heading), foot, width=1.9, tall=1.3 if kind == 'car' else 2.8)


def _ends(place: Place, yaw: float, long: float) -> tuple[Place, Place]:
    """Return the two ends on the ground of something ``long`` metres around ``place``."""
    dx, dz = float(np.sin(yaw)) * long / 2, float(np.cos(yaw)) * long / 2
    return (place[0] - dx, place[1] - dz), (place[0] + dx, place[1] + dz)


def populate(town: Town) -> None:
    """Put people on the pavements and across the road, and parked cycles near the kerbs."""
    rng, street = town.rng, town.street
    for _ in range(int(rng.integers(*town.habits.people))):
        side, sign = SIDES[rng.integers(2)]
        x = sign * float(rng.uniform(street.kerb(side) + 0.4, street.edge(side) - 0.3))
        _walker(town, x, 4.0 + town.habits.reach * float(rng.random()) ** 1.5, float(rng.uniform(0, 2 * np.pi)))
    if rng.random() < 0.3:
        z = float(rng.uniform(7, 22))
        for _ in range(int(rng.integers(1, 4))):
            _walker(town, float(rng.uniform(-1, 1)) * street.half, z + float(rng.normal(0, 0.7)), np.pi / 2)
    for _ in range(int(rng.integers(*town.habits.cycles))):
        side, sign = SIDES[rng.integers(2)]
        x = sign * (street.kerb(side) + float(rng.uniform(0.4, 1.4)))
        place, yaw = street.at(x, float(rng.uniform(4, 14))), float(rng.uniform(0, np.pi))
        draw = people.bicycle if rng.random() < 0.6 else people.motorcycle
        town.add(draw(rng, town.view, place, yaw), _ends(place, yaw, 1.7), width=0.4, tall=0.8)


def _walker(town: Town, x: float, z: float, yaw: float) -> None:
    place = town.street.at(x, z)
    foot = ((place[0] - 0.2, place[1]), (place[0] + 0.2, place[1]))
    town.add(people.person(town.rng, town.view, place, yaw), foot, width=0.35, tall=1.5)

"""Generate a scene from a seed: first the polygons of the labels, then the image painted inside them."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageDraw

from volo_seg.datasets.cityscapes_labels import BY_NAME, id_to_color
from volo_seg.datasets.toyscapes.camera import Array, Camera
from volo_seg.datasets.toyscapes.light import Light
from volo_seg.datasets.toyscapes.materials import vary
from volo_seg.datasets.toyscapes.sensor import develop, develop_random
from volo_seg.datasets.toyscapes.sketch import SEE_THROUGH, Patch, Thing, View
from volo_seg.datasets.toyscapes.streetside import build_sides, lay_any_ground, lay_ground, raise_backdrop
from volo_seg.datasets.toyscapes.town import Habits, Street, Town
from volo_seg.datasets.toyscapes.traffic import drive, furnish, populate
from volo_seg.datasets.toyscapes.weather import weather
from volo_seg.errors import UserError

SPLITS = ('train', 'val')
STYLES = ('plain', 'random')
GROUND = ('road', 'sidewalk')  # mirrors when wet
TINTED = ('sky', 'vegetation', 'terrain', 'ego vehicle')  # keep their tint
SMALLEST = 32  # pixels a side


@dataclass(frozen=True)
class Scene:
    """A scene: ``image`` (H, W, 3) uint8 BGR, ``label_ids`` (H, W) uint8, ``instance_ids`` (H, W) uint16.

    ``polygons``: (label name, (N, 2) integer pixels (u, v)) from back to front, all inside the image.
    """

    image: Array
    label_ids: Array
    instance_ids: Array
    polygons: list[tuple[str, Array]]

    @property
    def color(self) -> Array:
        """Return the labels in Cityscapes' colours, (H, W, 3) uint8 RGB."""
        colours: Array = id_to_color()[self.label_ids]
        return colours


def generate_scene(
    seed: int, index: int, *, split: str = 'train', size: tuple[int, int] = (256, 512), style: str = 'random'
) -> Scene:
    """Draw scene ``index`` of a split; ``size`` = (H, W) pixels. It depends on these five values only.

    ``style``: ``random`` varies layout, shapes, materials, light, weather, lens and sensor widely (domain
    randomisation); ``plain`` draws tidy streets, each class in few colours.

    Raises:
        UserError: a negative seed or index, an unknown split or style, a side under 32 pixels.
    """
    check_request(seed, index, split, size, style)
    layout, paint = (np.random.default_rng([seed, SPLITS.index(split), index, part]) for part in (0, 1))
    town = _random_town(layout, size) if style == 'random' else _town(layout, size)
    things = sorted(town.things, key=lambda thing: (thing.layer, -thing.depth))
    indices = _draw([thing.outline for thing in things], range(1, len(things) + 1), size)
    ids = np.array([0] + [BY_NAME[thing.label].id for thing in things], np.uint8)
    picture = _paint(things, indices, town, paint)
    polygons = [(thing.label, thing.outline) for thing in things]
    photograph = develop_random if style == 'random' else develop
    return Scene(photograph(picture, town.view.light, paint), ids[indices], _instances(things)[indices], polygons)


def check_request(seed: int, index: int, split: str, size: tuple[int, int], style: str) -> None:
    """Raise UserError unless a scene can be drawn from these values."""
    if seed < 0 or index < 0:
        raise UserError(f'seed and index must not be negative, got seed={seed}, index={index}; choose 0 or more')
    if split not in SPLITS:
        raise UserError(f'unknown split {split!r}; choose one of {", ".join(SPLITS)}')
    if style not in STYLES:
        raise UserError(f'unknown style {style!r}; choose one of {", ".join(STYLES)}')
    if len(size) != 2 or min(size) < SMALLEST:
        raise UserError(f'size {tuple(size)} is too small; height and width must be at least {SMALLEST} pixels')


def _town(rng: np.random.Generator, size: tuple[int, int]) -> Town:
    """Draw a street and place all objects."""
    street, light = Street.draw(rng), Light.draw(rng)
    camera = Camera.draw(rng, size, street.half / 2 + float(rng.normal(0, 0.5)))
    return _settle(Town(rng, View(camera, light), street, Habits()))


def _random_town(rng: np.random.Generator, size: tuple[int, int]) -> Town:
    """Draw a street of any kind, seen from anywhere in any light."""
    street, light, habits = Street.draw_random(rng), Light.draw_random(rng), Habits.draw_random(rng)
    camera = Camera.draw_random(rng, size, street.eye(rng))
    return _settle(Town(rng, View(camera, light, random=True), street, habits))


def _settle(town: Town) -> Town:
    """Place all objects."""
    for add in (
        lay_any_ground if town.view.random else lay_ground,
        raise_backdrop,
        build_sides,
        furnish,
        drive,
        populate,
    ):
        add(town)
    town.cover_lens()
    return town


def _draw(outlines: list[Array], values: range, size: tuple[int, int]) -> Array:
    """Draw polygons one over the other as json2labelImg does, in Pillow; (H, W) int32, 0 where none is."""
    canvas = Image.new('I', (size[1], size[0]), 0)
    drawer = ImageDraw.Draw(canvas)
    for outline, value in zip(outlines, values, strict=True):
        drawer.polygon([(int(x), int(y)) for x, y in outline], fill=value)
    return np.array(canvas, np.int32)


def _instances(things: list[Thing]) -> Array:
    """Return each thing's instance id after a leading 0: id * 1000 + count, or the plain id."""
    counts: dict[str, int] = {}
    ids = [0]
    for thing in things:
        label = BY_NAME[thing.label]
        number = counts.get(label.name, 0)
        counts[label.name] = number + 1
        ids.append(label.id * 1000 + number if label.has_instances else label.id)
    return np.array(ids, np.uint16)


def _paint(things: list[Thing], indices: Array, town: Town, rng: np.random.Generator) -> Array:
    """Paint (H, W, 3) back to front: each thing where ``indices`` has its number or a see-through thing's."""
    picture = np.zeros((*indices.shape, 3), np.uint8)
    veil = np.array([False] + [thing.label in SEE_THROUGH for thing in things])[indices]
    shaded = False
    for number, thing in enumerate(things, 1):
        if thing.layer > 0 and not shaded:
            _shade(picture, town)
            shaded = True
        corner, end = thing.outline.min(0), thing.outline.max(0) + 1
        window = (slice(corner[1], end[1]), slice(corner[0], end[0]))
        wanted = _wanted(indices[window], veil[window], number, thing.outline - corner)
        if not wanted.any():
            continue
        x, y, width, height = cv2.boundingRect(wanted.view(np.uint8))
        wanted = wanted[y : y + height, x : x + width]
        place = picture[window][y : y + height, x : x + width]
        left, top = int(corner[0]) + x, int(corner[1]) + y
        patch = Patch(place.copy(), (left, top), wanted, town.view, rng)
        thing.paint(patch)
        if town.view.random and thing.label != 'sky':
            vary(patch.image, rng, town.view.light.ambient, fixed=thing.label in TINTED)
        cv2.copyTo(patch.image, wanted.view(np.uint8), place)
    if town.view.random:
        sky, ground = (
            np.isin(indices, [n for n, thing in enumerate(things, 1) if thing.label in labels])
            for labels in (('sky',), GROUND)
        )
        weather(picture, sky, ground, town.view, rng)
    return picture


def _wanted(indices: Array, veil: Array, number: int, outline: Array) -> Array:
    """The pixels (h, w) in which thing ``number`` is visible: on top, or inside its outline behind another."""
    seen: Array = indices == number
    behind = veil & (indices > number)
    if behind.any():
        inside = np.zeros(indices.shape, np.uint8)
        cv2.fillPoly(inside, [outline], 1)
        seen |= behind & (inside > 0)
    return seen


def _shade(picture: Array, town: Town) -> None:
    """Darken the ground in the blurred shadows of the things."""
    height, width = picture.shape[:2]
    mask = np.zeros((height, width), np.float32)
    for shape in town.shadows:
        cv2.fillPoly(mask, [np.round(shape).astype(np.int32)], 1.0)
    mask = cv2.GaussianBlur(mask, (0, 0), max(height / 200, 0.6))
    factor = 1.0 - (0.25 + 0.3 * town.view.light.sun_share) * mask
    picture[:] = (picture * factor[..., None]).astype(np.uint8)

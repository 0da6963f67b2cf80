"""labelme: a JSON file an image, with polygons, circles, rectangles, lines and masks."""

from __future__ import annotations

import base64
import binascii
import functools
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from volo_seg.datasets.importers.drawing import labelme_shape, paste, png_mask
from volo_seg.datasets.importers.records import Collection, Item, Mask, Shape, Tree, get, get_size, polygon, split_of
from volo_seg.errors import UserError

_POINTS = {'circle': 2, 'rectangle': 2, 'mask': 2, 'line': 2, 'point': 1, 'oriented_rectangle': 4}


def recognise(tree: Tree) -> str:
    found = tree.looks_like('labelme')
    return f'{found[0]} has shapes and imagePath' if found else ''


def read(tree: Tree) -> Collection:
    """Read shapes in their order, later ones on top, drawn as labelme draws them. ``__ignore__`` is never trained.

    Images without a JSON file have no annotation.

    Raises:
        UserError: A file is malformed.
    """
    found, names = Collection(), set()
    for name in tree.ending('.json'):
        data = tree.json(name)
        if not isinstance(data, dict) or 'shapes' not in data:
            found.ignored['JSON files without shapes'] += 1
            continue
        shapes = []
        file = get(data, 'imagePath', str, name)
        place, image = _image(tree, data, file, name)
        known = data.get('imageWidth') and data.get('imageHeight')
        size = get_size(data, ('imageWidth', 'imageHeight'), name) if known else None
        for number, entry in enumerate(get(data, 'shapes', list, name)):
            where = f'{name}: shape {number}'
            label = get(entry, 'label', str, where)
            draw = _draw(entry, size, where, found)
            if draw:
                names.add(label)
                shapes.append(Shape(None if label == '__ignore__' else label, draw))
        found.items.append(Item(place, image, name, split_of(place), size, tuple(shapes)))
    lists = tree.named('labels.txt', 'classes.txt', 'class_names.txt')
    listed = (
        [line for line in tree.lines(lists[0]) if line != '__ignore__'] if lists else sorted(names - {'__ignore__'})
    )
    missing = names - {'__ignore__', *listed}
    if missing:
        raise UserError(f'{lists[0]} lacks the label {min(missing)!r}, which shapes have; add it there')
    for label in listed:
        found.add_class(label)
    for other in tree.images:
        if other not in tree.used:
            tree.used.add(other)
            found.items.append(Item(other, tree.image_root / other, other, split_of(other)))
    return found


def _image(tree: Tree, data: dict[str, Any], file: str, where: str) -> tuple[str, Path | Callable[[], bytes]]:
    """Relative name and file of an image; where there is no file, the copy in the annotation."""
    try:
        path = tree.image(file, where=where)
        return path.relative_to(tree.image_root).as_posix(), path
    except UserError:
        if not isinstance(data.get('imageData'), str):
            raise
    name = PurePosixPath(where).with_suffix(PurePosixPath(file.replace('\\', '/')).suffix or '.png').as_posix()
    return name, functools.partial(_decoded, data['imageData'], where)


def _decoded(text: str, where: str) -> bytes:
    try:
        return base64.b64decode(text)
    except (binascii.Error, ValueError) as error:
        raise UserError(f'{where} has image data that is not base64 ({error}); save it again') from error


def _draw(entry: dict[str, Any], size: tuple[int, int] | None, where: str, found: Collection) -> Any:
    kind = entry.get('shape_type') or 'polygon'
    points = get(entry, 'points', list, where)
    outline = polygon(points, where=where, size=size)
    if kind not in ('polygon', 'linestrip', *_POINTS):
        raise UserError(f'{where} has the shape_type {str(kind)[:40]!r}, which is not known; draw it as a polygon')
    if kind == 'polygon' and isinstance(outline, str):
        found.ignored[outline] += 1
        return None
    if len(points) != _POINTS.get(kind, len(points)) or not points:
        raise UserError(f'{where} is a {kind} of {len(points)} points; draw it again')
    pairs = np.array(points, np.float64).reshape(-1, 2)
    if kind == 'mask':
        box = pairs.astype(int).ravel().tolist()
        return functools.partial(boxed_mask, get(entry, 'mask', str, where), where, box)
    return functools.partial(labelme_shape, kind, [(x, y) for x, y in pairs.tolist()])


def boxed_mask(text: str, where: str, box: list[int], height: int, width: int) -> Mask:
    """A mask that fills ``box``: left, top, right, bottom, the last two included.

    Raises:
        UserError: It has another size.
    """
    mask = png_mask(text, where)
    left, top, right, bottom = box
    if mask.shape != (bottom - top + 1, right - left + 1):
        raise UserError(f'{where} has a mask of {mask.shape[1]} x {mask.shape[0]} pixels, unlike its box; draw it')
    return paste(mask, left, top, height, width)

"""Supervisely projects: ``meta.json``, and a JSON file an image with polygons and bitmaps."""

from __future__ import annotations

import functools
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from volo_seg.datasets.importers.drawing import fill, paste, png_mask
from volo_seg.datasets.importers.records import Collection, Item, Mask, Shape, Tree, get, get_size, polygon, split_of
from volo_seg.errors import UserError


def recognise(tree: Tree) -> str:
    meta, annotations = tree.named('meta.json'), _annotations(tree)
    return f'{meta[0]} and {annotations[0]} are of a Supervisely project' if meta and annotations else ''


def read(tree: Tree) -> Collection:
    """Read polygons with holes and bitmaps in their order, later ones on top.

    Raises:
        UserError: A file is malformed.
    """
    found, meta = Collection(), tree.named('meta.json')
    if not meta:
        raise UserError(f'{str(tree.root)!r} has no meta.json; give the folder of a Supervisely project')
    for entry in get(tree.json(meta[0]), 'classes', list, meta[0]):
        found.add_class(get(entry, 'title', str, f'{meta[0]}: a class'))
    annotated = set()
    for name in _annotations(tree):
        data = tree.json(name)
        size = get_size(get(data, 'size', dict, name), ('width', 'height'), f'{name}: size')
        shapes = []
        for number, entry in enumerate(get(data, 'objects', list, name)):
            where = f'{name}: object {number}'
            label = get(entry, 'classTitle', str, where)
            if label not in found.ids:
                raise UserError(f'{where} has the class {label!r}, which {meta[0]} lacks; add it there')
            draw = _draw(entry, size, where, found)
            if draw:
                shapes.append(Shape(label, draw))
        file = name.removesuffix('.json')
        folder, _, image = file.rpartition('/ann/') if '/ann/' in file else ('', '', file.removeprefix('ann/'))
        path = tree.image('/'.join(filter(None, (folder, 'img', image))), where=name)
        annotated.add(path)
        found.items.append(
            Item('/'.join(filter(None, (folder, image))), path, name, split_of(folder), size, tuple(shapes))
        )
    for image in tree.images:
        if 'img' in image.split('/')[:-1] and tree.root / image not in annotated:
            tree.used.add(image)
            place = '/'.join(part for part in image.split('/') if part != 'img')
            found.items.append(Item(place, tree.root / image, image, split_of(PurePosixPath(place).parent.as_posix())))
    return found


def _draw(entry: dict[str, Any], size: tuple[int, int], where: str, found: Collection) -> Any:
    kind = get(entry, 'geometryType', str, where)
    if kind == 'rectangle':
        found.boxes.append(where)
        return None
    if kind == 'polygon':
        points = get(entry, 'points', dict, where)
        outline = polygon(get(points, 'exterior', list, where), where=where, size=size)
        if isinstance(outline, str):
            found.ignored[outline] += 1
            return None
        holes = [
            polygon(hole, where=where)
            for hole in (get(points, 'interior', list, where) if 'interior' in points else [])
        ]
        whole = [hole.astype(np.int32) for hole in holes if not isinstance(hole, str)]
        found.ignored.update('holes with fewer than three points' for hole in holes if isinstance(hole, str))
        return functools.partial(fill, [outline.astype(np.int32)], whole)
    if kind == 'bitmap':
        bitmap = get(entry, 'bitmap', dict, where)
        origin = get(bitmap, 'origin', list, where)
        if len(origin) != 2 or not all(isinstance(place, int) for place in origin):
            raise UserError(f'{where} has the origin {str(origin)[:40]}, which is not [x, y]; export it again')
        return functools.partial(bitmap_mask, get(bitmap, 'data', str, where), where, *origin)
    found.ignored[f'objects of type {kind[:30]}'] += 1
    return None


def bitmap_mask(text: str, where: str, left: int, top: int, height: int, width: int) -> Mask:
    """The mask of a bitmap with its upper left corner at ``left``, ``top``."""
    return paste(png_mask(text, where), left, top, height, width)


def _annotations(tree: Tree) -> list[str]:
    return [name for name in tree.ending('.json') if 'ann' in name.split('/')[:-1]]

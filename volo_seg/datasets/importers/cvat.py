"""CVAT for images 1.1: polygons, masks and ellipses in XML."""

from __future__ import annotations

import functools
from typing import Any
from xml.etree.ElementTree import Element

from volo_seg.datasets.importers.drawing import coco_polygons, ellipse, paste, runs_to_mask
from volo_seg.datasets.importers.records import Collection, Item, Mask, Shape, Tree, polygon, split_of
from volo_seg.errors import UserError

_NO_AREA = {'polyline': 'polylines', 'points': 'points', 'cuboid': 'cuboids', 'skeleton': 'skeletons', 'tag': 'tags'}


def recognise(tree: Tree) -> str:
    found = _files(tree)
    return f'{found[0]} is a CVAT annotation' if found else ''


def read(tree: Tree) -> Collection:
    """Read shapes in the order of their z-order, later ones on top, drawn as CVAT's own export of masks.

    Raises:
        UserError: The file is malformed.
    """
    found, files = Collection(), _files(tree)
    if not files:
        raise UserError(f'{str(tree.root)!r} has no XML file with <annotations>; export "CVAT for images 1.1"')
    for name in files:
        root = tree.xml(name)
        if root.find('track') is not None:
            raise UserError(f'{name} has tracks of a video; export "CVAT for images 1.1"')
        for label in root.iterfind('.//labels/label/name'):
            found.add_class((label.text or '').strip())
        for entry in root.iterfind('image'):
            file = _text(entry, 'name', f'{name}: an image')
            where = f'{name}: image {file!r}'
            size = int(_number(entry, 'width', where)), int(_number(entry, 'height', where))
            split = split_of(entry.get('subset') or name)
            shapes = [shape for each in entry if (shape := _shape(each, size, where, found))]
            path = tree.image(file, where=name, split=split)
            found.items.append(Item(file, path, where, split, size, tuple(shapes)))
    return found


def _shape(entry: Element, size: tuple[int, int], where: str, found: Collection) -> Shape | None:
    where = f'{where}: {entry.tag}'
    if entry.tag in _NO_AREA:
        found.ignored[_NO_AREA[entry.tag]] += 1
        return None
    label = _text(entry, 'label', where)
    if label not in found.ids:
        raise UserError(f'{where} has the label {label!r}, which the <labels> of the file lack; add it there')
    if entry.tag == 'box':
        found.boxes.append(where)
        return None
    draw: Any
    if entry.tag == 'polygon':
        points = [pair.split(',') for pair in _text(entry, 'points', where).split(';') if pair]
        outline = polygon(points, where=where, size=size)
        if isinstance(outline, str):
            found.ignored[outline] += 1
            return None
        draw = functools.partial(coco_polygons, [outline.ravel().tolist()])
    elif entry.tag == 'mask':
        left, top, width, height = (int(_number(entry, key, where)) for key in ('left', 'top', 'width', 'height'))
        try:
            counts = [int(run) for run in _text(entry, 'rle', where).split(',')]
        except ValueError:
            counts = []
        too_large = width > size[0] or height > size[1]
        if sum(counts) != width * height or min(counts, default=-1) < 0 or too_large:
            raise UserError(f'{where} has an rle that does not fill its {width} x {height} pixels; export it again')
        draw = functools.partial(boxed_runs, counts, left, top, (height, width))
    elif entry.tag == 'ellipse':
        keys = ('cx', 'cy', 'rx', 'ry')
        cx, cy, rx, ry = (_number(entry, key, where) for key in keys)
        draw = functools.partial(ellipse, (cx, cy), (rx, ry), float(entry.get('rotation', 0)))
    else:
        found.ignored[f'elements <{entry.tag[:30]}>'] += 1
        return None
    return Shape(label, draw, order=_number(entry, 'z_order', where) if 'z_order' in entry.attrib else 0)


def boxed_runs(counts: list[int], left: int, top: int, box: tuple[int, int], height: int, width: int) -> Mask:
    """Run lengths of 0 and 1, row by row in a box (height, width) with the corner ``left``, ``top``."""
    return paste(runs_to_mask(counts, *box), left, top, height, width)


def _files(tree: Tree) -> list[str]:
    return [name for name in tree.ending('.xml') if b'<annotations' in (tree.root / name).read_bytes()[:4096]]


def _text(entry: Element, key: str, where: str) -> str:
    value = entry.get(key)
    if value is None:
        raise UserError(f'{where} has no {key!r}; export the file again')
    return value


def _number(entry: Element, key: str, where: str) -> float:
    text = _text(entry, key, where)
    try:
        number = float(text)
        if abs(number) < 2**31:
            return number
    except ValueError:
        pass
    raise UserError(f'{where} has {key} = {text[:40]!r}, which is not a number; export the file again')

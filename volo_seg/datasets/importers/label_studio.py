"""Label Studio's JSON export: polygons, ellipses and brush masks."""

from __future__ import annotations

import functools
import re
import urllib.parse
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from volo_seg.datasets.importers.drawing import brush, coco_polygons, ellipse
from volo_seg.datasets.importers.records import Collection, Item, Shape, Tree, get, get_size, polygon, split_of
from volo_seg.errors import UserError

_AREAS = ('polygonlabels', 'brushlabels', 'ellipselabels')
_UPLOADED = re.compile(r'^[0-9a-f]{8}-(?=.)')


def recognise(tree: Tree) -> str:
    found = tree.looks_like('label-studio')
    return f'{found[0]} has tasks with annotations and results' if found else ''


def read(tree: Tree) -> Collection:
    """Read polygons, ellipses and brush masks, later ones on top; of several annotations of a task, the first.

    Raises:
        UserError: A file is malformed.
    """
    found, labels = Collection(), dict[str, None]()
    for name in tree.of_kind('label-studio') or tree.ending('.json'):
        tasks = tree.json(name)
        if not isinstance(tasks, list):
            raise UserError(f'{name} is not a list of tasks; export "JSON" from Label Studio')
        for number, task in enumerate(tasks):
            where = f'{name}: task {task.get("id", number) if isinstance(task, dict) else number}'
            data = get(task, 'data', dict, where)
            done = [
                entry
                for entry in get(task, 'annotations', list, where)
                if isinstance(entry, dict) and not entry.get('was_cancelled')
            ]
            found.ignored['further annotations of a task'] += len(done[1:])
            results = get(done[0], 'result', list, where) if done else []
            shapes, sizes = [], set[tuple[int, int]]()
            for place, entry in enumerate(results):
                shape, size = _shape(entry, f'{where}: result {place}', found)
                if shape and size:
                    labels[shape.label or ''] = None
                    shapes.append(shape)
                    sizes.add(size)
            if len(sizes) > 1:
                raise UserError(
                    f'{where} has results for images of several sizes, {sorted(sizes)[:2]}; export it again'
                )
            urls = [value for value in data.values() if isinstance(value, str) and _is_image(value)]
            if len(urls) != 1:
                raise UserError(f'{where} has {len(urls)} images in its data; one image a task can be imported')
            path = tree.image(_local(urls[0], tree), where=name)
            place_of = path.relative_to(tree.image_root).as_posix()
            found.items.append(Item(place_of, path, where, split_of(place_of), next(iter(sizes), None), tuple(shapes)))
    for label in sorted(labels):
        found.add_class(label)
    found.ignored += type(found.ignored)()  # drops zeros
    return found


def _shape(entry: Any, where: str, found: Collection) -> tuple[Shape | None, tuple[int, int] | None]:
    kind = str(get(entry, 'type', str, where)).lower()
    value = get(entry, 'value', dict, where)
    if kind in ('rectanglelabels', 'rectangle'):
        found.boxes.append(where)
        return None, None
    if kind == 'labels':
        kind = 'brushlabels' if 'rle' in value else 'ellipselabels' if 'radiusX' in value else 'polygonlabels'
    if kind not in _AREAS:
        found.ignored[f'results of type {kind[:30]}'] += 1
        return None, None
    names = value.get(kind) or value.get('labels')
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise UserError(f'{where} has no label; give it one in Label Studio, or delete it')
    size = get_size(entry, ('original_width', 'original_height'), where)
    if kind == 'brushlabels':
        return Shape(names[0], functools.partial(brush, get(value, 'rle', list, where), where)), size
    share = np.array(size) / 100
    if kind == 'ellipselabels':
        x, y, across, down = (get(value, key, (int, float), where) for key in ('x', 'y', 'radiusX', 'radiusY'))
        pairs = polygon(np.array([(x, y), (across, down), (x, y)]) * share, where=where)
        angle = float(get(value, 'rotation', (int, float), where)) if 'rotation' in value else 0.0
        centre, radii = (tuple(pair) for pair in np.asarray(pairs)[:2].tolist())
        return Shape(names[0], functools.partial(ellipse, centre, radii, angle)), size
    points = polygon(get(value, 'points', list, where), where=where)
    points = points if isinstance(points, str) else polygon(points * share, where=where, size=size)
    if isinstance(points, str):
        found.ignored[points] += 1
        return None, None
    return Shape(names[0], functools.partial(coco_polygons, [points.ravel().tolist()])), size


def _is_image(value: str) -> bool:
    from volo_seg.image_files import SUFFIXES

    return urllib.parse.unquote(value).partition('?d=')[2].lower().endswith(SUFFIXES) or urllib.parse.urlparse(
        value
    ).path.lower().endswith(SUFFIXES)


def _local(url: str, tree: Tree) -> str:
    """The path that an image URL ends in; an upload has a prefix of eight digits, which the file need not have."""
    decoded = urllib.parse.unquote(url)
    path = decoded.partition('?d=')[2] or urllib.parse.unquote(urllib.parse.urlparse(url).path)
    name = PurePosixPath(path).name
    names = {PurePosixPath(image).name for image in tree.images}
    return path if name in names else _UPLOADED.sub('', name)

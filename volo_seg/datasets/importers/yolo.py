"""YOLO segmentation labels: a text file an image, a polygon a line, in shares of width and height."""

from __future__ import annotations

import functools
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import yaml

from volo_seg.datasets.importers.drawing import fill
from volo_seg.datasets.importers.records import Collection, Item, Mask, Shape, Tree, polygon, split_of
from volo_seg.errors import UserError

_LISTS = ('classes.txt', 'obj.names')


def recognise(tree: Tree) -> str:
    labels = [name for name in tree.ending('.txt') if 'labels' in name.split('/')[:-1]]
    if labels and (yamls := _yamls(tree)):
        return f'{yamls[0]} names classes, and {labels[0]} is in a folder "labels"'
    if labels and (lists := tree.named(*_LISTS)):
        return f'{lists[0]} names classes, and {labels[0]} is in a folder "labels"'
    return ''


def read(tree: Tree) -> Collection:
    """Read polygons; of overlapping ones, the smaller is on top. A line of five numbers is a box.

    Raises:
        UserError: A line is malformed, or classes have no names.
    """
    found = Collection(by_area=True)
    splits = _classes(tree, found)
    texts = set(tree.ending('.txt'))
    for image in tree.images:
        parts = PurePosixPath(image).with_suffix('.txt').parts
        last = max((place for place, part in enumerate(parts[:-1]) if part == 'images'), default=None)
        label = '/'.join(parts if last is None else (*parts[:last], 'labels', *parts[last + 1 :]))
        tree.used.add(image)
        shapes = []
        for number, line in enumerate(tree.lines(label) if label in texts else [], 1):
            where = f'{label}: line {number}'
            name, shares = _numbers(line, where, found)
            outline = polygon(shares, where=where)
            if len(shares) == 4:
                found.boxes.append(where)
            elif isinstance(outline, str):
                found.ignored[outline] += 1
            else:
                shapes.append(Shape(name, functools.partial(fill_shares, outline.tolist())))
        split = next((split for split, places in splits.items() if _listed(image, places)), '') or split_of(image)
        names = parts if last is None else (*parts[:last], *parts[last + 1 :])
        short = [part for part in names[:-1] if not split_of(part)]
        path = '/'.join([*short, PurePosixPath(image).name])
        found.items.append(Item(path, tree.root / image, label, split, shapes=tuple(shapes)))
    return found


def fill_shares(shares: list[list[float]], height: int, width: int) -> Mask:
    """Fill a polygon given in shares of width and height, cut to whole pixels in float32, as ultralytics does."""
    points = np.array(shares, np.float32) * np.array((width, height), np.float32)
    return fill([points.astype(np.int32)], [], height, width)


def _numbers(line: str, where: str, found: Collection) -> tuple[str, list[float]]:
    """Class and coordinates of a line."""
    try:
        number, shares = int(line.split()[0]), [float(word) for word in line.split()[1:]]
    except ValueError:
        number, shares = -1, []
    if number < 0 or len(shares) % 2 or not shares:
        raise UserError(f'{where} is not "class x y x y …" ({line[:60]!r}); export it again')
    if any(not -1 <= share <= 2 for share in shares):
        raise UserError(
            f'{where} has a coordinate outside 0..1, as if in pixels; export it with normalised coordinates'
        )
    if number >= len(found.classes):
        raise UserError(f'{where} has the class {number}, and {len(found.classes)} classes are named; name it')
    return found.classes[number], shares


def _classes(tree: Tree, found: Collection) -> dict[str, list[str]]:
    """Read the class names; return the folders or images of each split that the yaml file names."""
    splits: dict[str, list[str]] = {}
    yamls, lists = _yamls(tree), tree.named(*_LISTS)
    if yamls:
        data = _yaml(tree, yamls[0])
        names = data['names']
        numbered = dict(enumerate(names)) if isinstance(names, list) else names
        if not isinstance(numbered, dict) or sorted(map(str, numbered)) != sorted(map(str, range(len(numbered)))):
            raise UserError(f'{yamls[0]} does not number its names 0, 1, 2, …; write names as a list')
        for number, name in sorted((int(number), str(name)) for number, name in numbered.items()):
            found.add_class(name, number)
        for split in ('train', 'val', 'test'):
            for entry in np.atleast_1d(data.get(split) or []).tolist():
                place = '/'.join(part for part in PurePosixPath(str(entry)).parts if part not in ('..', '.', '/'))
                if place.endswith('.txt') and place in tree.files:
                    splits.setdefault(split, []).extend(line.removeprefix('./') for line in tree.lines(place))
                else:
                    splits.setdefault(split, []).append(place)
    elif lists:
        for number, name in enumerate(tree.lines(lists[0])):
            found.add_class(name, number)
    else:
        raise UserError(f'{str(tree.root)!r} has no data.yaml with names and no classes.txt; write one')
    return splits


def _listed(image: str, places: list[str]) -> bool:
    """Whether an image is one of ``places``, or below one of them."""
    return any(
        image == place or image.startswith(place.rstrip('/') + '/') or image.endswith('/' + place) for place in places
    )


def _yamls(tree: Tree) -> list[str]:
    return [name for name in tree.ending('.yaml', '.yml') if 'names' in _yaml(tree, name)]


def _yaml(tree: Tree, name: str) -> dict[str, Any]:
    try:
        data = yaml.safe_load('\n'.join(Path(tree.root, name).read_text('utf-8').splitlines()))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(
            f'{name} cannot be read as YAML ({" ".join(str(error).split())[:100]}); write it again'
        ) from error
    return data if isinstance(data, dict) else {}

"""COCO annotations: instances and stuff as JSON, panoptic segments, and the pixel maps of COCO-Stuff."""

from __future__ import annotations

import functools
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from volo_seg.datasets.importers.drawing import coco_polygons, coco_rle
from volo_seg.datasets.importers.records import (
    UNLABELLED,
    Collection,
    Item,
    LabelMap,
    Shape,
    Tree,
    get,
    get_size,
    polygon,
    split_of,
)
from volo_seg.errors import UserError
from volo_seg.image_files import ImageError
from volo_seg.io import read_regular
from volo_seg.label_png import labels_of, load_label_image, read_labels

ROBOFLOW = '_annotations.coco.json'
# ids that the label list of COCO-Stuff has and no annotation of COCO uses
_NEVER_USED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}


def recognise(tree: Tree) -> str:
    """Why ``tree`` is of the format, or an empty string; so for each format."""
    found = [name for name in tree.looks_like('coco') if not name.endswith(ROBOFLOW)]
    return f'{found[0]} has images, annotations and categories' if found else ''


def recognise_panoptic(tree: Tree) -> str:
    found = tree.looks_like('coco-panoptic')
    return f'{found[0]} has segments_info' if found else ''


def recognise_stuff(tree: Tree) -> str:
    maps = [name for name in tree.images if _is_stuff(name)]
    return f'{maps[0]} is a pixel map of COCO-Stuff' if maps else ''


def read(tree: Tree) -> Collection:
    """Read instances: polygons, and RLE of both kinds. Crowds come first, then smaller areas over larger ones."""
    files = [name for name in tree.of_kind('coco') if not name.endswith(ROBOFLOW)]
    chosen = [name for name in files if PurePosixPath(name).name.startswith('instances_')] or files
    found = read_instances(tree, chosen)
    found.ignored['JSON files beside instances_*'] = len(files) - len(chosen)
    return found


def read_instances(tree: Tree, files: list[str]) -> Collection:
    """Read instances from ``files``, one per split.

    Raises:
        UserError: A file is malformed, or two files are of one split.
    """
    found = Collection(by_area=True)
    for name, split in _splits(tree, files):
        data = tree.json(name)
        names = _categories(data, name, found)
        shapes: dict[Any, list[Shape]] = {}
        images = {get(entry, 'id', (int, str), f'{name}: an image'): entry for entry in get(data, 'images', list, name)}
        for number, entry in enumerate(get(data, 'annotations', list, name)):
            where = f'{name}: annotation {entry.get("id", number) if isinstance(entry, dict) else number}'
            image = get(entry, 'image_id', (int, str), where)
            if image not in images:
                raise UserError(f'{where} has image_id {image!r}, which no image has; export the file again')
            label = _known(names, get(entry, 'category_id', int, where), where)
            size = get_size(images[image], ('width', 'height'), f'{name}: image {image}')
            draw = _mask(entry, size, where, found)
            if draw:
                crowd = bool(entry.get('iscrowd', 0))
                shapes.setdefault(image, []).append(Shape(label, draw, order=-1 if crowd else 0, crowd=crowd))
        for number, entry in images.items():
            where = f'{name}: image {number}'
            file, size = get(entry, 'file_name', str, where), get_size(entry, ('width', 'height'), where)
            path = tree.image(file, where=name, split=split)
            found.items.append(Item(_name(file), path, where, split, size, tuple(shapes.get(number, ()))))
    return found


def _mask(entry: dict[str, Any], size: tuple[int, int], where: str, found: Collection) -> Any:
    """The function that draws an annotation, None if it has no area."""
    outline = entry.get('segmentation') or []
    if isinstance(outline, dict):
        if outline.get('size') != [size[1], size[0]]:
            raise UserError(
                f'{where} has a mask of size {outline.get("size")} (height, width) for an image of {size[0]} x '
                f'{size[1]}; export it again'
            )
        return functools.partial(coco_rle, outline.get('counts'), where)
    if not isinstance(outline, list):
        raise UserError(f'{where} has a segmentation that is neither polygons nor RLE; export it again')
    parts = [polygon(part, where=where, size=size) for part in outline]
    found.ignored.update(part for part in parts if isinstance(part, str))
    if not outline:
        found.boxes.append(where)
    areas = [part.ravel().tolist() for part in parts if not isinstance(part, str)]
    return functools.partial(coco_polygons, areas) if areas else None


def read_panoptic(tree: Tree) -> Collection:
    """Read panoptic segments: PNG files whose pixels are ids, R + 256 G + 65536 B; 0 is unlabelled."""
    found = Collection()
    for name, split in _splits(tree, tree.of_kind('coco-panoptic')):
        data = tree.json(name)
        names = _categories(data, name, found)
        images = {get(entry, 'id', (int, str), f'{name}: an image'): entry for entry in get(data, 'images', list, name)}
        for entry in get(data, 'annotations', list, name):
            image = get(entry, 'image_id', (int, str), f'{name}: an annotation')
            where = f'{name}: annotation of image {image}'
            if image not in images:
                raise UserError(f'{where} has an image_id that no image has; export the file again')
            segments = {
                get(segment, 'id', int, where): found.classes.index(
                    _known(names, get(segment, 'category_id', int, where), where)
                )
                for segment in get(entry, 'segments_info', list, where)
            }
            size = get_size(images[image], ('width', 'height'), f'{name}: image {image}')
            file = get(images[image], 'file_name', str, f'{name}: image {image}')
            mask = _beside(tree, get(entry, 'file_name', str, where), Path(name).stem, where)
            draw = functools.partial(panoptic_labels, mask, segments, where)
            path = tree.image(file, where=name, split=split)
            found.items.append(Item(_name(file), path, where, split, size, label_map=draw))
    return found


def panoptic_labels(path: Path, segments: dict[int, int], where: str) -> LabelMap:
    """The class index of each pixel of a panoptic PNG.

    Raises:
        UserError: The file is not a colour image, or has an id that ``segments`` lacks.
    """
    image = load_label_image(read_regular(path), name=str(path))
    if image.mode not in ('RGB', 'RGBA'):
        raise ImageError(f'{str(path)!r} has mode {image.mode}, and panoptic ids are RGB; export it again', kind='mode')
    red, green, blue = np.moveaxis(np.asarray(image.convert('RGB')).astype(np.int32), -1, 0)
    ids, places = np.unique(red + 256 * green + 65536 * blue, return_inverse=True)
    missing = [int(value) for value in ids if value and int(value) not in segments]
    if missing:
        raise UserError(f'{where}: {path.name} has the id {missing[0]}, which segments_info lacks; export it again')
    return np.array([segments.get(int(value), UNLABELLED) for value in ids], np.int32)[places].reshape(red.shape)


def read_stuff(tree: Tree) -> Collection:
    """Read pixel maps whose values are id - 1, with 255 for unlabelled; ``labels.txt`` names the ids."""
    found = Collection()
    lists = tree.named('labels.txt')
    if not lists:
        raise UserError(f'{str(tree.root)!r} has no labels.txt with lines "id: name"; add that of COCO-Stuff')
    index = np.full(256, -3, np.int32)
    index[255] = UNLABELLED
    for line in tree.lines(lists[0]):
        number, colon, label = line.partition(':')
        if not colon or not number.strip().isdecimal():
            raise UserError(f'{lists[0]}: line {line[:60]!r} is not "id: name"; write it so')
        value = int(number) - 1
        if 0 <= value < 255 and value + 1 not in _NEVER_USED:
            found.add_class(label.strip(), value + 1)
            index[value] = len(found.classes) - 1
    for mask in (name for name in tree.images if _is_stuff(name)):
        tree.used.add(mask)
        split = split_of(mask)
        image = tree.image(PurePosixPath(mask).stem + '.jpg', where=mask, split=split)
        draw = functools.partial(mapped_labels, tree.root / mask, index)
        found.items.append(Item(image.name, image, mask, split, label_map=draw))
    return found


def mapped_labels(path: Path, index: LabelMap, content: bytes | None = None) -> LabelMap:
    """The values of a label image through the table ``index``, in which -3 stands for values without a class.

    Raises:
        UserError: The file cannot be read, or has a value without a class.
    """
    labels = (
        read_labels(path) if content is None else labels_of(load_label_image(content, name=str(path)), name=str(path))
    )
    present = np.unique(labels)
    known = [0 <= value < len(index) and index[value] > -3 for value in present]
    if not all(known):
        value = present[int(np.argmin(known))]
        raise UserError(f'{str(path)!r} has the value {value}, which the class list lacks; add its class there')
    return index[labels]


def _is_stuff(name: str) -> bool:
    return 'stuffthingmaps' in name.lower().rpartition('/')[0] and name.lower().endswith('.png')


def _beside(tree: Tree, file: str, folder: str, where: str) -> Path:
    """The PNG of a panoptic annotation: in the folder named like the JSON file, or the only one of its name."""
    same = [name for name in tree.images if name.endswith(f'{folder}/{PurePosixPath(file).name}')]
    tree.used.update(same)
    return tree.root / same[0] if len(same) == 1 else tree.image(file, where=where)


def _splits(tree: Tree, files: list[str]) -> list[tuple[str, str]]:
    """The files with their splits.

    Raises:
        UserError: There is none, or two have one split.
    """
    if not files:
        raise UserError(f'{str(tree.root)!r} has no JSON file with COCO annotations; check the folder')
    splits: dict[str, str] = {}
    for name in files:
        split = split_of(name)
        if split in splits:
            kind = f'the split {split}' if split else 'all images'
            raise UserError(f'{splits[split]} and {name} both annotate {kind}; give one of them as SOURCE')
        splits[split] = name
    return [(name, split) for split, name in splits.items()]


def _categories(data: Any, where: str, found: Collection) -> dict[int, str]:
    """Category id -> name; new names become classes in the order of their ids."""
    pairs = []
    for entry in get(data, 'categories', list, where):
        place = f'{where}: category {entry.get("id") if isinstance(entry, dict) else entry!r}'
        pairs.append((get(entry, 'id', int, place), get(entry, 'name', str, place).strip()))
    names = dict(pairs)
    if len(names) < len(pairs) or len(set(names.values())) < len(pairs):
        raise UserError(f'{where} has two categories with one id or one name; give each its own')
    for number, name in sorted(pairs):
        found.add_class(name, number)
    return names


def _known(names: dict[int, str], number: int, where: str) -> str:
    if number not in names:
        raise UserError(f'{where} has category_id {number}, which categories lacks; add it there')
    return names[number]


def _name(file: str) -> str:
    """The name of an output for a file name of a JSON file: without folders that lead elsewhere."""
    parts = PurePosixPath(file.replace('\\', '/')).parts
    return parts[-1] if '..' in parts or parts[:1] == ('/',) or not parts else '/'.join(parts)

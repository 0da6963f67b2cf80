"""Roboflow's exports "Semantic Segmentation Masks" (``_classes.csv``) and "COCO Segmentation"."""

from __future__ import annotations

import functools
from pathlib import PurePosixPath

import numpy as np

from volo_seg.datasets.class_lists import read_class_list
from volo_seg.datasets.importers.coco import ROBOFLOW, mapped_labels, read_instances
from volo_seg.datasets.importers.records import Collection, Item, Tree, split_of
from volo_seg.errors import UserError

_MASK = '_mask.png'


def recognise(tree: Tree) -> str:
    lists = tree.named('_classes.csv', ROBOFLOW)
    return f'{lists[0]} is a file of Roboflow' if lists else ''


def read(tree: Tree) -> Collection:
    """Read masks by ``_classes.csv``, or COCO annotations, without the category that only groups the others.

    Raises:
        UserError: A file is malformed, or class lists differ.
    """
    if files := tree.named(ROBOFLOW):
        found = read_instances(tree, files)
        groups = {entry.get('supercategory') for name in files for entry in tree.json(name)['categories']}
        drawn = {shape.label for item in found.items for shape in item.shapes}
        found.classes = [name for name in found.classes if name in drawn or name not in groups]
        return found
    lists = tree.named('_classes.csv')
    if not lists:
        raise UserError(f'{str(tree.root)!r} has neither _classes.csv nor {ROBOFLOW}; check the folder')
    found = Collection()
    names = read_class_list(tree.root / lists[0])[0]
    other = next((name for name in lists[1:] if read_class_list(tree.root / name)[0] != names), None)
    if other:
        raise UserError(f'{lists[0]} and {other} list different classes; export the data set again')
    for number, name in enumerate(names):
        found.add_class(name, number)
    index = np.full(256, -3, np.int32)
    index[: len(names)] = np.arange(len(names))
    masks = {name for name in tree.images if name.endswith(_MASK)}
    tree.used |= masks
    for image in (name for name in tree.images if name not in masks):
        mask = image.rpartition('.')[0] + _MASK
        tree.used.add(image)
        draw = functools.partial(mapped_labels, tree.root / mask, index) if mask in masks else None
        split = split_of(image)
        name = PurePosixPath(image).name if split else image
        found.items.append(Item(name, tree.root / image, mask, split, label_map=draw))
    return found

"""Label images beside photographs: PASCAL VOC, and the segmentation masks of CVAT with their ``labelmap.txt``."""

from __future__ import annotations

import functools
from pathlib import Path, PurePosixPath

import numpy as np

from volo_seg.datasets.class_lists import read_class_list
from volo_seg.datasets.importers.coco import mapped_labels
from volo_seg.datasets.importers.records import IGNORED, Collection, Item, LabelMap, Tree, split_of
from volo_seg.datasets.masks import ColourTable, decode_mask
from volo_seg.errors import UserError
from volo_seg.io import read_regular

CLASSES = [
    'background', 'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow', 'diningtable',
    'dog', 'horse', 'motorbike', 'person', 'pottedplant', 'sheep', 'sofa', 'train', 'tvmonitor',
]  # fmt: skip


def recognise(tree: Tree) -> str:
    masks = _masks(tree)
    return (
        f'{masks[0]} is a label image, and there is no labelmap.txt' if masks and not tree.named('labelmap.txt') else ''
    )


def recognise_cvat_masks(tree: Tree) -> str:
    masks, lists = _masks(tree), tree.named('labelmap.txt')
    return f'{masks[0]} is a label image, and {lists[0]} has the colours' if masks and lists else ''


def read(tree: Tree) -> Collection:
    """Read palette images of the 21 classes of VOC, or of those in a ``classes.txt``; 255 is ignored."""
    found, lists = Collection(), tree.named('classes.txt')
    for number, name in enumerate(read_class_list(tree.root / lists[0])[0] if lists else CLASSES):
        found.add_class(name, number)
    index = np.full(256, -3, np.int32)
    index[: len(found.classes)], index[255] = np.arange(len(found.classes)), IGNORED
    return _items(tree, found, lambda path: functools.partial(mapped_labels, path, index))


def read_cvat_masks(tree: Tree) -> Collection:
    """Read colour or palette images by the colours of ``labelmap.txt``."""
    lists = tree.named('labelmap.txt')
    if not lists:
        raise UserError(f'{str(tree.root)!r} has no labelmap.txt; export "Segmentation mask 1.1" from CVAT')
    names, colours = read_class_list(tree.root / lists[0])
    if colours is None or len(set(colours)) < len(colours):
        raise UserError(f'{lists[0]} does not give each class a colour of its own; write name:R,G,B::')
    found = Collection()
    for name, colour in zip(names, colours, strict=True):
        found.add_class(name, list(colour))
    table = ColourTable(tuple(colours))
    return _items(tree, found, lambda path: functools.partial(coloured_labels, path, table))


def coloured_labels(path: Path, table: ColourTable) -> LabelMap:
    """The class index of each pixel of a mask read by colour."""
    return decode_mask(read_regular(path), where=str(path), table=table).astype(np.int32)


def _items(tree: Tree, found: Collection, draw) -> Collection:  # type: ignore[no-untyped-def]
    """Add an item for each mask; lists in ``ImageSets/Segmentation`` give the splits."""
    lists = [name for name in tree.ending('.txt') if name.lower().split('/')[-3:-1] == ['imagesets', 'segmentation']]
    splits = {
        entry: split_of(Path(name).stem)
        for name in sorted(lists)
        for entry in tree.lines(name)
        if Path(name).stem != 'trainval'
    }
    masks = _masks(tree)
    if not masks:
        boxes = next((name for name in tree.ending('.xml')), '')
        raise UserError(
            f'{str(tree.root)!r} has no folder SegmentationClass with masks'
            + (f', only boxes such as {boxes}; export segmentation masks' if boxes else '; check the folder')
        )
    folders = {name for name in tree.images if 'SegmentationClass' in name or 'SegmentationObject' in name}
    photographs: dict[str, list[str]] = {}
    for name in tree.images:
        if name not in folders:
            photographs.setdefault(PurePosixPath(name).stem, []).append(name)
    tree.used.update(folders)
    for mask in masks:
        stem = mask.partition('SegmentationClass/')[2].rpartition('.')[0]
        same = photographs.get(PurePosixPath(stem).name, [])
        image = tree.image(same[0] if len(same) == 1 else f'{stem}.jpg', where=mask)
        name = stem + image.suffix
        found.items.append(Item(name, image, mask, splits.get(stem, ''), label_map=draw(tree.root / mask)))
    return found


def _masks(tree: Tree) -> list[str]:
    return [name for name in tree.images if 'SegmentationClass/' in name and name.lower().endswith('.png')]

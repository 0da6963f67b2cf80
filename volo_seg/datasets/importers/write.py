"""Recognise a format, and write images, label PNGs, class names and lists as a data set of folders."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from volo_seg.datasets.class_lists import check_class_names, read_class_list
from volo_seg.datasets.importers import coco, cvat, hf, label_studio, labelme, roboflow, supervisely, voc, yolo
from volo_seg.datasets.importers.records import IGNORED, UNLABELLED, Collection, Item, Tree
from volo_seg.datasets.inspection.processes import map_in_processes
from volo_seg.errors import UserError
from volo_seg.image_files import SUFFIXES, open_image, stored_orientation
from volo_seg.io import atomic_path, atomic_write, folder_lock, read_regular, safe_join
from volo_seg.label_png import encode_labels, read_labels
from volo_seg.visualization import default_palette

RECORD = 'import.json'
IGNORE = 255
_BACKGROUNDS = ('background', '_background_', 'bg')
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Format(NamedTuple):
    """A format: ``recognise`` says why a source is of it, ``read`` reads it."""

    recognise: Callable[[Tree], str]
    read: Callable[[Tree], Collection]


FORMATS = {
    'coco': Format(coco.recognise, coco.read),
    'coco-panoptic': Format(coco.recognise_panoptic, coco.read_panoptic),
    'coco-stuff': Format(coco.recognise_stuff, coco.read_stuff),
    'yolo': Format(yolo.recognise, yolo.read),
    'voc': Format(voc.recognise, voc.read),
    'cvat': Format(cvat.recognise, cvat.read),
    'cvat-masks': Format(voc.recognise_cvat_masks, voc.read_cvat_masks),
    'labelme': Format(labelme.recognise, labelme.read),
    'label-studio': Format(label_studio.recognise, label_studio.read),
    'roboflow': Format(roboflow.recognise, roboflow.read),
    'supervisely': Format(supervisely.recognise, supervisely.read),
    'hf': Format(hf.recognise, hf.read),
}
ANNOTATION_ONLY = ('coco', 'cvat', 'labelme', 'label-studio')
"""Formats whose annotations need not be beside the images."""


@dataclass(frozen=True)
class Options:
    """How annotations become labels.

    Attributes:
        form: A key of :data:`FORMATS`, or ``auto``.
        classes: The classes to keep, in this order; others become background or ignored. Empty means all.
        background: Class of pixels without annotation, or ``ignore``; empty means the format's own background class,
            for shapes a new class ``background``, for label maps ``ignore``.
        boxes: ``refuse`` or ``ignore`` bounding boxes.
        crowd: ``keep`` or ``ignore`` crowds.
        empty: Images without annotation: ``background``, ``skip``; empty refuses them.
        val: Share of the images for validation, where the source has no validation split.
        copy: Copy images instead of linking them.
        images: The folder with the images, where it is not SOURCE; for the formats of :data:`ANNOTATION_ONLY`.
    """

    form: str = 'auto'
    classes: tuple[str, ...] = ()
    background: str = ''
    boxes: str = 'refuse'
    crowd: str = 'keep'
    empty: str = ''
    val: float | None = None
    copy: bool = False
    images: str = ''


@dataclass(frozen=True)
class Painter:
    """What a process needs to write one item: the label of each class name, and of what has none."""

    out: Path
    labels: dict[str, int]
    classes: tuple[str, ...]
    unlisted: int
    unlabelled: int
    by_area: bool
    crowd: bool
    copy: bool
    colours: npt.NDArray[np.uint8]

    def __call__(self, item: Item) -> npt.NDArray[np.int64]:
        """Write the image and the label PNG of ``item`` unless they exist; return the pixels of each label (256,)."""
        # the image itself may be a link that leads out of the folder
        mask = safe_join(self.out / 'annotations' / item.split, str(PurePosixPath(item.name).with_suffix('.png')))
        image = self.out / 'images' / item.split / item.name
        if mask.exists() and os.path.lexists(image):
            return np.bincount(read_labels(mask).ravel(), minlength=256)
        content = read_regular(item.image) if isinstance(item.image, Path) else item.image()
        labels = self.paint(item, content)
        with atomic_path(image) as part:
            if not isinstance(item.image, Path):
                part.write_bytes(content)
            elif self.copy:
                shutil.copyfile(item.image, part)
            else:
                part.symlink_to(item.image.resolve())
        atomic_write(mask, encode_labels(labels, self.colours))
        return np.bincount(labels.ravel(), minlength=256)

    def paint(self, item: Item, content: bytes) -> npt.NDArray[np.uint8]:
        """The labels of ``item`` in the orientation in which the image of ``content`` is read.

        Raises:
            UserError: The image cannot be read, or its size is not that of the annotation.
        """
        name = f'image {item.name!r}'
        with open_image(io.BytesIO(content), name=name) as image:
            turn = stored_orientation(image, content, name=name)
            stored = image.size
        upright = stored[::-1] if turn > 4 else stored
        width, height = item.size or upright
        if (width, height) not in (upright, stored):
            raise self._mismatch(item, (width, height), upright)
        if item.label_map:
            table = np.array([self.labels.get(label, self.unlisted) for label in self.classes] + [0, 0], np.uint8)
            table[IGNORED], table[UNLABELLED] = IGNORE, self.unlabelled
            labels = table[item.label_map()]
        else:
            labels = np.full((height, width), self.unlabelled, np.uint8)
            drawn = [(shape, shape.draw(height, width)) for shape in item.shapes]
            drawn.sort(key=lambda pair: (pair[0].order, -pair[1].sum() if self.by_area else 0))
            for shape, area in drawn:
                ignored = shape.label is None or (shape.crowd and not self.crowd)
                labels[area] = IGNORE if ignored else self.labels.get(shape.label or '', self.unlisted)
        size = labels.shape[::-1]
        if size == upright:
            return labels
        if size != stored:
            raise self._mismatch(item, size, upright)
        return np.asarray(Image.fromarray(labels).transpose(_TURNS[turn]))

    @staticmethod
    def _mismatch(item: Item, size: Sequence[int], upright: Sequence[int]) -> UserError:
        return UserError(
            f'{item.where}: the annotation is for {size[0]} x {size[1]} pixels, and image {item.name!r} has '
            f'{upright[0]} x {upright[1]}; use the image that was annotated'
        )


def recognise(tree: Tree) -> tuple[str, str]:
    """The format of ``tree``, and why.

    Raises:
        UserError: None or several fit.
    """
    found = {name: reason for name, form in FORMATS.items() if (reason := form.recognise(tree))}
    if not found:
        known = ', '.join(FORMATS)
        raise UserError(f'{str(tree.root)!r} is of no known format; give one by --format ({known})')
    if len(found) > 1:
        reasons = '; '.join(f'{name} ({reason})' for name, reason in found.items())
        raise UserError(f'{str(tree.root)!r} may be {reasons}; give one by --format')
    return next(iter(found.items()))


def import_annotations(
    source: Path,
    out: Path,
    options: Options,
    *,
    processes: int = 1,
    progress: Callable[[Iterable[Any], int], Iterable[Any]] = lambda items, total: items,
) -> dict[str, Any]:
    """Write the data set ``out`` from ``source``, or go on where an interrupted import stopped.

    Args:
        source: Folder or annotation file; it is only read.
        out: New or empty folder, or that of an interrupted import with equal input.
        options: How annotations become labels.
        processes: Number of processes.
        progress: Wraps the items that are written.

    Returns:
        The content of ``import.json``.

    Raises:
        UserError: The source is malformed, or the options do not fit it.
    """
    for folder in (source, Path(options.images or source)):
        if folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
            raise UserError(
                f'{str(out)!r} is in the source {str(folder)!r}, which is only read; name another output folder'
            )
    tree = Tree(source, skip=out, names=options.classes, images=Path(options.images) if options.images else None)
    form, reason = recognise(tree) if options.form == 'auto' else (options.form, 'given by --format')
    if options.images and form not in ANNOTATION_ONLY:
        raise UserError(
            f'--images {options.images!r} is for {", ".join(ANNOTATION_ONLY)}, and {str(source)!r} is of the format '
            f'{form}; leave --images out, and give the folder that holds images and annotations'
        )
    found = FORMATS[form].read(tree)
    found.ignored['bounding boxes'] = len(found.boxes)
    if found.boxes and options.boxes == 'refuse':
        raise UserError(
            f'{found.boxes[0]} is a bounding box ({len(found.boxes)} in all), and boxes have no outline to train on; '
            'annotate polygons or masks, or leave boxes out by --boxes ignore'
        )
    names, painter = _painter(found, options, out)
    items = _split(_annotated(found, options), options, source)
    record: dict[str, Any] = {
        'source': str(source),
        'format': form,
        'recognised_by': reason,
        'options': asdict(options) | {'form': form},
        'fingerprint': _fingerprint(tree, items, names),
        'finished': False,
    }
    with folder_lock(out, what='output folder', fix='name another one'):
        _start(out, record)
        total = Counter[str]()
        pixels = np.zeros(256, np.int64)
        for item, counts in zip(
            items, progress(map_in_processes(painter, items, processes=processes), len(items)), strict=True
        ):
            pixels += counts
            total[item.split] += 1
        atomic_write(out / 'classes.txt', ''.join(f'{name}\n' for name in names).encode())
        if read_class_list(out / 'classes.txt')[0] != names:
            raise UserError(f'the class names {names[:3]}… would be read as numbers or colours; rename the classes')
        for split in total:
            lines = [f'{PurePosixPath(item.name).with_suffix("")}\n' for item in items if item.split == split]
            atomic_write(out / f'{split}.txt', ''.join(lines).encode())
        shapes = Counter(shape.label for item in items for shape in item.shapes)
        crowds = sum(shape.crowd for item in items for shape in item.shapes)
        rest = 'ignored' if painter.unlisted == IGNORE else names[painter.unlisted]
        ignored = found.ignored + Counter({'crowds': crowds if options.crowd == 'ignore' else 0})
        ignored['images that no annotation names'] = len(set(tree.images) - tree.used)
        record |= {
            'finished': True,
            'images': dict(total),
            'classes': {
                name: {
                    'label': label,
                    'source_id': found.ids.get(name),
                    'shapes': shapes[name],
                    'pixels': int(pixels[label]),
                }
                for label, name in enumerate(names)
            },
            'ignored_pixels': int(pixels[IGNORE]),
            'other_classes': {name: rest for name in found.classes if name not in names},
            'crowds': crowds,
            'ignored': dict(+ignored),
        }
        atomic_write(out / RECORD, (json.dumps(record, indent=1) + '\n').encode())
    return record


def _painter(found: Collection, options: Options, out: Path) -> tuple[list[str], Painter]:
    """The class names of the output in the order of their labels, and the painter.

    Raises:
        UserError: ``--classes`` names a class that is not there, or there are too many.
    """
    unknown = set(options.classes) - set(found.classes)
    own = next((name for name in found.classes if name.lower() in _BACKGROUNDS), '')
    maps = any(item.label_map for item in found.items)
    background = options.background or own or ('ignore' if maps else 'background')
    unknown.discard(background)
    if unknown:
        raise UserError(f'--classes names {min(unknown)!r}, and the source has {", ".join(found.classes)[:300]}')
    names = list(options.classes) or [name for name in found.classes if name != own or options.background != 'ignore']
    if background != 'ignore' and background not in names:
        names.insert(0, background)
    check_class_names(names, where='the class list of the source')
    if len(names) > IGNORE:
        raise UserError(f'the source has {len(names)} classes, and a label image holds 255; choose some by --classes')
    rest = IGNORE if background == 'ignore' else names.index(background)
    labels = {name: label for label, name in enumerate(names)}
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(names)] = default_palette(len(names), first=1)
    # the void of a label map becomes background only where the user says so
    unlabelled = IGNORE if maps and not options.background else rest
    return names, Painter(
        out,
        labels,
        tuple(found.classes),
        unlisted=rest,
        unlabelled=unlabelled,
        by_area=found.by_area,
        crowd=options.crowd == 'keep',
        copy=options.copy,
        colours=colours,
    )


def _annotated(found: Collection, options: Options) -> list[Item]:
    """The items that are written, by ``--empty``.

    Raises:
        UserError: An image has no annotation and the user did not say what it means, or no image is left.
    """
    empty = [item for item in found.items if not item.shapes and not item.label_map]
    found.ignored['images without annotation (skipped)'] = len(empty) if options.empty == 'skip' else 0
    if empty and not options.empty:
        raise UserError(
            f'image {empty[0].name!r} has no annotation ({len(empty)} in all); give --empty background to train such '
            'images as background, or --empty skip to leave them out'
        )
    items = [item for item in found.items if options.empty == 'background' or item.shapes or item.label_map]
    if not items:
        raise UserError('the source has no annotated image; check it, or give another --format')
    return items


def _split(items: list[Item], options: Options, source: Path) -> list[Item]:
    """Give every item a split. Those without one are divided by a hash of their name; train gives up its share.

    Raises:
        UserError: ``--val`` is no share, or the source has a validation split of its own; or two images have one name.
    """
    share = 0.2 if options.val is None else options.val
    if not 0 <= share < 1:
        raise UserError(f'--val {share:g} is not a share of the images; give a number from 0 to below 1')
    own = sum(item.split == 'val' for item in items)
    if own and options.val is not None:
        raise UserError(
            f'--val {share:g}: {str(source)!r} has its own validation split of {own} images; leave --val out'
        )
    items = [item if item.split else replace(item, split='train') for item in items]
    names = sorted(
        (item.name for item in items if item.split == 'train'), key=lambda name: hashlib.sha256(name.encode()).digest()
    )
    count = 0 if own else round(share * len(names))
    chosen = set(names[: max(count, int(share > 0 and not own and len(names) > 1))])
    items = [replace(item, split='val') if item.split == 'train' and item.name in chosen else item for item in items]
    seen: dict[tuple[str, str], Item] = {}
    for item in items:
        if not item.name.lower().endswith(SUFFIXES):
            raise UserError(
                f'{item.where}: image {item.name!r} has another suffix than {", ".join(SUFFIXES)}; convert it'
            )
        key = item.split, str(PurePosixPath(item.name).with_suffix(''))
        if key in seen:
            raise UserError(f'{item.where} and {seen[key].where} annotate images of one name, {key[1]!r}; rename one')
        seen[key] = item
    return items


def _fingerprint(tree: Tree, items: list[Item], names: list[str]) -> str:
    """A hash of what decides the output: names, splits, classes, and sizes and times of all files of the source."""
    parts = [f'{item.split}/{item.name}' for item in items] + names
    for path in sorted({*(tree.root / name for name in tree.files), *(tree.image_root / name for name in tree.images)}):
        with contextlib.suppress(OSError):
            status = os.stat(path)
            parts.append(f'{path} {status.st_size} {status.st_mtime_ns}')
    return hashlib.sha256('\n'.join(parts).encode()).hexdigest()


def _start(out: Path, record: dict[str, Any]) -> None:
    """Write the record, unless ``out`` holds the same import. An unfinished import of other input is removed.

    Raises:
        UserError: ``out`` holds something else.
    """
    path = out / RECORD
    fix = 'name another output folder, or delete it'
    if path.exists():
        try:
            before = json.loads(read_regular(path))
            same = all(before.get(key) == json.loads(json.dumps(record))[key] for key in ('options', 'fingerprint'))
            finished = before['finished']
        except (ValueError, AttributeError, TypeError, KeyError, OSError) as error:
            raise UserError(f'{str(path)!r} cannot be read ({error}); {fix}') from error
        if same:
            return
        if finished:
            raise UserError(f'{str(out)!r} holds an import of other files or with other options; {fix}')
        for name in ('images', 'annotations'):
            shutil.rmtree(out / name, ignore_errors=True)
    elif others := [name for name in os.listdir(out) if not name.startswith('.')]:
        raise UserError(f'{str(out)!r} is not empty ({min(others)!r}); {fix}')
    atomic_write(path, (json.dumps(record, indent=1) + '\n').encode())

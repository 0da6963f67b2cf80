"""What an importer reads: images, the shapes or label maps on them, and class names; and the files of a source."""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from volo_seg.errors import UserError
from volo_seg.image_files import SUFFIXES
from volo_seg.io import find_files, read_lines, read_regular

IGNORED, UNLABELLED = -1, -2
"""Values of a label map besides the indices of classes: never trained; without a class (may become background)."""
Mask = npt.NDArray[np.bool_]
LabelMap = npt.NDArray[np.int32]
_SPLIT = re.compile(r'(?<![a-z])(train|val|test)(ing|id|idation)?(?![a-z])')
_SNIFFED = 200  # most JSON files that are searched to recognise a format
_MARKS = {
    'coco-panoptic': (b'"annotations"', b'"categories"', b'"segments_info"'),
    'coco': (b'"annotations"', b'"categories"', b'"images"'),
    'labelme': (b'"shapes"', b'"imagePath"'),
    'label-studio': (b'"annotations"', b'"result"', b'"data"'),
}


@dataclass(frozen=True)
class Shape:
    """An area of one class.

    Attributes:
        label: Class name; None for an area that is never trained.
        draw: ``draw(height, width)`` is its mask (H, W). A ``functools.partial``, so that processes can get it.
        order: Shapes of a higher order are painted over those of a lower one.
        crowd: Whether it covers a group of objects roughly (COCO).
    """

    label: str | None
    draw: Callable[[int, int], Mask]
    order: float = 0
    crowd: bool = False


@dataclass(frozen=True)
class Item:
    """One image with its annotation.

    Attributes:
        name: Relative name in the output, with suffix.
        image: The file, or a function that returns its content.
        where: The annotation file, for messages.
        split: ``train``, ``val``, ``test``, or empty where the source has no splits.
        size: (width, height) that the shapes refer to; None means the upright image.
        shapes: In the order of the source.
        label_map: Returns indices of ``Collection.classes``, ``IGNORED`` or ``UNLABELLED``, (H, W), instead of shapes.
    """

    name: str
    image: Path | Callable[[], bytes]
    where: str
    split: str = ''
    size: tuple[int, int] | None = None
    shapes: tuple[Shape, ...] = ()
    label_map: Callable[[], LabelMap] | None = None


@dataclass
class Collection:
    """What an importer found.

    Attributes:
        classes: Names, in the order of the source's ids.
        items: The images.
        by_area: Whether the format paints smaller shapes over larger ones of the same order.
        boxes: Places of bounding boxes, which have no area.
        ignored: Why parts of the annotation were left out -> how many.
        ids: Class name -> id in the source, where it has one.
    """

    classes: list[str] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    by_area: bool = False
    boxes: list[str] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    ids: dict[str, Any] = field(default_factory=dict)

    def add_class(self, name: str, number: Any = None) -> None:
        """Append a class that is not known yet."""
        if name not in self.ids:
            self.classes.append(name)
            self.ids[name] = number


class Tree:
    """The files of a source: a folder, or one annotation file beside its images.

    Args:
        source: The folder or file.
        skip: A folder below it that is left out.
        names: Class names, for formats whose files may lack them.
        images: The folder with the images, where it is another one.

    Raises:
        UserError: ``source`` or ``images`` does not exist or cannot be searched.
    """

    def __init__(self, source: Path, *, skip: Path, names: Sequence[str] = (), images: Path | None = None) -> None:
        self.names = names
        if not source.exists():
            raise UserError(f'source {str(source)!r} does not exist; give a folder or an annotation file')
        if images and not images.is_dir():
            raise UserError(f'--images {str(images)!r} is not a folder; give the one that holds the images')
        self.root = source
        if source.is_file():
            self.root = source.parent
            if self.root.name.lower() in ('annotations', 'labels'):
                self.root = self.root.parent
        every = find_files(self.root, suffixes=('',), skip=() if source.is_dir() else (skip.resolve(),))
        names = [path.relative_to(self.root).as_posix() for path in every]
        self.image_root = images or self.root
        found = find_files(images, suffixes=('',), skip=(skip.resolve(),)) if images else every
        self.images = [p.relative_to(self.image_root).as_posix() for p in found if p.name.lower().endswith(SUFFIXES)]
        self.files = names if source.is_dir() else [source.relative_to(self.root).as_posix()]
        self.used: set[str] = set()

    def ending(self, *suffixes: str) -> list[str]:
        """The files whose names end so, in any case."""
        return [name for name in self.files if name.lower().endswith(suffixes)]

    def named(self, *names: str) -> list[str]:
        """The files with one of these names, in any folder."""
        return [name for name in self.files if PurePosixPath(name).name.lower() in names]

    @functools.cached_property
    def sniffed(self) -> dict[str, str]:
        """JSON file -> format, for the first files that are of a format."""
        found = {}
        for name in self.ending('.json')[:_SNIFFED]:
            content = read_regular(self.root / name)
            kind = next((kind for kind, marks in _MARKS.items() if all(mark in content for mark in marks)), None)
            if kind:
                found[name] = kind
        return found

    def looks_like(self, kind: str) -> list[str]:
        """The JSON files that are surely of a format."""
        return [name for name, found in self.sniffed.items() if found == kind]

    def of_kind(self, kind: str) -> list[str]:
        """The JSON files of a format, by :attr:`sniffed`; a JSON file that is the only one may lack keys."""
        files = self.ending('.json')
        return self.looks_like(kind) or (files if len(files) == 1 else [])

    @functools.cached_property
    def _by_name(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for image in self.images:
            found.setdefault(PurePosixPath(image).name, []).append(image)
        return found

    def image(self, name: str, *, where: str, split: str = '') -> Path:
        """The image file that an annotation calls ``name``: the one whose path has the most parts of it, from the end.

        Args:
            name: Path or file name in the annotation.
            where: The annotation file; images near it are preferred.
            split: Of several images, one below a folder of this split is preferred.

        Raises:
            UserError: There is none, there are several, or ``name`` leads out of the source.
        """
        parts = PurePosixPath(name.replace('\\', '/')).parts

        def common(place: str) -> int:
            """The number of equal parts at the ends of ``place`` and ``name``."""
            pairs = zip(reversed(PurePosixPath(place).parts), reversed(parts), strict=False)
            return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

        places = self._by_name.get(parts[-1], []) if parts else []
        most = max(map(common, places), default=0)
        full = [place for place in places if common(place) == most]
        for narrow in (
            lambda place: PurePosixPath(place).parent == PurePosixPath(where).parent,
            lambda place: split and split_of(place) == split,
        ):
            full = [place for place in full if narrow(place)] or full
        if len(full) != 1:
            found = f'{len(full)} of that name: {", ".join(full[:2])}' if full else 'no such file'
            fix = 'give each its own name' if full else 'add it, or remove it from the annotation'
            raise UserError(f'{where}: image {name!r} is not found below {str(self.image_root)!r} ({found}); {fix}')
        self.used.add(full[0])
        return self.image_root / full[0]

    def json(self, name: str) -> Any:
        """The content of a JSON file.

        Raises:
            UserError: It is not JSON.
        """
        try:
            return json.loads(read_regular(self.root / name))
        except (OSError, ValueError, RecursionError) as error:
            reason = ' '.join(str(error).split())[:120]
            raise UserError(f'{name} cannot be read as JSON ({reason}); export it again') from error

    def xml(self, name: str) -> ElementTree.Element:
        """The root of an XML file.

        Raises:
            UserError: It is not XML.
        """
        try:
            return ElementTree.fromstring(read_regular(self.root / name))
        except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:
            raise UserError(f'{name} cannot be read as XML ({error}); export it again') from error

    def lines(self, name: str) -> list[str]:
        """The non-empty lines of a text file.

        Raises:
            UserError: It is not text.
        """
        try:
            return read_lines(self.root / name, most_bytes=2**26)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f'{name} cannot be read as text ({error}); export it again') from error


def split_of(path: str) -> str:
    """``train``, ``val`` or ``test`` if a part of ``path`` says so, the last one first; else empty."""
    for part in reversed(path.lower().split('/')):
        if found := _SPLIT.search(part):
            return found[1]
    return ''


def get(entry: Any, key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """``entry[key]``, which is of ``kind``.

    Raises:
        UserError: ``entry`` has no such key, or its value is of another type.
    """
    if not isinstance(entry, dict) or key not in entry:
        raise UserError(f'{where} has no {key!r}; export it again')
    value = entry[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        text = json.dumps(value)[:60]
        raise UserError(f'{where} has {key} = {text}, which is not a valid {key}; export it again')
    return value


def get_size(entry: Any, keys: tuple[str, str], where: str) -> tuple[int, int]:
    """(width, height) at ``keys`` of ``entry``, whole numbers above 0.

    Raises:
        UserError: They are missing or not such numbers.
    """
    width, height = (get(entry, key, (int, float), where) for key in keys)
    if not (width >= 1 and height >= 1 and width == int(width) and height == int(height)):
        raise UserError(f'{where} has the size {width} x {height}, which no image has; export it again')
    return int(width), int(height)


def polygon(points: Any, *, where: str, size: tuple[int, int] | None = None) -> npt.NDArray[np.float64] | str:
    """The points (n, 2) of a polygon as x, y; or why it has no area: a reason for :attr:`Collection.ignored`.

    Args:
        points: Flat (x, y, x, y, …) or as pairs.
        where: The place, for messages.
        size: (width, height) of the image.

    Raises:
        UserError: ``points`` are not pairs of finite numbers, or are far from any image.
    """
    try:
        array = np.array(points, np.float64)
        array = array.reshape(-1, 2)
    except (ValueError, TypeError, OverflowError) as error:
        text = json.dumps(points, default=str)[:60]
        raise UserError(f'{where} has points {text}, which are not pairs of numbers; export it again') from error
    if not np.isfinite(array).all() or (np.abs(array) > 2**20).any():
        worst = array[~(np.abs(array) <= 2**20).all(axis=1)][0]
        raise UserError(f'{where} has the point ({worst[0]:g}, {worst[1]:g}), which is in no image; export it again')
    if len(array) < 3:
        return 'polygons with fewer than three points'
    if size and ((array < 0).all(axis=0).any() or (array > size).all(axis=0).any()):
        return 'polygons outside the image'
    return array


def is_number(value: object) -> bool:
    """Whether ``value`` is a finite int or float."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

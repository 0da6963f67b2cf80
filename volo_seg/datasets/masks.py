"""Decode label images: 8-bit class numbers, or a colour per class."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from volo_seg.image_files import ImageError
from volo_seg.label_png import labels_of, load_label_image

Labels = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]
_COLOUR_MODES = ('1', 'L', 'P', 'RGB', 'RGBA')


@dataclass(frozen=True)
class ColourTable:
    """The RGB colours (0..255) of the classes in their order, and the colours of ignored pixels."""

    colours: tuple[Colour, ...]
    ignored: tuple[Colour, ...] = ()
    ignore_index: int = 255


def decode_mask(content: bytes, *, where: str, table: ColourTable | None = None) -> Labels:
    """Decode the content of a label image to labels (H, W), by its colours if there is a ``table``.

    Raises:
        ImageError: The file is damaged, its mode has no labels, or a label or colour is out of range.
    """
    name = f'label image {where!r}'
    try:
        image = load_label_image(content, name=name)
    except ImageError as error:
        raise ImageError(
            f'cannot read {where!r}: {error.reason}; training would stop there; write the label image again',
            reason=error.reason,
        ) from error
    return _by_colour(image, table, name) if table else _by_value(image, name)


def label_lookup(*, reduce_zero_label: bool, label_map: Mapping[int, int] | None) -> Labels:
    """The label in training of each label value 0..255, as an array (256,), by MMSegmentation's rules."""
    lookup = np.arange(256, dtype=np.uint8)
    if reduce_zero_label:
        lookup = np.array([255, *range(254), 255], np.uint8)
    before = lookup.copy()
    for old, new in (label_map or {}).items():
        lookup[before == old] = new
    return lookup


def _by_value(image: Image.Image, name: str) -> Labels:
    try:
        values = labels_of(image, name=name)
    except ImageError as error:
        if image.mode not in ('RGB', 'RGBA'):
            raise
        raise ImageError(
            f'{error}, or give FolderDataset the colour of each class (colours=[…], or `name R G B` lines in '
            'classes.txt)',
            kind='mode',
        ) from error
    smallest, largest = int(values.min(initial=0)), int(values.max(initial=0))
    if largest > 255 or smallest < 0:
        value = largest if largest > 255 else smallest
        raise ImageError(
            f'{name} (mode {image.mode}) holds label {value}, but labels are read as 8 bit, where it would become '
            f'{value % 256}; number the classes 0..254 and write the label image again',
            kind='16-bit',
        )
    return values.astype(np.uint8, copy=False)


def _by_colour(image: Image.Image, table: ColourTable, name: str) -> Labels:
    if image.mode not in _COLOUR_MODES:
        raise ImageError(
            f'{name} has mode {image.mode}, but masks with a colour table are RGB images; write it as an RGB PNG',
            kind='mode',
        )
    red, green, blue = np.moveaxis(np.asarray(image.convert('RGB')).astype(np.int32), -1, 0)
    packed = red << 16 | green << 8 | blue
    labels = _colour_lookup(table)[packed]
    unknown = labels < 0
    if unknown.any():
        value = int(packed[unknown][0])
        grey = '' if image.mode.startswith('RGB') else ', or remove the colours if masks hold class numbers'
        raise ImageError(
            f'{name} holds colour {unpack(value)} in {int((packed == value).sum())} pixels, which no class has; '
            f'add it to the colours of the classes or to ignore_colours{grey}',
            kind='colour',
        )
    return labels.astype(np.uint8)


def unpack(value: int) -> Colour:
    """Split 0xRRGGBB into (R, G, B)."""
    return value >> 16, value >> 8 & 255, value & 255


@functools.lru_cache(maxsize=4)
def _colour_lookup(table: ColourTable) -> npt.NDArray[np.int16]:
    """The label of each colour 0xRRGGBB, -1 for unknown colours; 32 MB, cached in each process."""
    lookup = np.full(1 << 24, -1, np.int16)
    labels = [table.ignore_index] * len(table.ignored) + list(range(len(table.colours)))
    for (red, green, blue), label in zip([*table.ignored, *table.colours], labels, strict=True):
        lookup[red << 16 | green << 8 | blue] = label
    return lookup

"""Label images as files: one label a pixel, or one colour a class."""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

Labels = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]
_LABEL_MODES = ('1', 'L', 'P', 'I', 'I;16', 'I;16B', 'I;16L')  # of Pillow: one channel of whole numbers
_COLOUR_MODES = ('1', 'L', 'P', 'RGB', 'RGBA')
_NAMES = {'RGBA': 'colour image with transparency', 'LA': 'grey image with transparency', 'F': 'floating-point image'}
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


class MaskProblem(Exception):
    """Why a label image cannot be used: ``kind`` in a word, and the whole sentence."""

    def __init__(self, kind: str, sentence: str) -> None:
        super().__init__(sentence)
        self.kind = kind


@dataclass(frozen=True)
class ColourTable:
    """RGB colours (0..255) of the classes, in the order of the classes, and those of pixels to be ignored."""

    colours: tuple[Colour, ...]
    ignored: tuple[Colour, ...] = ()
    ignore_index: int = 255


def decode_mask(content: bytes, *, where: str, table: ColourTable | None = None) -> Labels:
    """Labels (H, W) of an image file's bytes; with a ``table``, every mask is read by its colours.

    Raises:
        MaskProblem: The file is damaged, of a kind that holds no labels, or holds a label or colour out of range.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            return _by_colour(image, table, where) if table else _by_value(image, where)
    except UNREADABLE as error:
        reason = 'the file is empty' if not content else short(error)
        raise MaskProblem(
            'unreadable', f'cannot read {where!r}: {reason}; training would stop there; write the label image again'
        ) from error


def label_lookup(*, reduce_zero_label: bool, label_map: Mapping[int, int] | None) -> Labels:
    """What training makes of the label values 0..255, as an array (256,): MMSegmentation's rules."""
    lookup = np.arange(256, dtype=np.uint8)
    if reduce_zero_label:
        lookup = np.array([255, *range(254), 255], np.uint8)
    before = lookup.copy()
    for old, new in (label_map or {}).items():
        lookup[before == old] = new
    return lookup


def short(error: Exception) -> str:
    """The reason of a failure to decode, without the memory addresses that Pillow puts into it."""
    text = str(error)
    return 'it is damaged or not an image' if 'cannot identify' in text or not text else text


def _by_value(image: Image.Image, where: str) -> Labels:
    if image.mode not in _LABEL_MODES:
        kind = _NAMES.get(image.mode, 'colour image')
        fix = 'write class numbers as an 8-bit grey or palette PNG'
        if image.mode in ('RGB', 'RGBA'):
            fix += (
                ', or give FolderDataset the colour of each class (colours=[…], or `name R G B` lines in classes.txt)'
            )
        raise MaskProblem(
            'mode', f'label image {where!r} is a {kind} (mode {image.mode}): it holds no class numbers; {fix}'
        )
    values = np.array(image)
    smallest, largest = int(values.min(initial=0)), int(values.max(initial=0))
    if largest > 255 or smallest < 0:
        value = largest if largest > 255 else smallest
        raise MaskProblem(
            '16-bit',
            f'label image {where!r} (mode {image.mode}) holds label {value}, and labels are read as 8 bit, where it '
            f'would become {value % 256}; number the classes 0..254 and write the label image again',
        )
    return values.astype(np.uint8)


def _by_colour(image: Image.Image, table: ColourTable, where: str) -> Labels:
    if image.mode not in _COLOUR_MODES:
        raise MaskProblem(
            'mode',
            f'label image {where!r} has mode {image.mode}, and masks with a colour table are RGB images; '
            'write it as an RGB PNG',
        )
    red, green, blue = np.moveaxis(np.asarray(image.convert('RGB')).astype(np.int32), -1, 0)
    packed = red << 16 | green << 8 | blue
    labels = _colour_lookup(table)[packed]
    unknown = labels < 0
    if unknown.any():
        value = int(packed[unknown][0])
        grey = '' if image.mode.startswith('RGB') else ', or take the colours away if masks hold class numbers'
        raise MaskProblem(
            'colour',
            f'label image {where!r} holds colour {unpack(value)} in {int((packed == value).sum())} pixels, which no '
            f'class has; add it to the colours of the classes or to ignore_colours{grey}',
        )
    return labels.astype(np.uint8)


def unpack(value: int) -> Colour:
    """The colour (R, G, B) of a number 0xRRGGBB."""
    return value >> 16, value >> 8 & 255, value & 255


@functools.lru_cache(maxsize=4)
def _colour_lookup(table: ColourTable) -> npt.NDArray[np.int16]:
    """0xRRGGBB to label, -1 for all other colours; 32 MB, made once a process."""
    lookup = np.full(1 << 24, -1, np.int16)
    labels = [table.ignore_index] * len(table.ignored) + list(range(len(table.colours)))
    for (red, green, blue), label in zip([*table.ignored, *table.colours], labels, strict=True):
        lookup[red << 16 | green << 8 | blue] = label
    return lookup

"""Inspect an image and its label image. Worker processes import this module, so it needs no torch or mmseg."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from volo_seg.datasets.masks import ColourTable, decode_mask
from volo_seg.image_files import (
    ImageError,
    check_data,
    load_image,
    open_image,
    stored_bits,
    stored_orientation,
)
from volo_seg.imageio import (
    RANGE_MODES,
    Reading,
    check_image,
    decode_image,
    decode_values,
    to_8_bits,
)
from volo_seg.io import read_regular

Size = tuple[int, int]  # width, height in pixels


@dataclass(frozen=True)
class InspectionOptions:
    """What is read of a pair.

    Attributes:
        images: Read images.
        decode: Decode images completely.
        digest: Hash images.
        table: Colours of the classes, if label images are read by colour.
        reading: How the data set's pipeline reads images, if that is known.
    """

    images: bool = True
    decode: bool = True
    digest: bool = True
    table: ColourTable | None = None
    reading: Reading | None = None


@dataclass(frozen=True)
class DeepValues:
    """The values of an image of more than 8 bits per channel.

    Attributes:
        dtype: Their type.
        least, largest: The smallest and the largest finite value.
        low, high: Their 0.1 and 99.9 percentiles.
        dark, bright: ``low`` and ``high`` after the conversion to 8 bits; 0 and 255 if that is refused.
        clipped: Share of the values outside the range of the reading.
    """

    dtype: str
    least: float
    largest: float
    low: float
    high: float
    dark: int = 0
    bright: int = 255
    clipped: float = 0.0


@dataclass
class Observation:
    """The content of a pair.

    Attributes:
        image, mask: Its files.
        digest: Hash of the image.
        deep: The values of an image of more than 8 bits.
        values: Label value -> number of pixels.
        palette: Label value -> RGB colour in the palette of the label image.
        problems: (kind, file, sentence).
    """

    image: str
    mask: str | None
    digest: bytes = b''
    deep: DeepValues | None = None
    values: dict[int, int] = field(default_factory=dict)
    palette: dict[int, tuple[int, ...]] = field(default_factory=dict)
    problems: list[tuple[str, str, str]] = field(default_factory=list)


def inspect_pair(pair: tuple[str, str | None], options: InspectionOptions) -> Observation:
    """Read both files of ``pair`` once."""
    seen = Observation(*pair)
    size, turned = _inspect_image(seen, options) if options.images else (None, 1)
    if seen.mask is None:
        return seen
    mask_size, mask_turned = _inspect_mask(seen, options.table)
    if size and mask_size and size != mask_size:
        why = f' (loading turns the image by its EXIF orientation {turned})' if turned > 1 else ''
        _add(
            seen,
            'size',
            seen.mask,
            f'image {seen.image!r} is {_text(size)} and its label image {seen.mask!r} is {_text(mask_size)} pixels'
            f'{why}, so that labels fall on the wrong pixels; find the right label image, or resize it to the '
            'nearest neighbour',
        )
    elif turned > 1 and mask_turned != turned:
        _add(
            seen,
            'orientation',
            seen.image,
            f'image {seen.image!r} is turned by its EXIF orientation {turned} when it is loaded, and labels are not '
            'turned alike; save the image upright without EXIF, and look at the pair with volo-seg browse',
        )
    return seen


def _inspect_image(seen: Observation, options: InspectionOptions) -> tuple[Size | None, int]:
    """The size after EXIF rotation (None if unreadable) and the EXIF orientation (1: as stored)."""
    try:
        content = read_regular(seen.image)
        if options.digest:
            seen.digest = hashlib.blake2b(content, digest_size=16).digest()
        return _open_image(seen, content, options)
    except OSError as error:
        _add(seen, 'unreadable', seen.image, _unreadable(seen.image, _reason(error)))
    except ImageError as error:
        reason = error.reason
        if error.kind in ('format', 'mode') and (options.reading is None or options.reading.color_type is not None):
            # OpenCV, which other loaders use, reads more formats and modes
            size = _opencv_size(seen.image)
            if size is not None:
                return size, 1
            reason = 'it is damaged or not an image'
        sentence = _unreadable(seen.image, reason)
        if error.kind == 'size':
            sentence = f'image {seen.image!r} is not checked: {reason}'
        _add(seen, 'unreadable', seen.image, sentence)
    return None, 1


def _open_image(seen: Observation, content: bytes, options: InspectionOptions) -> tuple[Size, int]:
    """The size as it is loaded, and the orientation; the values of more than 8 bits go to ``seen.deep``."""
    image = open_image(io.BytesIO(content), name='image')
    reading, size, tiff = options.reading, image.size, image.format == 'TIFF'
    orientation = stored_orientation(image, content, name='image')
    if reading is not None and reading.color_type == 'color_ignore_orientation' and not tiff:
        orientation = 1
    if orientation > 4 and not tiff:  # Pillow gives the upright size of a TIFF
        size = size[::-1]
    if options.decode and stored_bits(image) > 8:
        seen.deep = _deep_values(content, reading)
    if reading is not None:
        check_image(image, len(content), name='image', reading=reading)
        if options.decode and (tiff or stored_bits(image) > 8):
            pixels = decode_image(content, name='image', reading=reading)
            return (pixels.shape[1], pixels.shape[0]), orientation
    if image.format == 'JPEG':
        # decoding at one eighth of the size reads every byte in less time
        image.draft(None, (max(1, size[0] // 8), max(1, size[1] // 8)))
    if options.decode and image.format == 'PNG':
        check_data(image, name='image')  # the checksums of a PNG are verified without decompression
    elif options.decode:
        load_image(image, name='image')
    return size, orientation


def _deep_values(content: bytes, reading: Reading | None) -> DeepValues | None:
    """The values of an image of more than 8 bits, None if it holds no finite one."""
    image = open_image(io.BytesIO(content), name='image')
    check_data(image, name='image')
    bits, mode = stored_bits(image), image.mode
    values = decode_values(content, image, name='image')
    finite = values[np.isfinite(values)]
    if values.dtype == np.uint8 or not finite.size:
        return None
    least, largest, low, high = map(float, np.percentile(finite, (0, 100, 0.1, 99.9)))
    kind = str(values.dtype)
    value_range = None if reading is None else reading.value_range
    if value_range is None and mode in RANGE_MODES:
        return DeepValues(kind, least, largest, low, high)
    dark, bright = to_8_bits(np.array([low, high]).astype(values.dtype), value_range, name='image', bits=bits)
    outside = 0.0 if value_range is None else float(((finite < value_range[0]) | (finite > value_range[1])).mean())
    return DeepValues(kind, least, largest, low, high, int(dark), int(bright), outside)


def _opencv_size(path: str) -> Size | None:
    try:
        image = cv2.imread(path) if Path(path).is_file() and Path(path).stat().st_size else None
    except cv2.error:
        return None
    return None if image is None else (image.shape[1], image.shape[0])


def _inspect_mask(seen: Observation, table: ColourTable | None) -> tuple[Size | None, int]:
    """The size after EXIF rotation (None if unreadable) and the EXIF orientation (1: as stored)."""
    path = str(seen.mask)
    try:
        content = read_regular(path)
        labels = decode_mask(content, where=path, table=table)
    except OSError as error:
        _add(seen, 'unreadable', path, _unreadable(path, _reason(error)))
        return None, 1
    except ImageError as problem:
        _add(seen, problem.kind, path, str(problem))
        return None, 1
    counts = np.bincount(labels.reshape(-1), minlength=256)
    seen.values = {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    if content[:2] == b'\xff\xd8':
        _add(
            seen,
            'lossy',
            path,
            f'label image {path!r} is a JPEG, which changes label values at every edge; write PNGs from the source',
        )
    image = open_image(io.BytesIO(content), name=path)
    if image.mode == 'P' and image.palette is not None and table is None:
        kind, colours = image.palette.getdata()
        if kind == 'RGB':
            seen.palette = {value: tuple(colours[3 * value : 3 * value + 3]) for value in seen.values}
    return (labels.shape[1], labels.shape[0]), stored_orientation(image, content, name=path)


def _reason(error: OSError) -> str:
    return 'the file does not exist' if isinstance(error, FileNotFoundError) else str(error.strerror or error)


def _unreadable(path: str, reason: str) -> str:
    return (
        f'cannot read {path!r}: {reason}; training would stop at it or use a damaged image; '
        'copy the file again, or remove the pair'
    )


def _add(seen: Observation, kind: str, path: str, sentence: str) -> None:
    seen.problems.append((kind, path, sentence))


def _text(size: Size) -> str:
    return f'{size[0]}x{size[1]}'

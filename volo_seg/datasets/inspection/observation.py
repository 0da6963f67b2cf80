"""Inspect an image and its label image. Worker processes import this module, so it needs no torch or mmseg."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from volo_seg.datasets.masks import ColourTable, decode_mask
from volo_seg.imageio import ImageError, check_data, load_image, open_image, pillow_errors
from volo_seg.io import read_regular

Size = tuple[int, int]  # width, height in pixels
_ORIENTATION = 0x0112  # the EXIF tag


@dataclass(frozen=True)
class InspectionOptions:
    """What is read of a pair.

    Attributes:
        images: Read images.
        decode: Decode images completely.
        digest: Hash images.
        table: Colours of the classes, if label images are read by colour.
    """

    images: bool = True
    decode: bool = True
    digest: bool = True
    table: ColourTable | None = None


@dataclass
class Observation:
    """The content of a pair: ``values`` has the pixels of each label value, ``problems`` are (kind, file, sentence)."""

    image: str
    mask: str | None
    digest: bytes = b''
    values: dict[int, int] = field(default_factory=dict)
    problems: list[tuple[str, str, str]] = field(default_factory=list)


def inspect_pair(pair: tuple[str, str | None], options: InspectionOptions) -> Observation:
    """Read both files of ``pair`` once."""
    seen = Observation(*pair)
    size, turned = _inspect_image(seen, options) if options.images else (None, 1)
    if seen.mask is None:
        return seen
    mask_size = _inspect_mask(seen, options.table)
    if size and mask_size and size != mask_size:
        why = f' (loading turns the image by its EXIF orientation {turned}, labels have none)' if turned > 1 else ''
        _add(
            seen,
            'size',
            seen.mask,
            f'image {seen.image!r} is {_text(size)} and its label image {seen.mask!r} is {_text(mask_size)} pixels'
            f'{why}, so that labels fall on the wrong pixels; find the right label image, or resize it to the '
            'nearest neighbour',
        )
    elif turned > 1:
        _add(
            seen,
            'orientation',
            seen.image,
            f'image {seen.image!r} is turned by its EXIF orientation {turned} when it is loaded, and labels are not; '
            'save the image upright without EXIF, and look at the pair with volo-seg browse',
        )
    return seen


def _inspect_image(seen: Observation, options: InspectionOptions) -> tuple[Size | None, int]:
    """The size after EXIF rotation (None if unreadable) and the EXIF orientation (1: as stored)."""
    try:
        content = read_regular(seen.image)
        if options.digest:
            seen.digest = hashlib.blake2b(content, digest_size=16).digest()
        return _open_image(content, decode=options.decode)
    except OSError as error:
        _add(seen, 'unreadable', seen.image, _unreadable(seen.image, _reason(error)))
    except ImageError as error:
        reason = error.reason
        if error.kind == 'format':
            # OpenCV, which training uses, reads more formats
            size = _opencv_size(seen.image)
            if size is not None:
                return size, 1
            reason = 'it is damaged or not an image'
        sentence = _unreadable(seen.image, reason)
        if error.kind == 'size':
            sentence = f'image {seen.image!r} is not checked: {reason}'
        _add(seen, 'unreadable', seen.image, sentence)
    return None, 1


def _open_image(content: bytes, *, decode: bool) -> tuple[Size, int]:
    image = open_image(io.BytesIO(content), name='image')
    size, orientation = image.size, 1
    if image.format == 'JPEG':
        with pillow_errors('image has damaged EXIF data'):
            orientation = image.getexif().get(_ORIENTATION, 1)
            # decoding at one eighth of the size reads every byte in less time
            image.draft(None, (max(1, size[0] // 8), max(1, size[1] // 8)))
    if decode and image.format == 'PNG':
        check_data(image, name='image')  # the checksums of a PNG are verified without decompression
    elif decode:
        load_image(image, name='image')
    return (size[::-1] if orientation in (5, 6, 7, 8) else size), orientation


def _opencv_size(path: str) -> Size | None:
    try:
        image = cv2.imread(path) if Path(path).is_file() and Path(path).stat().st_size else None
    except cv2.error:
        return None
    return None if image is None else (image.shape[1], image.shape[0])


def _inspect_mask(seen: Observation, table: ColourTable | None) -> Size | None:
    path = str(seen.mask)
    try:
        content = read_regular(path)
        labels = decode_mask(content, where=path, table=table)
    except OSError as error:
        _add(seen, 'unreadable', path, _unreadable(path, _reason(error)))
        return None
    except ImageError as problem:
        _add(seen, problem.kind, path, str(problem))
        return None
    counts = np.bincount(labels.reshape(-1), minlength=256)
    seen.values = {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    if content[:2] == b'\xff\xd8':
        _add(
            seen,
            'lossy',
            path,
            f'label image {path!r} is a JPEG, which changes label values at every edge; write PNGs from the source',
        )
    return labels.shape[1], labels.shape[0]


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

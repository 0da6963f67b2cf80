"""What one pair of files holds: runs in worker processes, so it needs NumPy, Pillow and OpenCV alone."""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from volo_seg.datasets.masks import UNREADABLE, ColourTable, MaskProblem, decode_mask, short

Size = tuple[int, int]  # width, height in pixels
_ORIENTATION = 0x0112  # the EXIF tag


@dataclass(frozen=True)
class Look:
    """How closely to look: decode images to their last byte, hash them, or leave them alone and read labels only."""

    images: bool = True
    decode: bool = True
    digest: bool = True
    table: ColourTable | None = None


@dataclass
class Observation:
    """What a pair holds. ``values`` counts the pixels of each label value; ``problems`` are (kind, file, sentence)."""

    image: str
    mask: str | None
    digest: bytes = b''
    values: dict[int, int] = field(default_factory=dict)
    problems: list[tuple[str, str, str]] = field(default_factory=list)


def inspect_pair(pair: tuple[str, str | None], look: Look) -> Observation:
    """Read both files of ``pair`` once."""
    seen = Observation(*pair)
    size, turned = _inspect_image(seen, look) if look.images else (None, 1)
    if seen.mask is None:
        return seen
    mask_size = _inspect_mask(seen, look.table)
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


def _inspect_image(seen: Observation, look: Look) -> tuple[Size | None, int]:
    """Size as training sees it, and the EXIF orientation (1: as stored)."""
    try:
        content = Path(seen.image).read_bytes()
        if look.digest:
            seen.digest = hashlib.blake2b(content, digest_size=16).digest()
        return _open_image(content, decode=look.decode)
    except UNREADABLE as error:
        # OpenCV, which training uses, knows formats and sizes that Pillow does not
        unknown = isinstance(error, (UnidentifiedImageError, Image.DecompressionBombError))
        size = _opencv_size(seen.image) if unknown else None
        if size is None:
            _add(seen, 'unreadable', seen.image, _unreadable(seen.image, error))
        return size, 1


def _open_image(content: bytes, *, decode: bool) -> tuple[Size, int]:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # large images, odd metadata
        with Image.open(io.BytesIO(content)) as image:
            size, orientation = image.size, 1
            if image.format == 'JPEG':
                orientation = image.getexif().get(_ORIENTATION, 1)
                image.draft(
                    None, (max(1, size[0] // 8), max(1, size[1] // 8))
                )  # reads every byte, and skips most arithmetic
            if decode and image.format == 'PNG':
                image.verify()  # a PNG has checksums: no need to inflate it
            elif decode:
                image.load()
    turned = orientation in (5, 6, 7, 8)
    return (size[::-1] if turned else size), orientation


def _opencv_size(path: str) -> Size | None:
    try:
        image = cv2.imread(path) if Path(path).is_file() and Path(path).stat().st_size else None
    except cv2.error:
        return None
    return None if image is None else (image.shape[1], image.shape[0])


def _inspect_mask(seen: Observation, table: ColourTable | None) -> Size | None:
    path = str(seen.mask)
    try:
        content = Path(path).read_bytes()
        labels = decode_mask(content, where=path, table=table)
    except OSError as error:
        _add(seen, 'unreadable', path, _unreadable(path, error))
        return None
    except MaskProblem as problem:
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


def _unreadable(path: str, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        reason = 'the file does not exist'
    elif Path(path).is_file() and not Path(path).stat().st_size:
        reason = 'the file is empty'
    else:
        reason = getattr(error, 'strerror', None) or short(error)
    return (
        f'cannot read {path!r}: {reason}; training would stop there, or learn from what is left of it; '
        'copy the file again, or remove the pair'
    )


def _add(seen: Observation, kind: str, path: str, sentence: str) -> None:
    seen.problems.append((kind, path, sentence))


def _text(size: Size) -> str:
    return f'{size[0]}x{size[1]}'

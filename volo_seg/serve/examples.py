"""Images that the page offers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from volo_seg.errors import UserError
from volo_seg.image_files import SUFFIXES, open_image
from volo_seg.imageio import DEFAULT_READING, Reading, read_image
from volo_seg.io import find_files

from .limits import Limits
from .responses import jpeg

MOST = 24
THUMBNAIL = 240
"""Longest side in pixels."""


class Example(NamedTuple):
    """An image file and a small JPEG of it."""

    path: Path
    thumbnail: bytes


def find_examples(folder: Path, limits: Limits) -> list[Path]:
    """The first :data:`MOST` images in ``folder`` and below, by name; of their pixels only the header is read.

    Raises:
        UserError: There are none, or one is no image or above a limit.
    """
    paths = [path for path in find_files(folder, suffixes=SUFFIXES) if path.is_file()][:MOST]
    if not paths:
        raise UserError(f'--examples {str(folder)!r} holds no images')
    for path in paths:
        if path.stat().st_size > limits.max_bytes:
            raise UserError(f'example {str(path)!r} is larger than --max-upload; raise it, or remove the image')
        with path.open('rb') as file:
            open_image(file, name=f'example {str(path)!r}', max_pixels=limits.max_pixels)
    return paths


def open_examples(paths: Sequence[Path], limits: Limits, *, reading: Reading = DEFAULT_READING) -> list[Example]:
    """Read images and make their thumbnails.

    Raises:
        UserError: One cannot be read.
    """
    return [
        Example(p, jpeg(read_image(p, reading=reading, max_pixels=limits.max_pixels), longest=THUMBNAIL)) for p in paths
    ]

"""Read images, and write them whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np

from volo_seg.errors import UserError

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')


def read_image(path: str | Path) -> np.ndarray:
    """Read an image file as (H, W, 3) uint8, BGR, turned as its EXIF orientation says.

    Raises:
        UserError: The file is missing, empty, or not an image that OpenCV decodes.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f'image {str(path)!r} does not exist or is not a file')
    data = np.fromfile(path, dtype=np.uint8)
    if data.size == 0:
        raise UserError(f'image {str(path)!r} is empty (0 bytes)')
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise UserError(f'image {str(path)!r} does not decode: {error.err}') from error
    if image is None:
        raise UserError(f'image {str(path)!r} is damaged or not an image')
    return image


def write_image(path: Path, image: np.ndarray) -> None:
    """Write ``image`` (BGR or one channel) in the format of the suffix of ``path``, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _, data = cv2.imencode(path.suffix, image)
    part = path.with_name(f'.{path.name}.{os.getpid()}.part')
    try:
        part.write_bytes(data.tobytes())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)

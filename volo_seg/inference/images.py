"""Read images: one way in for files, arrays and PIL images, with one limit on their size."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin

from volo_seg.errors import UserError
from volo_seg.inference.files import write_image
from volo_seg.inference.headers import MODES, PNG, Header, is_whole_png, read_header

__all__ = [
    'MAX_PIXELS',
    'SUFFIXES',
    'Source',
    'check_size',
    'decode_image',
    'pixel_limit',
    'read_image',
    'write_image',
]

Source = str | os.PathLike[str] | np.ndarray | Image.Image
"""What can be segmented: a file, an array, a PIL image."""
SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
"""File names that are looked for in folders; a file given by name may end in anything."""
MAX_PIXELS = 2**27
"""Pixels (134 million, 11585 x 11585) above which no image is decoded; the environment variable
``VOLO_SEG_MAX_PIXELS`` sets another limit for the whole toolkit."""


def read_image(source: Source, *, max_pixels: int | None = None) -> np.ndarray:
    """Read an image as (H, W, 3) uint8, BGR, in memory of its own.

    Files are JPEG, PNG, BMP, TIFF or WebP by their content, not by their name. They are turned as EXIF says, and so
    are PIL images. Grey becomes three equal channels, a palette becomes colours, CMYK is converted, alpha is ignored
    (the colours below it count), of 16 bits the upper 8 are kept. Arrays are (H, W), (H, W, 1), (H, W, 3) in BGR or
    (H, W, 4) in BGRA, uint8 or uint16. Animations, and TIFF files with several pages, are refused; smaller copies and
    masks within a TIFF are no pages.

    Args:
        source: Path, array or PIL image.
        max_pixels: Limit in pixels, checked before decoding; by default :func:`pixel_limit`.

    Raises:
        UserError: Not there, no file, too large, damaged, cut off, or of a kind that is not named above.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, Image.Image):
        return _from_pil(source, max_pixels)
    if isinstance(source, (str, os.PathLike)):
        return _from_file(Path(source), max_pixels)
    raise UserError(f'an image is a path, an array or a PIL image, and this is of type {type(source).__name__}')


def decode_image(data: bytes, *, name: str, max_pixels: int | None = None) -> np.ndarray:
    """Like :func:`read_image`, for the content of a file; ``name`` is for messages."""
    header = _check_header(io.BytesIO(data), name, max_pixels, len(data))
    return _decode(data, header, name)


def pixel_limit() -> int:
    """The limit of the toolkit in pixels: ``VOLO_SEG_MAX_PIXELS`` of the environment, else ``MAX_PIXELS``.

    Raises:
        UserError: The variable holds no number above 0.
    """
    text = os.environ.get('VOLO_SEG_MAX_PIXELS', '').strip()
    if not text:
        return MAX_PIXELS
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f'VOLO_SEG_MAX_PIXELS={text!r} in the environment is no number of pixels')
    return int(text)


def check_size(width: int, height: int, *, name: str, max_pixels: int | None = None) -> None:
    """Refuse a picture without pixels, or with more than the limit.

    Raises:
        UserError: It is empty or too large.
    """
    limit = pixel_limit() if max_pixels is None else max_pixels
    if width < 1 or height < 1:
        raise UserError(f'{name} has no pixels ({width} x {height})')
    if width * height > limit:
        raise UserError(
            f'{name} has {width} x {height} pixels, more than the limit of {limit}; '
            'if you trust it, set VOLO_SEG_MAX_PIXELS in the environment, or segment it by volo-seg raster'
        )


def _from_file(path: Path, max_pixels: int | None) -> np.ndarray:
    name = str(path)
    try:
        # looked at before it is opened: opening a pipe would wait for somebody to write into it
        kind = path.stat()
        if stat.S_ISDIR(kind.st_mode):
            raise UserError(f'image {name!r} is a folder')
        if not stat.S_ISREG(kind.st_mode):
            raise UserError(f'image {name!r} is a pipe, socket or device, not a file')
        with open(path, 'rb') as file:
            header = _check_header(file, name, max_pixels, kind.st_size)
            file.seek(0)
            data = file.read()
    except FileNotFoundError as error:
        raise UserError(f'image {name!r} does not exist') from error
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = getattr(error, 'strerror', None) or error
        raise UserError(f'image {name!r} cannot be read ({reason})') from error
    return _decode(data, header, name)


def _check_header(file: BinaryIO, name: str, max_pixels: int | None, length: int) -> Header:
    if length == 0:
        raise UserError(f'image {name!r} is empty (0 bytes)')
    header = read_header(file, name=name)
    check_size(header.width, header.height, name=f'image {name!r}', max_pixels=max_pixels)
    if header.several:
        raise UserError(f'image {name!r} holds several pictures (an animation or pages); save them one by one')
    limit = pixel_limit() if max_pixels is None else max_pixels
    if length > 8 * limit + 2**26:  # uncompressed, 4 channels of 16 bits, and what is not pixels
        raise UserError(f'image {name!r} has {length} bytes, more than the pixels of an image can fill')
    return header


def _decode(data: bytes, header: Header, name: str) -> np.ndarray:
    if header.blended:
        return _pil_pixels(TiffImagePlugin.TiffImageFile(io.BytesIO(data)), name)
    if data.startswith(PNG) and not is_whole_png(data):
        raise UserError(f'image {name!r} is damaged or cut off')
    try:
        # 16 bits stay 16 here: OpenCV would round those of a TIFF, and cut those of a PNG
        image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error as error:
        raise UserError(f'image {name!r} does not decode: {error.err}') from error
    if image is None or image.dtype not in (np.uint8, np.uint16) or image.size != 3 * header.width * header.height:
        raise UserError(f'image {name!r} is damaged or cut off')
    return image if image.dtype == np.uint8 else _upper_bits(image)


def _upper_bits(image: np.ndarray) -> np.ndarray:
    return (image >> 8).astype(np.uint8)


def _from_pil(image: Image.Image, max_pixels: int | None) -> np.ndarray:
    name = str(getattr(image, 'filename', '') or 'PIL image')
    check_size(*image.size, name=f'image {name!r}', max_pixels=max_pixels)
    if image.mode not in MODES:
        raise UserError(f'image {name!r} has mode {image.mode!r}; convert it to RGB')
    return _pil_pixels(image, name)


def _pil_pixels(image: Image.Image, name: str) -> np.ndarray:
    try:
        turned = ImageOps.exif_transpose(image)
        if turned.mode.startswith('I;16'):
            return np.repeat(_upper_bits(np.asarray(turned, dtype=np.uint16))[..., None], 3, axis=2)
        pixels = np.asarray(turned.convert('RGB'))
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f'image {name!r} is damaged or cut off ({error})') from error
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)


def _from_array(array: np.ndarray, max_pixels: int | None) -> np.ndarray:
    if array.dtype not in (np.uint8, np.uint16):
        fix = 'scale it to 0..255 and convert it with astype(np.uint8)'
        raise UserError(f'image array is of {array.dtype}, and must be of uint8 or uint16; {fix}')
    channels = 1 if array.ndim == 2 else array.shape[-1] if array.ndim == 3 else 0
    if channels not in (1, 3, 4):
        planes_first = array.ndim == 3 and array.shape[0] in (1, 3, 4)
        fix = 'transpose(1, 2, 0) puts its channels last' if planes_first else 'give several images as a list'
        raise UserError(f'image array has shape {array.shape}, and must be (H, W), (H, W, 3) or (H, W, 4); {fix}')
    check_size(array.shape[1], array.shape[0], name='image array', max_pixels=max_pixels)
    if array.dtype == np.uint16:
        array = _upper_bits(array)
    if channels == 1:
        return np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)
    return np.array(array[..., :3], order='C')

"""Read and write image files: one decoder, one rule for values of more than 8 bits.

Files are opened and checked by :mod:`volo_seg.image_files`. Pillow decodes TIFF; OpenCV decodes the other formats, and
TIFF of 16 bits in colour, of which Pillow keeps 8.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageFile, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from volo_seg.errors import UserError
from volo_seg.image_files import (
    ImageError,
    check_data,
    check_size,
    has_several_images,
    image_error,
    load_image,
    open_image,
    pillow_errors,
    pixel_limit,
    stored_bits,
)
from volo_seg.io import atomic_write, check_regular

Source = str | os.PathLike[str] | np.ndarray | Image.Image
"""What can be segmented: a file, an array, a PIL image."""
Range = tuple[float, float]
"""(black, white): the values that become 0 and 255."""
MODES = ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'RGBX', 'CMYK', 'YCbCr', 'I;16', 'I;16B', 'I;16L', 'I;16N')
"""Pixel modes of Pillow that are accepted: 1, 8 or 16 bits per channel."""
RANGE_MODES = ('I', 'F')
"""Pixel modes of Pillow that are accepted with a range: one channel of int16, int32 or float32."""
COLOR_TYPES = ('color', 'color_ignore_orientation')
"""``color_type`` of MMCV's ``LoadImageFromFile`` that gives three channels."""
BACKENDS = ('cv2', 'pillow', 'turbojpeg')
"""``imdecode_backend`` of MMCV's ``LoadImageFromFile`` that can be predicted; tifffile may read other files."""
RANGE_ADVICE = 'say which values are black and white by range=(black, white) of LoadImageFromFile in the config'


@dataclass(frozen=True)
class Reading:
    """How a config reads image files: by the rules of :func:`read_image`, or as MMCV's loader does.

    Attributes:
        value_range: Range of values of more than 8 bits; see :func:`to_8_bits`.
        color_type: ``color_type`` of MMCV's ``LoadImageFromFile``, if files are read as it reads them; else None.
        backend: ``imdecode_backend`` of MMCV's ``LoadImageFromFile``.
    """

    value_range: Range | None = None
    color_type: str | None = None
    backend: str = 'cv2'


DEFAULT_READING = Reading()


def read_image(source: Source, *, reading: Reading = DEFAULT_READING, max_pixels: int | None = None) -> np.ndarray:
    """Read an image as (H, W, 3) uint8, BGR, in memory of its own.

    Files and PIL images are rotated by their EXIF orientation. Grey becomes three equal channels, a palette
    becomes colours, CMYK is converted, alpha is ignored (the colours below it count), and values of more than 8 bits
    become 8 by :func:`to_8_bits`. Arrays are (H, W), (H, W, 1), (H, W, 3) in BGR or (H, W, 4) in BGRA, uint8 or uint16.

    Args:
        source: Path, array or PIL image.
        reading: How the config of the model reads files.
        max_pixels: Limit in pixels, checked before decoding; by default :func:`pixel_limit`.

    Raises:
        UserError: ``source`` is not a file, is too large or damaged, or holds several images or another format.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, reading, max_pixels)
    if isinstance(source, Image.Image):
        return _from_pil(source, reading, max_pixels)
    if isinstance(source, (str, os.PathLike)):
        return _from_file(Path(source), reading, max_pixels)
    raise UserError(
        f'an image is a path, an array (H, W, 3) in BGR or a PIL image, and this is of type {type(source).__name__}; '
        'convert it to one of them'
    )


def decode_image(
    data: bytes, *, name: str, reading: Reading = DEFAULT_READING, max_pixels: int | None = None
) -> np.ndarray:
    """Like :func:`read_image`, for the content of a file; ``name`` is for messages."""
    name = f'image {name!r}'
    image = open_image(io.BytesIO(data), name=name, max_pixels=max_pixels)
    check_image(image, len(data), name=name, reading=reading, max_pixels=max_pixels)
    bits = stored_bits(image)
    check_data(image, name=name)
    if reading.color_type is not None:
        return _decode_as_mmcv(data, image, reading, name)
    return to_8_bits(decode_values(data, image, name=name), reading.value_range, name=name, bits=bits)


def decode_values(data: bytes, image: ImageFile.ImageFile, *, name: str) -> np.ndarray:
    """Decode an image that was checked by :func:`check_image` and :func:`check_data`, upright, as BGR.

    Returns:
        (H, W, 3) of the type in the file: uint8, uint16, int32 or float32.

    Raises:
        ImageError: The file is damaged or cut off.
    """
    is_tiff = isinstance(image, TiffImageFile)
    if is_tiff:
        values = _pil_values(image, name)
        if not (image.mode.startswith('RGB') and stored_bits(image) == 16):
            return values
    # TIFF: with alpha, OpenCV multiplies colours by it, except as they are stored
    flags = cv2.IMREAD_UNCHANGED if is_tiff else cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH
    pixels = _imdecode(data, flags, name)
    if is_tiff and pixels is None:  # Pillow has decoded it
        raise image_error(
            name,
            f'has 16 bits a channel and compression {image.info.get("compression")!r}; compress it with deflate',
            kind='mode',
        )
    if is_tiff and pixels is not None and pixels.ndim == 3:
        pixels = np.ascontiguousarray(pixels[..., :3])
    if pixels is None or pixels.dtype not in (np.uint8, np.uint16) or pixels.size != 3 * image.width * image.height:
        raise image_error(name, 'is damaged or cut off')
    return pixels


def to_8_bits(values: np.ndarray, value_range: Range | None, *, name: str, bits: int = 16) -> np.ndarray:
    """Convert pixel values to uint8, by the one rule of all commands.

    8-bit values are kept. With a range, black becomes 0 and white 255, and other values are in proportion, rounded and
    clipped; NaN becomes 0. Without one, unsigned values keep their upper 8 bits.

    Args:
        values: Array of any shape, of integers or floating-point numbers.
        value_range: (black, white), or None.
        name: What messages call it.
        bits: Number of bits that values of uint16 have in the file.

    Raises:
        ImageError: The values are of another type, and there is no range.
    """
    if values.dtype == np.uint8:
        return values
    if value_range is not None:
        return scale_to_range(values, value_range)
    if values.dtype == np.uint16:
        return (values >> (bits - 8)).astype(np.uint8)
    raise image_error(name, f'has values of {values.dtype}; {RANGE_ADVICE}', kind='mode')


def scale_to_range(values: np.ndarray, value_range: Range) -> np.ndarray:
    """Scale ``values`` so that ``value_range`` becomes 0 to 255; uint8, rounded and clipped, NaN is 0."""
    black, white = value_range
    # float32 does not hold the integers of 32 bits
    kind = np.float32 if values.dtype.itemsize < 4 or values.dtype == np.float32 else np.float64
    scaled = (values.astype(kind) - kind(black)) * kind(255 / (white - black))
    return np.rint(np.nan_to_num(scaled, copy=False, nan=0, posinf=255, neginf=0).clip(0, 255)).astype(np.uint8)


def check_range(value_range: Any) -> Range | None:
    """Return ``value_range`` as (black, white); None is returned as it is.

    Raises:
        UserError: It is not two finite numbers, or black is not below white.
    """
    if value_range is None:
        return None
    valid = isinstance(value_range, (list, tuple)) and len(value_range) == 2
    numbers = valid and all(isinstance(v, Real) and not isinstance(v, bool) for v in value_range)
    if not numbers or not (np.isfinite(value_range).all() and value_range[0] < value_range[1]):
        text = ' '.join(map(str, value_range)) if valid else repr(value_range)
        raise UserError(f'range {text}: give two numbers, the first (black) below the second (white)')
    return value_range[0], value_range[1]


def check_image(
    image: ImageFile.ImageFile,
    length: int,
    *,
    name: str,
    reading: Reading = DEFAULT_READING,
    max_pixels: int | None = None,
) -> None:
    """Check that an image opened by :func:`open_image` is a single one, of a mode that ``reading`` accepts.

    Read as MMCV does, an image of any mode is decoded, and the first of several.

    Args:
        image: The image.
        length: Bytes of the file.
        name: What messages call it.
        reading: How the file is to be read.
        max_pixels: As in :func:`read_image`.

    Raises:
        ImageError: It is of another mode, holds several images, or the file is too long for its pixels.
    """
    limit = pixel_limit() if max_pixels is None else max_pixels
    as_mmcv = reading.color_type is not None
    if not as_mmcv and image.mode not in MODES and not (image.mode in RANGE_MODES and reading.value_range is not None):
        advice = RANGE_ADVICE if image.mode in RANGE_MODES else 'convert it to 8 or 16 bits a channel, grey or RGB'
        raise image_error(name, f'has pixels of mode {image.mode!r}; {advice}', kind='mode')
    if not as_mmcv and has_several_images(image, name=name):
        raise image_error(name, 'holds several pictures (an animation or pages); save them one by one', kind='mode')
    if length > 8 * limit + 2**26:  # 4 uncompressed channels of 16 bits, and metadata
        raise image_error(name, f'has {length} bytes, more than the pixels of an image can have')


def write_image(path: str | Path, image: np.ndarray) -> None:
    """Write ``image`` (BGR or one channel) atomically, in the format of the suffix of ``path``.

    Raises:
        UserError: The format is unknown or cannot hold the image, or ``path`` cannot be written.
    """
    path = Path(path)
    try:
        done, data = cv2.imencode(path.suffix, image)
    except cv2.error as error:
        raise UserError(f'image {str(path)!r} cannot be encoded ({error.err}); end its name in .png') from error
    if not done:
        raise UserError(f'image {str(path)!r} of {image.shape} does not fit into this format; end its name in .png')
    atomic_write(path, data.tobytes())


def _from_file(path: Path, reading: Reading, max_pixels: int | None) -> np.ndarray:
    name = f'image {str(path)!r}'
    try:
        size = check_regular(path).st_size
        with open(path, 'rb') as file:
            image = open_image(file, name=name, max_pixels=max_pixels)
            check_image(image, size, name=name, reading=reading, max_pixels=max_pixels)
            file.seek(0)
            data = file.read()
    except FileNotFoundError as error:
        raise UserError(f'{name} does not exist') from error
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = getattr(error, 'strerror', None) or error
        raise UserError(f'{name} cannot be read ({reason})') from error
    return decode_image(data, name=str(path), reading=reading, max_pixels=max_pixels)


def _imdecode(data: bytes, flags: int, name: str) -> np.ndarray | None:
    try:
        return cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags)
    except cv2.error as error:
        raise image_error(name, f'does not decode ({error.err})') from error


def _decode_as_mmcv(data: bytes, image: ImageFile.ImageFile, reading: Reading, name: str) -> np.ndarray:
    """Decode as MMCV's ``LoadImageFromFile`` with the arguments of ``reading``; the file was checked."""
    if isinstance(image, TiffImageFile):  # OpenCV decodes a damaged TIFF as far as it goes
        load_image(image, name=name)
    if reading.backend == 'cv2':
        ignore = cv2.IMREAD_IGNORE_ORIENTATION if reading.color_type == 'color_ignore_orientation' else 0
        pixels = _imdecode(data, cv2.IMREAD_COLOR | ignore, name)
    else:
        with pillow_errors(f'{name} does not decode'):
            import mmcv

            pixels = mmcv.imfrombytes(data, flag=reading.color_type, backend=reading.backend)
    if pixels is None or pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        found = 'nothing' if pixels is None else f'{pixels.dtype} of shape {pixels.shape}'
        reason = (
            f"gives {found} with MMCV's LoadImageFromFile (imdecode_backend={reading.backend!r}), not (H, W, 3) of "
            "uint8; convert it to 8 bits, grey or RGB, or read it with dict(type='LoadImageFromFile', "
            "_scope_='volo_seg')"
        )
        raise image_error(name, reason, kind='mode')
    return pixels


def _from_pil(image: Image.Image, reading: Reading, max_pixels: int | None) -> np.ndarray:
    name = f'image {str(getattr(image, "filename", "") or "PIL image")!r}'
    check_size(*image.size, name=name, max_pixels=max_pixels)
    if image.mode not in MODES and not (image.mode in RANGE_MODES and reading.value_range is not None):
        raise ImageError(f'{name} has mode {image.mode!r}; convert it to RGB', kind='mode')
    return to_8_bits(_pil_values(image, name), reading.value_range, name=name)


def _pil_values(image: Image.Image, name: str) -> np.ndarray:
    """The pixels of a PIL image, upright, (H, W, 3) BGR: uint8, or one channel of more bits three times."""
    with pillow_errors(f'{name} is damaged or cut off'):
        turned = ImageOps.exif_transpose(image)
        if turned.mode in RANGE_MODES or turned.mode.startswith('I;16'):
            values = np.asarray(turned)
            values = values.astype(values.dtype.newbyteorder('='), copy=False)
            return np.repeat(values[..., None], 3, axis=2)
        pixels = np.asarray(turned.convert('RGB'))
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)


def _from_array(array: np.ndarray, reading: Reading, max_pixels: int | None) -> np.ndarray:
    if array.dtype not in (np.uint8, np.uint16):
        fix = 'scale it to 0..255 and convert it with astype(np.uint8)'
        raise UserError(f'image array is of {array.dtype}, and must be of uint8 or uint16; {fix}')
    channels = 1 if array.ndim == 2 else array.shape[-1] if array.ndim == 3 else 0
    if channels not in (1, 3, 4):
        planes_first = array.ndim == 3 and array.shape[0] in (1, 3, 4)
        fix = 'transpose(1, 2, 0) puts its channels last' if planes_first else 'give several images as a list'
        raise UserError(f'image array has shape {array.shape}, and must be (H, W), (H, W, 3) or (H, W, 4); {fix}')
    check_size(array.shape[1], array.shape[0], name='image array', max_pixels=max_pixels)
    array = to_8_bits(array, reading.value_range, name='image array')
    if channels == 1:
        return np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)
    return np.array(array[..., :3], order='C')

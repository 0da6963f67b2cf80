"""Read and write image files: one decoder, one rule for values of more than 8 bits, one limit on the number of pixels.

Formats are JPEG, PNG, BMP, TIFF and WebP, recognised by content. Pillow reads the header and decodes TIFF; OpenCV
decodes the other formats, and TIFF of 16 bits in colour, of which Pillow keeps 8. A file whose damage the format
reveals is refused: a missing end, a checksum that does not match (PNG, TIFF with deflate), compressed data that does
not decode. Changed bytes that still decode, as in uncompressed pixels or in JPEG, cannot be noticed.
"""

from __future__ import annotations

import contextlib
import io
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, BinaryIO, cast

import cv2
import numpy as np
from PIL import BmpImagePlugin, Image, ImageFile, ImageOps, JpegImagePlugin, PngImagePlugin, WebPImagePlugin
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

from volo_seg.errors import UserError
from volo_seg.io import atomic_write, check_regular

Source = str | os.PathLike[str] | np.ndarray | Image.Image
"""What can be segmented: a file, an array, a PIL image."""
SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
"""Suffixes of the files that are taken from a folder; a file given by name may have any suffix."""
MAX_PIXELS = 2**27
"""Default limit: 134 million pixels (11585 x 11585). ``VOLO_SEG_MAX_PIXELS`` in the environment sets another one."""
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
ORIENTATION = 0x0112
"""Tag of the orientation in EXIF and TIFF; 1, or none, means as stored."""
RANGE_ADVICE = 'say which values are black and white by range=(black, white) of LoadImageFromFile in the config'
_MAX_SUBIMAGES = 64  # reduced copies and masks in a TIFF; a file with more counts as one with several pages
_BLOCK = 2**20  # bytes read at a time
_DEFLATE = (8, 32946)  # compression tags of a TIFF
_SAMPLE_FORMATS = {1: 'unsigned', 2: 'signed', 3: 'floating-point', 5: 'complex', 6: 'complex'}
# the classes are called directly: Image.open has a limit on pixels of its own, and opens some JPEG files as MPO
_PLUGINS: tuple[tuple[bytes, type[ImageFile.ImageFile]], ...] = (
    (b'\xff\xd8\xff', JpegImagePlugin.JpegImageFile),
    (b'\x89PNG\r\n\x1a\n', PngImagePlugin.PngImageFile),
    (b'BM', BmpImagePlugin.BmpImageFile),
    *((magic, TiffImageFile) for magic in (b'II*\0', b'MM\0*', b'II+\0')),
    (b'RIFF', WebPImagePlugin.WebPImageFile),
)
_OTHER_FORMATS = (
    (b'GIF8', 'a GIF'),
    (b'%PDF', 'a PDF'),
    (b'8BPS', 'a Photoshop file'),
    (b'\0\0\0\x0cjP', 'a JPEG 2000 file'),
    (b'\xff\x4f\xff\x51', 'a JPEG 2000 file'),
    (b'MM\0+', 'a BigTIFF in big-endian order'),
    (b'PK', 'an archive'),
    (b'\x1f\x8b', 'an archive'),
    (b'<', 'a text file (SVG, XML or a web page)'),
    (b'version https://git-lfs', 'only a Git LFS pointer'),
)


class ImageError(UserError):
    """An image or label file that cannot be used.

    Attributes:
        kind: ``'format'`` (not one of the formats), ``'size'``, ``'mode'`` (pixels of a kind that is not accepted),
            ``'unreadable'``; for labels also ``'16-bit'`` and ``'colour'``.
        reason: What is wrong, without the name of the file.
    """

    def __init__(self, message: str, *, kind: str = 'unreadable', reason: str = '') -> None:
        super().__init__(message)
        self.kind = kind
        self.reason = reason or message


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
        reason = f'has 16 bits a channel and compression {image.info.get("compression")!r}; compress it with deflate'
        raise ImageError(f'{name} {reason}', kind='mode', reason=f'it {reason}')
    if is_tiff and pixels is not None and pixels.ndim == 3:
        pixels = np.ascontiguousarray(pixels[..., :3])
    if pixels is None or pixels.dtype not in (np.uint8, np.uint16) or pixels.size != 3 * image.width * image.height:
        raise ImageError(f'{name} is damaged or cut off', reason='it is damaged or cut off')
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
    reason = f'has values of {values.dtype}; {RANGE_ADVICE}'
    raise ImageError(f'{name} {reason}', kind='mode', reason=f'it {reason}')


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


def stored_bits(image: ImageFile.ImageFile) -> int:
    """Bits per channel in the file of an image that :func:`open_image` opened and that is not decoded."""
    if isinstance(image, TiffImageFile):
        return max(image.tag_v2.get(258, (1,)))
    # Pillow has no mode for colours of 16 bits; its decoder of PNG gets the name of what the file has
    deep = isinstance(image, PngImagePlugin.PngImageFile) and any('16' in str(tile[3]) for tile in image.tile)
    return 16 if deep else 8


def stored_orientation(image: ImageFile.ImageFile, data: bytes, *, name: str) -> int:
    """The orientation, 1 to 8, of an image opened by :func:`open_image`; ``data`` is the content of its file."""
    with pillow_errors(f'{name} has damaged EXIF data'):
        if isinstance(image, TiffImageFile):
            orientation = image.tag_v2.get(ORIENTATION, 1)
        else:
            if isinstance(image, PngImagePlugin.PngImageFile) and 'exif' not in image.info and b'eXIf' in data:
                image = PngImagePlugin.PngImageFile(io.BytesIO(data))
                image.load()  # EXIF may stand behind the pixels
            exif = Image.Exif()
            exif.load(image.info.get('exif', b''))
            orientation = exif.get(ORIENTATION, 1)
    return orientation if orientation in range(1, 9) else 1


def open_image(file: BinaryIO, *, name: str, max_pixels: int | None = None) -> ImageFile.ImageFile:
    """Open the image file ``file`` with Pillow without decoding it, and check its size.

    Args:
        file: Binary file, at its start.
        name: What messages call it, such as ``"image 'a.png'"``.
        max_pixels: As in :func:`read_image`.

    Raises:
        ImageError: The file is empty, of another format, has a damaged header, or too many pixels or none.
    """
    start = file.read(32)
    file.seek(0)
    if not start:
        raise ImageError(f'{name} is empty (0 bytes)', reason='the file is empty')
    plugin = next((plugin for magic, plugin in _PLUGINS if start.startswith(magic)), None)
    if plugin is None or (start[:4] == b'RIFF' and start[8:12] != b'WEBP'):
        reason = f'is {_other_format(start)}; convert it to JPEG, PNG, TIFF, WebP or BMP'
        raise ImageError(f'{name} {reason}', kind='format', reason=f'it {reason}')
    with pillow_errors(f'{name} has a damaged header'):
        if plugin is TiffImageFile:
            _check_tiff_pixels(file, name)
        if plugin is WebPImagePlugin.WebPImageFile:
            # Pillow allocates the whole canvas of a WebP when it opens the file
            check_size(*_webp_size(start), name=name, max_pixels=max_pixels)
        image = plugin(file)
    check_size(*image.size, name=name, max_pixels=max_pixels)
    return image


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
        reason = f'has pixels of mode {image.mode!r}; {advice}'
        raise ImageError(f'{name} {reason}', kind='mode', reason=f'it {reason}')
    if not as_mmcv and has_several_images(image, name=name):
        reason = 'holds several pictures (an animation or pages); save them one by one'
        raise ImageError(f'{name} {reason}', reason=f'it {reason}')
    if length > 8 * limit + 2**26:  # 4 uncompressed channels of 16 bits, and metadata
        reason = f'has {length} bytes, more than the pixels of an image can have'
        raise ImageError(f'{name} {reason}', reason=f'it {reason}')


def check_data(image: ImageFile.ImageFile, *, name: str) -> None:
    """Check what the format of an image opened by :func:`open_image` lets check without decoding pixels.

    PNG: the checksum of every chunk. JPEG: the end marker. TIFF: that all strips or tiles are there, and the checksum
    of those compressed with deflate.

    Raises:
        ImageError: The file is damaged or cut off.
    """
    with pillow_errors(f'{name} is damaged or cut off'):
        file = cast(BinaryIO, image.fp)
        if isinstance(image, PngImagePlugin.PngImageFile):
            image.verify()
        elif isinstance(image, JpegImagePlugin.JpegImageFile):
            # Pillow stops at the start of the compressed data, in which 0xFF is followed by 0 or a restart marker
            start = file.tell()
            file.seek(max(start, file.seek(0, os.SEEK_END) - 2))
            if file.read() == b'\xff\xd9':
                return
            file.seek(start)
            last = b''
            while b'\xff\xd9' not in last:
                block = file.read(_BLOCK)
                if not block:
                    raise OSError('image file is truncated: it has no end marker')
                last = last[-1:] + block
        elif isinstance(image, TiffImageFile):
            _check_tiff(image.tag_v2, file)


def check_raster(path: Path, *, name: str) -> None:
    """Check what GDAL leaves unchecked in a file of any size: PNG and JPEG as :func:`check_data`, TIFF with deflate.

    Reads the whole file. Files of other formats are not opened.

    Raises:
        ImageError: The file is damaged or cut off.
    """
    with path.open('rb') as file:
        start = file.read(16)
        plugin = next((plugin for magic, plugin in _PLUGINS if start.startswith(magic)), None)
        with pillow_errors(f'{name} is damaged or cut off'):
            if plugin is TiffImageFile:
                # only the tags: Pillow knows fewer kinds of pixels than GDAL
                tags = ImageFileDirectory_v2(start if start[2] == 43 else start[:8])
                file.seek(tags.next)
                tags.load(file)
                if tags.get(259) in _DEFLATE:
                    _check_tiff(tags, file)
            elif plugin in (PngImagePlugin.PngImageFile, JpegImagePlugin.JpegImageFile):
                file.seek(0)
                check_data(plugin(file), name=name)


def load_image(image: ImageFile.ImageFile, *, name: str) -> None:
    """Decode an image opened by :func:`open_image` with Pillow, in place.

    Raises:
        ImageError: The file is damaged or cut off.
    """
    if not isinstance(image, PngImagePlugin.PngImageFile):  # its pixels have a checksum that Pillow compares
        check_data(image, name=name)
    with pillow_errors(f'{name} is damaged or cut off'):
        image.load()


def has_several_images(image: ImageFile.ImageFile, *, name: str) -> bool:
    """Whether a file opened by :func:`open_image` holds several images: an animation, or a TIFF with pages.

    Reduced copies of the first page of a TIFF, and masks, do not count.

    Raises:
        ImageError: The header of a further page is damaged.
    """
    if not isinstance(image, TiffImageFile):
        return getattr(image, 'n_frames', 1) > 1
    with pillow_errors(f'{name} has a damaged header'):
        try:
            for page in range(1, _MAX_SUBIMAGES):
                image.seek(page)
                if not image.tag_v2.get(254, 0) & 0b101:  # NewSubfileType: neither a reduced copy nor a mask
                    return True
            return True
        except EOFError:
            return False
        finally:
            image.seek(0)


def pixel_limit() -> int:
    """The limit in pixels: ``VOLO_SEG_MAX_PIXELS`` of the environment, else ``MAX_PIXELS``.

    Raises:
        UserError: The variable is not a whole number above 0.
    """
    text = os.environ.get('VOLO_SEG_MAX_PIXELS', '').strip()
    if not text:
        return MAX_PIXELS
    if not text.isdecimal() or int(text) < 1:
        raise UserError(
            f'VOLO_SEG_MAX_PIXELS={text!r} in the environment is not a number of pixels; set an integer above 0'
        )
    return int(text)


def check_size(width: int, height: int, *, name: str, max_pixels: int | None = None) -> None:
    """Check that an image has pixels, and not more than the limit.

    Raises:
        ImageError: It is empty or too large.
    """
    limit = pixel_limit() if max_pixels is None else max_pixels
    reason = ''
    if width < 1 or height < 1:
        reason = f'has no pixels ({width} x {height})'
    elif width * height > limit:
        reason = (
            f'has {width} x {height} pixels, more than the limit of {limit}; '
            'if you trust it, set VOLO_SEG_MAX_PIXELS in the environment, or segment it by volo-seg raster'
        )
    if reason:
        raise ImageError(f'{name} {reason}', kind='size', reason=f'it {reason}')


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


def _webp_size(start: bytes) -> tuple[int, int]:
    """Width and height of a WebP file from its first 32 bytes. Source: RFC 9649, sections 2.5 to 2.7 and 3.4."""
    kind, body = start[12:16], start[20:]
    if kind == b'VP8X':
        return 1 + int.from_bytes(body[4:7], 'little'), 1 + int.from_bytes(body[7:10], 'little')
    if kind == b'VP8L' and body[0] == 0x2F:
        bits = int.from_bytes(body[1:5], 'little')
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b'VP8 ' and body[3:6] == b'\x9d\x01\x2a':
        return int.from_bytes(body[6:8], 'little') & 0x3FFF, int.from_bytes(body[8:10], 'little') & 0x3FFF
    raise ValueError('it holds no WebP image')


def _check_tiff(tags: ImageFileDirectory_v2, file: BinaryIO) -> None:
    width, height, compression = tags[256], tags[257], tags.get(259, 1)
    tiled = 324 in tags
    offsets, lengths = (tags[324], tags[325]) if tiled else (tags[273], tags.get(279, ()))
    cell_width, cell_height = (tags[322], tags[323]) if tiled else (width, min(height, tags.get(278, height)))
    across, down = -(-width // cell_width), -(-height // cell_height)
    if across * cell_width * down * cell_height > 4 * width * height + 2**24:
        # libtiff allocates a whole tile, however small the image is
        raise OSError(f'its tiles of {cell_width} x {cell_height} pixels are too large for the image')
    count = across * down * (tags.get(277, 1) if tags.get(284, 1) == 2 else 1)
    if len(offsets) < count:
        raise OSError(f'it has {len(offsets)} of {count} strips or tiles')
    if tags.get(262) == 6 and compression != 7:
        # for such files, libtiff returns zeros in place of damaged data
        raise OSError('it stores colours as YCbCr without JPEG; convert it to RGB')
    if compression in _DEFLATE:
        # generous: bits are counted as bytes
        limit = cell_width * cell_height * tags.get(277, 1) * max(tags.get(258, (1,)))
        for offset, length in list(zip(offsets, lengths, strict=True))[:count]:
            if length:  # none: GDAL leaves out empty tiles
                _check_deflate(file, offset, length, limit=limit)


def _check_deflate(file: BinaryIO, offset: int, length: int, *, limit: int) -> None:
    """Inflate ``length`` bytes, up to ``limit`` bytes of pixels, for the checksum at the end.

    libtiff stops as soon as it has all pixels, and then does not compare the checksum.
    """
    file.seek(offset)
    inflate, total = zlib.decompressobj(), 0
    while length > 0 and not inflate.eof:
        data = file.read(min(length, _BLOCK))
        length -= _BLOCK
        if not data:
            break
        while data and not inflate.eof:
            total += len(inflate.decompress(data, 16 * _BLOCK))
            data = inflate.unconsumed_tail
            if total > limit:
                raise OSError('compressed data holds more than its pixels')
    inflate.flush()
    if not inflate.eof:
        raise OSError('compressed data is cut off')


def _imdecode(data: bytes, flags: int, name: str) -> np.ndarray | None:
    try:
        return cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags)
    except cv2.error as error:
        raise ImageError(f'{name} does not decode: {error.err}', reason=f'it does not decode ({error.err})') from error


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
        raise ImageError(f'{name} {reason}', kind='mode', reason=f'it {reason}')
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


def _check_tiff_pixels(file: BinaryIO, name: str) -> None:
    """Refuse a TIFF whose pixels Pillow does not know, or mistakes for others.

    Raises:
        ImageError: Its pixels are of such a kind.
    """
    file.seek(0)
    start = file.read(16)
    tags = ImageFileDirectory_v2(start if start[2] == 43 else start[:8])
    file.seek(tags.next)
    tags.load(file)
    channels, bits, kind = tags.get(277, 1), max(tags.get(258, (1,))), tags.get(339, (1,))[0]
    photometric, planar = tags.get(262, 1), tags.get(284, 1) == 2
    file.seek(0)
    try:
        TiffImageFile(file)
        # Pillow takes signed 8 bits for unsigned ones, and does not decode deep channels that are stored one by one
        known = (kind, bits) != (2, 8) and not (planar and bits > 8)
    except (SyntaxError, IndexError):
        known = not (0 < bits <= 64 and kind in _SAMPLE_FORMATS)  # then the header is damaged
    file.seek(0)
    if not known:
        traits = [_SAMPLE_FORMATS[kind]]
        traits += ['not marked as RGB'] if channels > 2 and photometric != 2 else []
        traits += ['one channel after another'] if planar else []
        reason = (
            f'has {channels} {"channel" if channels == 1 else "channels"} of {bits} bits ({", ".join(traits)}); '
            'convert it to 8 or 16 bits a channel, grey or RGB, or segment it by volo-seg raster'
        )
        raise ImageError(f'{name} {reason}', kind='mode', reason=f'it {reason}')


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


@contextlib.contextmanager
def pillow_errors(problem: str) -> Iterator[None]:
    """Convert exceptions of Pillow, which are of any class for damaged data, to ImageError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = ' '.join(str(error).split()) or type(error).__name__
        raise ImageError(f'{problem} ({reason})', reason=reason) from error


def _other_format(start: bytes) -> str:
    if start[4:8] == b'ftyp':
        return 'a HEIC, AVIF or video file'
    return next((kind for magic, kind in _OTHER_FORMATS if start.startswith(magic)), 'not an image of a known format')

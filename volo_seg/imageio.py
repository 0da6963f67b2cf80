"""Read and write image files: one decoder and one limit on the number of pixels for the whole toolkit.

Formats are JPEG, PNG, BMP, TIFF and WebP, recognised by content. Pillow reads the header and decodes TIFF; OpenCV
decodes the other formats. A file whose damage the format reveals is refused: a missing end, a checksum that does not
match (PNG, TIFF with deflate), compressed data that does not decode. Changed bytes that still decode, as in
uncompressed pixels or in JPEG, cannot be noticed.
"""

from __future__ import annotations

import contextlib
import io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

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
MODES = ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'RGBX', 'CMYK', 'YCbCr', 'I;16', 'I;16B', 'I;16L', 'I;16N')
"""Pixel modes of Pillow that are accepted: 1, 8 or 16 bits per channel."""
_MAX_SUBIMAGES = 64  # reduced copies and masks in a TIFF; a file with more counts as one with several pages
_BLOCK = 2**20  # bytes read at a time
_DEFLATE = (8, 32946)  # compression tags of a TIFF
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


def read_image(source: Source, *, max_pixels: int | None = None) -> np.ndarray:
    """Read an image as (H, W, 3) uint8, BGR, in memory of its own.

    Files and PIL images are rotated by their EXIF orientation. Grey becomes three equal channels, a palette
    becomes colours, CMYK is converted, alpha is ignored (the colours below it count), of 16 bits the upper 8 are kept.
    Arrays are (H, W), (H, W, 1), (H, W, 3) in BGR or (H, W, 4) in BGRA, uint8 or uint16.

    Args:
        source: Path, array or PIL image.
        max_pixels: Limit in pixels, checked before decoding; by default :func:`pixel_limit`.

    Raises:
        UserError: ``source`` is not a file, is too large or damaged, or holds several images or another format.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, Image.Image):
        return _from_pil(source, max_pixels)
    if isinstance(source, (str, os.PathLike)):
        return _from_file(Path(source), max_pixels)
    raise UserError(
        f'an image is a path, an array (H, W, 3) in BGR or a PIL image, and this is of type {type(source).__name__}; '
        'convert it to one of them'
    )


def decode_image(data: bytes, *, name: str, max_pixels: int | None = None) -> np.ndarray:
    """Like :func:`read_image`, for the content of a file; ``name`` is for messages."""
    name = f'image {name!r}'
    image = open_image(io.BytesIO(data), name=name, max_pixels=max_pixels)
    _check_image(image, len(data), name, max_pixels)
    check_data(image, name=name)
    if isinstance(image, TiffImageFile):
        return _pil_pixels(image, name)
    try:
        # 16 bits stay 16 here: OpenCV would cut those of a PNG
        pixels = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error as error:
        raise ImageError(f'{name} does not decode: {error.err}', reason=f'it does not decode ({error.err})') from error
    if pixels is None or pixels.dtype not in (np.uint8, np.uint16) or pixels.size != 3 * image.width * image.height:
        raise ImageError(f'{name} is damaged or cut off', reason='it is damaged or cut off')
    return pixels if pixels.dtype == np.uint8 else _upper_bits(pixels)


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
        raise ImageError(f'{name} {reason}', kind='format', reason=reason)
    with pillow_errors(f'{name} has a damaged header'):
        if plugin is WebPImagePlugin.WebPImageFile:
            # Pillow allocates the whole canvas of a WebP when it opens the file
            check_size(*_webp_size(start), name=name, max_pixels=max_pixels)
        image = plugin(file)
    check_size(*image.size, name=name, max_pixels=max_pixels)
    return image


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


def _from_file(path: Path, max_pixels: int | None) -> np.ndarray:
    name = f'image {str(path)!r}'
    try:
        size = check_regular(path).st_size
        with open(path, 'rb') as file:
            _check_image(open_image(file, name=name, max_pixels=max_pixels), size, name, max_pixels)
            file.seek(0)
            data = file.read()
    except FileNotFoundError as error:
        raise UserError(f'{name} does not exist') from error
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = getattr(error, 'strerror', None) or error
        raise UserError(f'{name} cannot be read ({reason})') from error
    return decode_image(data, name=str(path), max_pixels=max_pixels)


def _check_image(image: ImageFile.ImageFile, length: int, name: str, max_pixels: int | None) -> None:
    limit = pixel_limit() if max_pixels is None else max_pixels
    if image.mode not in MODES:
        reason = f'has pixels of mode {image.mode!r}; convert it to 8 or 16 bits a channel, grey or RGB'
        raise ImageError(f'{name} {reason}', kind='mode', reason=f'it {reason}')
    if has_several_images(image, name=name):
        raise ImageError(f'{name} holds several pictures (an animation or pages); save them one by one')
    if length > 8 * limit + 2**26:  # 4 uncompressed channels of 16 bits, and metadata
        raise ImageError(f'{name} has {length} bytes, more than the pixels of an image can have')


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


def _upper_bits(image: np.ndarray) -> np.ndarray:
    return (image >> 8).astype(np.uint8)


def _from_pil(image: Image.Image, max_pixels: int | None) -> np.ndarray:
    name = f'image {str(getattr(image, "filename", "") or "PIL image")!r}'
    check_size(*image.size, name=name, max_pixels=max_pixels)
    if image.mode not in MODES:
        raise ImageError(f'{name} has mode {image.mode!r}; convert it to RGB', kind='mode')
    return _pil_pixels(image, name)


def _pil_pixels(image: Image.Image, name: str) -> np.ndarray:
    with pillow_errors(f'{name} is damaged or cut off'):
        turned = ImageOps.exif_transpose(image)
        if turned.mode.startswith('I;16'):
            return np.repeat(_upper_bits(np.asarray(turned, dtype=np.uint16))[..., None], 3, axis=2)
        pixels = np.asarray(turned.convert('RGB'))
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

"""Open image files, and check them as far as their format allows without decoding pixels.

Formats are JPEG, PNG, BMP, TIFF and WebP, recognised by content. Pillow reads the headers. A file whose damage the
format reveals is refused: a missing end, a checksum that does not match (PNG, TIFF with deflate), compressed data that
does not decode. Changed bytes that still decode, as in uncompressed pixels or in JPEG, cannot be noticed.
"""

from __future__ import annotations

import contextlib
import io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from PIL import BmpImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

from volo_seg.errors import UserError

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
"""Suffixes of the files that are taken from a folder; a file given by name may have any suffix."""
MAX_PIXELS = 2**27
"""Default limit: 134 million pixels (11585 x 11585). ``VOLO_SEG_MAX_PIXELS`` in the environment sets another one."""
ORIENTATION = 0x0112
"""Tag of the orientation in EXIF and TIFF; 1, or none, means as stored."""
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
        kind: ``'format'`` (not one of the formats), ``'size'``, ``'mode'`` (pixels of a kind that is not accepted,
            or several pictures), ``'unreadable'``; for labels also ``'16-bit'`` and ``'colour'``.
        reason: What is wrong, without the name of the file.
    """

    def __init__(self, message: str, *, kind: str = 'unreadable', reason: str = '') -> None:
        super().__init__(message)
        self.kind = kind
        self.reason = reason or message


def image_error(name: str, problem: str, *, kind: str = 'unreadable') -> ImageError:
    """The error that the file ``name`` has a ``problem``, which begins with a verb: ``'has no pixels'``."""
    return ImageError(f'{name} {problem}', kind=kind, reason=f'it {problem}')


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
        raise image_error(name, f'is {_other_format(start)}; convert it to JPEG, PNG, TIFF, WebP or BMP', kind='format')
    with pillow_errors(f'{name} has a damaged header'):
        if plugin is TiffImageFile:
            _check_tiff_pixels(file, name)
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
                tags = _read_tags(file)
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
        raise image_error(name, reason, kind='size')


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


def _read_tags(file: BinaryIO) -> ImageFileDirectory_v2:
    """The tags of the first page of a TIFF, also of pixels that Pillow does not know."""
    file.seek(0)
    start = file.read(16)
    tags = ImageFileDirectory_v2(start if start[2] == 43 else start[:8])
    file.seek(tags.next)
    tags.load(file)
    return tags


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


def _check_tiff_pixels(file: BinaryIO, name: str) -> None:
    """Refuse a TIFF whose pixels Pillow does not know, or mistakes for others.

    Raises:
        ImageError: Its pixels are of such a kind.
    """
    tags = _read_tags(file)
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
        raise image_error(name, reason, kind='mode')


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

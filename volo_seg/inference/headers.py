"""What the header of an image file says, read without decoding a pixel."""

from __future__ import annotations

import warnings
from typing import BinaryIO, NamedTuple

from PIL import BmpImagePlugin, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin

from volo_seg.errors import UserError

# a damaged file gets one sentence of ours
warnings.filterwarnings('ignore', category=UserWarning, module=r'PIL\.TiffImagePlugin')

PNG = b'\x89PNG\r\n\x1a\n'
MODES = ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'RGBX', 'CMYK', 'YCbCr', 'I;16', 'I;16B', 'I;16L', 'I;16N')
"""Kinds of pixels that are accepted, in Pillow's words: 1, 8 or 16 bits a channel."""
MOST_COPIES = 64
"""Smaller copies and masks that are looked through in a TIFF; a file that has more is taken for one with pages."""
_PILLOW: tuple[tuple[bytes, type[ImageFile.ImageFile]], ...] = (
    (b'\xff\xd8\xff', JpegImagePlugin.JpegImageFile),
    (PNG, PngImagePlugin.PngImageFile),
    (b'BM', BmpImagePlugin.BmpImageFile),
    (b'II*\0', TiffImagePlugin.TiffImageFile),
    (b'MM\0*', TiffImagePlugin.TiffImageFile),
    (b'II+\0', TiffImagePlugin.TiffImageFile),
    (b'MM\0+', TiffImagePlugin.TiffImageFile),
)
_OTHERS = (
    (b'GIF8', 'a GIF'),
    (b'%PDF', 'a PDF'),
    (b'8BPS', 'a Photoshop file'),
    (b'\0\0\0\x0cjP', 'a JPEG 2000 file'),
    (b'\xff\x4f\xff\x51', 'a JPEG 2000 file'),
    (b'PK', 'an archive'),
    (b'\x1f\x8b', 'an archive'),
    (b'<', 'a text file (SVG, XML or a web page)'),
    (b'version https://git-lfs', 'only a Git LFS pointer'),
)


class Header(NamedTuple):
    """What is known before decoding.

    Attributes:
        width, height: Pixels as stored, before EXIF turns them.
        several: Whether the file holds several pictures.
        blended: Whether OpenCV would give the colours multiplied by alpha, as it does for TIFF of 8 bits a channel.
    """

    width: int
    height: int
    several: bool = False
    blended: bool = False


def read_header(file: BinaryIO, *, name: str) -> Header:
    """Read the header of an image at the start of ``file``, which is called ``name`` in messages.

    JPEG, PNG, BMP, TIFF and WebP are known by their first bytes; what the file's name ends in does not matter.

    Raises:
        UserError: Another kind of file, a damaged header, or pixels that are not of 1, 8 or 16 bits.
    """
    start = file.read(32)
    file.seek(0)
    try:
        if start[:4] == b'RIFF' and start[8:12] == b'WEBP':
            return _read_webp(start)
        for magic, plugin in _PILLOW:
            if start.startswith(magic):
                return _read_by_pillow(plugin, file, name=name)
    except UserError:
        raise
    except Exception as error:  # a hostile header may break the parser at any place
        raise UserError(f'image {name!r} has a damaged header ({str(error) or type(error).__name__})') from error
    raise UserError(f'image {name!r} is {_other_kind(start)}; convert it to JPEG, PNG, TIFF, WebP or BMP')


def _read_by_pillow(plugin: type[ImageFile.ImageFile], file: BinaryIO, *, name: str) -> Header:
    # not by Image.open, which knows many more formats and has a pixel limit of its own
    image = plugin(file)
    width, height = image.size
    if image.mode not in MODES:
        raise UserError(
            f'image {name!r} has pixels of mode {image.mode!r}; convert it to 8 or 16 bits a channel, grey or RGB'
        )
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return Header(width, height, several=getattr(image, 'n_frames', 1) > 1)
    blended = image.mode in ('LA', 'PA', 'RGBA') and max(image.tag_v2.get(258, (1,))) == 8
    return Header(width, height, _has_pages(image), blended)


def _has_pages(image: TiffImagePlugin.TiffImageFile) -> bool:
    """Whether a TIFF holds a second picture; smaller copies of the first and masks are none."""
    for page in range(1, MOST_COPIES):
        try:
            image.seek(page)
        except EOFError:
            return False
        if not image.tag_v2.get(254, 0) & 0b101:  # NewSubfileType: neither a reduced copy nor a mask
            return True
    return True


def _read_webp(start: bytes) -> Header:
    """Source: RFC 9649, sections 2.5 to 2.7 and 3.4."""
    kind, body = start[12:16], start[20:]
    if kind == b'VP8X':
        width, height = (1 + int.from_bytes(body[i : i + 3], 'little') for i in (4, 7))
        return Header(width, height, bool(body[0] & 2))
    if kind == b'VP8L' and body[0] == 0x2F:
        bits = int.from_bytes(body[1:5], 'little')
        return Header(1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
    if kind == b'VP8 ' and body[3:6] == b'\x9d\x01\x2a':
        width, height = (int.from_bytes(body[i : i + 2], 'little') & 0x3FFF for i in (6, 8))
        return Header(width, height)
    raise ValueError('no WebP picture')


def is_whole_png(data: bytes) -> bool:
    """Whether every chunk of a PNG ends within ``data``, up to the last; decoders make room for what a chunk claims."""
    place = 8
    while place + 12 <= len(data):
        if data[place + 4 : place + 8] == b'IEND':
            return True
        place += 12 + int.from_bytes(data[place : place + 4], 'big')
    return False


def _other_kind(start: bytes) -> str:
    if start[4:8] == b'ftyp':
        return 'a HEIC, AVIF or video file'
    return next((kind for magic, kind in _OTHERS if start.startswith(magic)), 'no image of a known kind')

"""Image and label files: formats, limits, and damage, which is refused in one sentence."""

import io
import os
import resource
import struct
import subprocess
import sys
import threading
import time
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from volo_seg import imageio as images
from volo_seg.datasets.inspection.observation import InspectionOptions, inspect_pair
from volo_seg.datasets.masks import decode_mask
from volo_seg.errors import UserError
from volo_seg.image_files import (
    MAX_PIXELS,
    ImageError,
    check_raster,
    check_size,
    has_several_images,
    open_image,
)
from volo_seg.imageio import decode_image, read_image
from volo_seg.label_png import encode_labels, labels_of, load_label_image, read_labels

pytestmark = pytest.mark.filterwarnings(r'ignore::UserWarning:PIL\..*')
SETTINGS = settings(max_examples=60, deadline=None, database=None)


def picture(height=24, width=40):
    """Four quarters and a corner, so that each of the eight orientations looks different, also as JPEG."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2] = 200, 40, 40
    pixels[:, : width // 2, 1] = 220
    pixels[: height // 4, : width // 4] = 255
    return pixels


def encoded(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


RGB = Image.fromarray(picture())
BGR = picture()[..., ::-1]
GREY = RGB.convert('L')
DEEP = np.random.default_rng(0).integers(0, 2**16, (24, 40, 3), dtype=np.uint16)


def cv2_encoded(suffix, array):
    return cv2.imencode(suffix, array)[1].tobytes()


def as_bgr(image):
    return np.asarray(image.convert('RGB'))[..., ::-1]


ALPHA = RGB.copy()
ALPHA.putalpha(GREY)
GREY_ALPHA = GREY.copy()
GREY_ALPHA.putalpha(GREY)
SPECTRA = {
    'grey.png': (encoded(GREY, 'PNG'), as_bgr(GREY)),
    'one bit.png': (encoded(GREY.convert('1'), 'PNG'), as_bgr(GREY.convert('1'))),
    'grey alpha.png': (encoded(GREY_ALPHA, 'PNG'), as_bgr(GREY)),
    'alpha.png': (encoded(ALPHA, 'PNG'), BGR),
    'palette.png': (encoded(RGB.convert('P'), 'PNG'), as_bgr(RGB.convert('P'))),
    'palette.bmp': (encoded(RGB.convert('P'), 'BMP'), as_bgr(RGB.convert('P'))),
    'colour.bmp': (encoded(RGB, 'BMP'), BGR),
    'colour.png': (encoded(RGB, 'PNG'), BGR),
    'colour.tif': (encoded(RGB, 'TIFF'), BGR),
    'packed.tif': (encoded(RGB, 'TIFF', compression='tiff_lzw'), BGR),
    'grey.tif': (encoded(GREY, 'TIFF'), as_bgr(GREY)),
    'alpha.tif': (encoded(ALPHA, 'TIFF'), BGR),
    'grey alpha.tif': (encoded(GREY_ALPHA, 'TIFF'), as_bgr(GREY)),
    'deep alpha.tif': (cv2_encoded('.tif', np.dstack([DEEP, DEEP[..., 0]])), DEEP >> 8),
    'palette.tif': (encoded(RGB.convert('P'), 'TIFF'), as_bgr(RGB.convert('P'))),
    'colour.webp': (encoded(RGB, 'WEBP', lossless=True), BGR),
    'alpha.webp': (encoded(ALPHA, 'WEBP', lossless=True, exact=True), BGR),
    'deep.png': (cv2_encoded('.png', DEEP), DEEP >> 8),
    'deep.tif': (cv2_encoded('.tif', DEEP), DEEP >> 8),
    'deep grey.png': (cv2_encoded('.png', DEEP[..., 0]), np.repeat(DEEP[..., :1] >> 8, 3, 2)),
    'deep grey.tif': (cv2_encoded('.tif', DEEP[..., 0]), np.repeat(DEEP[..., :1] >> 8, 3, 2)),
    'deep alpha.png': (cv2_encoded('.png', np.dstack([DEEP, DEEP[..., 0]])), DEEP >> 8),
}
LOSSY = {
    'colour.jpg': (encoded(RGB, 'JPEG', quality=95), BGR),
    'progressive.jpg': (encoded(RGB, 'JPEG', quality=95, progressive=True), BGR),
    'grey.jpg': (encoded(GREY, 'JPEG', quality=95), as_bgr(GREY)),
    'cmyk.jpg': (encoded(RGB.convert('CMYK'), 'JPEG', quality=95), BGR),
    'lossy.webp': (encoded(RGB, 'WEBP', quality=95), BGR),
}


@pytest.mark.parametrize('name', SPECTRA)
def test_exact_formats(name, tmp_path):
    data, expected = SPECTRA[name]
    (tmp_path / name).write_bytes(data)
    image = read_image(tmp_path / name)
    assert image.dtype == np.uint8 and image.flags.owndata
    np.testing.assert_array_equal(image, expected)
    np.testing.assert_array_equal(decode_image(data, name=name), expected)


@pytest.mark.parametrize('name', LOSSY)
def test_lossy_formats(name, tmp_path):
    data, expected = LOSSY[name]
    (tmp_path / name).write_bytes(data)
    difference = np.abs(read_image(str(tmp_path / name)).astype(int) - expected)
    assert difference.mean() < 6, difference.mean()


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'TIFF'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_orientation(kind, orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / 'image').write_bytes(encoded(RGB, kind, exif=exif))
    with Image.open(tmp_path / 'image') as opened:
        from_pil = read_image(opened)
        expected = as_bgr(ImageOps.exif_transpose(opened))
    from_file = read_image(tmp_path / 'image')
    assert from_file.shape == ((24, 40, 3) if orientation < 5 else (40, 24, 3))
    assert np.abs(from_file.astype(int) - expected).mean() < 3
    np.testing.assert_array_equal(from_pil, expected)


def chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def png(width, height, *chunks):
    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + b''.join(chunks) + chunk(b'IEND', b'')


def test_exif_behind_the_pixels_of_a_png():
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = chunk(b'IDAT', zlib.compress((b'\0' + b'\7' * 27) * 4))
    assert decode_image(png(9, 4, pixels, chunk(b'eXIf', exif.tobytes()[6:])), name='x').shape == (9, 4, 3)


def bombs():
    """A few bytes each that claim about 10^10 pixels (WebP: all that it can, 16384^2)."""
    empty = chunk(b'IDAT', zlib.compress(b'\0' * 100))
    jpeg = bytearray(LOSSY['colour.jpg'][0])
    at = jpeg.index(b'\xff\xc0') + 5
    jpeg[at : at + 4] = struct.pack('>HH', 65500, 65500)
    bmp = bytearray(SPECTRA['colour.bmp'][0])
    bmp[18:26] = struct.pack('<ii', 100000, 100000)
    upside_down = bytearray(bmp)
    upside_down[18:26] = struct.pack('<ii', 100000, -100000)
    tiff = io.BytesIO()
    tags = ((256, 100000), (257, 100000), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 100000), (279, 8))
    tiff.write(b'II*\0' + struct.pack('<I', 8) + struct.pack('<H', len(tags)))
    tiff.write(b''.join(struct.pack('<HHII', tag, 4, 1, value) for tag, value in tags) + bytes(4))
    extended = b'VP8X' + struct.pack('<I', 10) + bytes(4) + b'\xff\x3f\0' * 2
    lossy = b'VP8 ' + struct.pack('<I', 10) + b'\0\0\0\x9d\x01\x2a' + struct.pack('<HH', 16383, 16383)
    lossless = b'VP8L' + struct.pack('<I', 5) + b'\x2f' + struct.pack('<I', 2**28 - 1)
    webp = (b'RIFF' + struct.pack('<I', 4 + len(body)) + b'WEBP' + body for body in (extended, lossy, lossless))
    names = ('webp extended', 'webp', 'webp lossless')
    yield from {'png': png(100000, 100000, empty), 'jpeg': jpeg, 'bmp': bmp, 'bmp upside down': upside_down}.items()
    yield from {'tiff': tiff.getvalue(), **dict(zip(names, webp, strict=True))}.items()


@pytest.mark.parametrize(('kind', 'data'), bombs(), ids=lambda value: value if isinstance(value, str) else '')
def test_bombs_are_not_decoded(kind, data, tmp_path, monkeypatch):
    monkeypatch.setattr(images.cv2, 'imdecode', lambda *_: pytest.fail('decoded'))
    path = tmp_path / 'bomb.png'
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r'bomb.png. has \d+ x \d+ pixels, more than the limit of \d+; if you trust'):
        read_image(path)


def test_a_chunk_that_claims_gigabytes(monkeypatch):
    """OpenCV makes room for what a chunk of a PNG says that it holds, before it looks whether it does."""
    pixels = chunk(b'IDAT', zlib.compress((b'\0' + b'\7' * 27) * 4))
    assert decode_image(png(9, 4, pixels), name='x').shape == (4, 9, 3)
    monkeypatch.setattr(images.cv2, 'imdecode', lambda *_: pytest.fail('decoded'))
    greedy = png(9, 4, pixels, struct.pack('>I', 2**31 - 1) + b'IDAT' + bytes(30))
    with pytest.raises(UserError, match='damaged or cut off'):
        decode_image(greedy, name='x')


def test_limit(tmp_path, monkeypatch):
    path = tmp_path / 'image.png'
    path.write_bytes(SPECTRA['colour.png'][0])
    sources = (path, picture(), RGB)
    for source in sources:
        assert read_image(source, max_pixels=960).shape == (24, 40, 3)
        with pytest.raises(UserError, match='40 x 24 pixels, more than the limit of 959'):
            read_image(source, max_pixels=959)
    monkeypatch.setenv('VOLO_SEG_MAX_PIXELS', '959')
    for source in sources:
        with pytest.raises(UserError, match='limit of 959'):
            read_image(source)
    for wrong in ('0', '-5', 'many', '1e9'):
        monkeypatch.setenv('VOLO_SEG_MAX_PIXELS', wrong)
        with pytest.raises(UserError, match=f"VOLO_SEG_MAX_PIXELS='{wrong}' in the environment is not a number"):
            read_image(path)
    monkeypatch.setenv('VOLO_SEG_MAX_PIXELS', '')
    assert images.pixel_limit() == MAX_PIXELS
    with pytest.raises(UserError, match='a page has no pixels'):
        check_size(0, 5, name='a page')


def test_more_bytes_than_pixels(tmp_path):
    path = tmp_path / 'long.bmp'
    path.write_bytes(SPECTRA['colour.bmp'][0])
    os.truncate(path, 2**26 + 8 * 960 + 1)
    with pytest.raises(UserError, match=r'long.bmp. has \d+ bytes, more than the pixels'):
        read_image(path, max_pixels=960)


def inverted():
    return [ImageOps.invert(RGB)]


def reduced_page():
    return [RGB.resize((20, 12))]


REFUSED = {
    'animated.webp': (encoded(RGB, 'WEBP', save_all=True, append_images=inverted()), 'holds several pictures'),
    'animated.png': (encoded(RGB, 'PNG', save_all=True, append_images=inverted()), 'holds several pictures'),
    'pages.tif': (encoded(RGB, 'TIFF', save_all=True, append_images=inverted()), 'holds several pictures'),
    'still.gif': (encoded(RGB, 'GIF'), 'is a GIF; convert it to JPEG, PNG'),
    'gif.png': (encoded(RGB, 'GIF', save_all=True, append_images=inverted()), 'is a GIF; convert it to JPEG, PNG'),
    'picture.jp2': (b'\0\0\0\x0cjP  \r\n\x87\n', 'is a JPEG 2000 file'),
    'picture.heic': (b'\0\0\0\x18ftypheic', 'is a HEIC, AVIF or video file'),
    'picture.svg': (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 'is a text file'),
    'text.png': (b'this is text', 'is not an image of a known format'),
    'empty.png': (b'', r'is empty \(0 bytes\)'),
    'pointer.png': (b'version https://git-lfs.github.com/spec/v1\n', 'is only a Git LFS pointer'),
    'float grey.tif': (encoded(Image.fromarray(DEEP[..., 0].astype(np.float32)), 'TIFF'), "pixels of mode 'F'"),
    'float.tif': (
        cv2_encoded('.tif', DEEP.astype(np.float32)),
        r'has 3 channels of 32 bits \(floating-point\); convert',
    ),
    'whole numbers.tif': (encoded(Image.fromarray(DEEP[..., 0].astype(np.int32)), 'TIFF'), "pixels of mode 'I'"),
    'lab.tif': (encoded(Image.merge('LAB', RGB.split()), 'TIFF'), "pixels of mode 'LAB'"),
    'header.png': (SPECTRA['colour.png'][0][:20], 'has a damaged header'),
    'header.tif': (b'II*\0', 'has a damaged header'),
    'header.webp': (b'RIFF\0\0\0\0WEBPVP9 ' + bytes(20), 'has a damaged header'),
    'no pixels.png': (png(0, 3, chunk(b'IDAT', zlib.compress(b''))), 'has'),
    'cut.png': (SPECTRA['colour.png'][0][:-30], 'is damaged or cut off'),
    'cut.jpg': (LOSSY['colour.jpg'][0][:-60], 'is damaged or cut off'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_refused(name, tmp_path):
    data, reason = REFUSED[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=reason) as caught:
        read_image(tmp_path / name)
    assert name in str(caught.value) and '\n' not in str(caught.value)


def test_smaller_copies_in_a_tiff_are_no_pages(tmp_path):
    """As in GeoTIFF files with overviews."""
    from PIL import TiffImagePlugin

    with TiffImagePlugin.AppendingTiffWriter(str(tmp_path / 'x.tif'), True) as file:
        for page, kind in ((RGB, 0), (RGB.resize((20, 12)), 1), (GREY, 4)):
            page.save(file, format='TIFF', tiffinfo={254: kind})
            file.newFrame()
    np.testing.assert_array_equal(read_image(tmp_path / 'x.tif'), BGR)


def test_the_name_does_not_matter(tmp_path):
    for name in ('png.jpg', 'no suffix', 'picture.txt'):
        (tmp_path / name).write_bytes(SPECTRA['colour.png'][0])
        np.testing.assert_array_equal(read_image(tmp_path / name), BGR)
    (tmp_path / 'link').symlink_to(tmp_path / 'png.jpg')
    np.testing.assert_array_equal(read_image(tmp_path / 'link'), BGR)


def told_or_read(read, *args, **options):
    """The image, or what the UserError says."""
    try:
        return read(*args, **options)
    except UserError as error:
        return str(error)


@pytest.mark.parametrize('name', ['colour.png', 'colour.tif', 'packed.tif', 'colour.bmp', 'colour.webp', 'colour.jpg'])
def test_cut_anywhere(name):
    """A file that was cut off gives the whole picture (only its end mark was lost) or one sentence, never a part."""
    data = {**SPECTRA, **LOSSY}[name][0]
    whole = decode_image(data, name='x')
    results = [told_or_read(decode_image, data[:length], name='x') for length in range(len(data))]
    refused = sum(isinstance(result, str) for result in results)
    assert all(isinstance(result, str) or np.array_equal(result, whole) for result in results)
    assert refused > 0.9 * len(data) - 20


@SETTINGS
@given(st.sampled_from([*SPECTRA, *LOSSY]), st.data())
def test_damaged_anywhere(name, data):
    """Changed bytes give some picture within the limit or a UserError; nothing else gets out."""
    content = bytearray({**SPECTRA, **LOSSY}[name][0])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(len(content), 200) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = decode_image(bytes(content), name='x', max_pixels=10**6)
    except UserError as error:
        assert '\n' not in str(error).strip()
    else:
        assert image.dtype == np.uint8 and image.shape[0] * image.shape[1] <= 10**6


@SETTINGS
@given(st.binary(max_size=64), st.sampled_from([b'', b'\xff\xd8\xff', b'\x89PNG\r\n\x1a\n', b'BM', b'II*\0', b'RIFF']))
def test_noise(noise, magic):
    with pytest.raises(UserError):
        decode_image(magic + noise, name='x')


def test_what_is_no_file(tmp_path):
    (tmp_path / 'folder.jpg').mkdir()
    os.mkfifo(tmp_path / 'pipe.png')
    (tmp_path / 'circle.png').symlink_to(tmp_path / 'circle.png')
    expected = {
        tmp_path / 'folder.jpg': 'is a folder',
        tmp_path / 'pipe.png': 'is a pipe, socket or device',
        '/dev/zero': 'is a pipe, socket or device',
        tmp_path / 'none.png': 'does not exist',
        tmp_path / 'circle.png': 'cannot be read',
        'nul\0.png': 'cannot be read',
        tmp_path / ('x' * 300): 'cannot be read',
    }
    told = {}

    def look():
        told.update({source: told_or_read(read_image, source) for source in expected})

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), 'waits for ever'
    for source, reason in expected.items():
        assert reason in told[source]


@pytest.mark.parametrize('shape', [(5, 7), (5, 7, 1), (5, 7, 3), (5, 7, 4)])
@pytest.mark.parametrize('kind', [np.uint8, np.uint16])
def test_arrays(shape, kind):
    array = np.random.default_rng(0).integers(0, np.iinfo(kind).max, shape, dtype=kind)
    expected = array if kind is np.uint8 else array >> 8
    image = read_image(array)
    assert image.shape == (5, 7, 3) and image.dtype == np.uint8 and not np.shares_memory(image, array)
    np.testing.assert_array_equal(image[..., 1], expected.reshape(5, 7, -1)[..., 1 if shape[2:] > (1,) else 0])
    np.testing.assert_array_equal(read_image(array[::-1, ::2]), image[::-1, ::2])


@pytest.mark.parametrize(
    ('array', 'reason'),
    [
        (np.zeros((4, 4, 3)), r'of float64, and must be of uint8 or uint16; scale it'),
        (np.zeros((4, 4), bool), 'of bool'),
        (np.zeros((4, 4), np.int32), 'of int32'),
        (np.zeros((4, 4), '<U3'), 'of <U3'),
        (np.zeros((3, 4, 5), np.uint8), r'shape \(3, 4, 5\).*transpose\(1, 2, 0\)'),
        (np.zeros((2, 4, 5, 3), np.uint8), r'shape \(2, 4, 5, 3\).*as a list'),
        (np.zeros(4, np.uint8), r'shape \(4,\)'),
        (np.zeros((0, 4, 3), np.uint8), r'no pixels \(4 x 0\)'),
        (np.zeros((4, 0), np.uint8), r'no pixels \(0 x 4\)'),
        (7, 'this is of type int'),
        (None, 'this is of type NoneType'),
        (b'bytes', 'this is of type bytes'),
    ],
)
def test_refused_arrays(array, reason):
    with pytest.raises(UserError, match=reason):
        read_image(array)


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'RGBX', 'CMYK', 'YCbCr'])
def test_pil_modes(mode):
    image = (GREY_ALPHA.convert('PA') if mode == 'PA' else RGB.convert(mode)) if mode != 'RGBA' else ALPHA
    np.testing.assert_array_equal(read_image(image), as_bgr(image))


def test_pil_16_bit():
    image = Image.fromarray(DEEP[..., 0])
    assert image.mode.startswith('I;16')
    np.testing.assert_array_equal(read_image(image), np.repeat(DEEP[..., :1] >> 8, 3, 2))


def test_refused_pil_images(tmp_path):
    with pytest.raises(UserError, match="mode 'F'; convert it to RGB"):
        read_image(Image.fromarray(np.zeros((3, 3), np.float32)))
    (tmp_path / 'cut.png').write_bytes(SPECTRA['colour.png'][0][:-40])
    with Image.open(tmp_path / 'cut.png') as image, pytest.raises(UserError, match=r'cut.png. is damaged or cut off'):
        read_image(image)


def test_reading_needs_no_torch():
    code = (
        'import sys\nfrom volo_seg.inference import read_image, write_image, Result, Failure, BasePredictor\n'
        'from volo_seg import imageio, label_png\nfrom volo_seg.inference import resizing, result\n'
        'found = [m for m in sys.modules if m.split(".")[0] in ("torch", "mmengine", "mmcv", "mmseg")]\n'
        'assert not found, found\n'
    )
    subprocess.run([sys.executable, '-c', code], check=True)


NOISE = Image.fromarray(np.random.default_rng(2).integers(0, 256, (64, 96, 3), dtype=np.uint8).repeat(2, 0))
STRIPS = {'strip_size': 96 * 3 * 16}


def tiled(compression):
    """A TIFF of 32 x 32 tiles, as GDAL writes it."""
    rasterio = pytest.importorskip('rasterio')
    options = {'tiled': True, 'blockxsize': 32, 'blockysize': 32, 'interleave': 'pixel', 'compress': compression}
    with rasterio.io.MemoryFile() as memory:
        with memory.open(driver='GTiff', width=96, height=128, count=3, dtype='uint8', **options) as file:
            file.write(np.moveaxis(np.asarray(NOISE), -1, 0))
        return memory.read()


# how many of 40 damaged copies are refused, at least: a checksum reveals all, other compression only what it can
DAMAGED_TIFF = {
    'lzw': (lambda: encoded(NOISE, 'TIFF', compression='tiff_lzw', **STRIPS), 24),
    'deflate': (lambda: encoded(NOISE, 'TIFF', compression='tiff_adobe_deflate', **STRIPS), 40),
    'packbits': (lambda: encoded(NOISE, 'TIFF', compression='packbits'), 0),
    'jpeg': (lambda: encoded(NOISE, 'TIFF', compression='jpeg', **STRIPS), 0),
    'tiled lzw': (lambda: tiled('lzw'), 24),
    'tiled deflate': (lambda: tiled('deflate'), 40),
    'tiled jpeg': (lambda: tiled('jpeg'), 0),
}


def damaged_copies(data, how):
    """40 copies of a file with damage in its middle half: bytes changed or zeroed, cut there, or zero from there on."""
    random = np.random.default_rng(3)
    for _ in range(40):
        copy, at = bytearray(data), int(random.integers(len(data) // 4, 3 * len(data) // 4))
        if how == 'changed':
            copy[at : at + 8] = bytes(value ^ int(random.integers(1, 256)) for value in copy[at : at + 8])
        elif how == 'zeroed':
            copy[at : at + 200] = bytes(200)
        elif how == 'cut':
            del copy[at:]
        else:
            copy[at:] = bytes(len(copy) - at)
        yield bytes(copy)


@pytest.mark.parametrize('how', ['changed', 'cut', 'zero to the end'])
@pytest.mark.parametrize('kind', DAMAGED_TIFF)
def test_damaged_tiff(kind, how, tmp_path):
    """Never decoded as far as it goes; the check of rasters, with GDAL, refuses the same files."""
    rasterio = pytest.importorskip('rasterio')
    make, least = DAMAGED_TIFF[kind]
    data, path, refused = make(), tmp_path / 'x.tif', 0
    assert decode_image(data, name='x').shape == (128, 96, 3)
    for copy in damaged_copies(data, how):
        path.write_bytes(copy)
        told = told_or_read(read_image, path)
        refused += isinstance(told, str)
        try:
            check_raster(path, name='x.tif')
            with rasterio.open(path) as file:
                file.read()
            assert not isinstance(told, str), told
        except (ImageError, rasterio.errors.RasterioError):
            assert isinstance(told, str) and 'x.tif' in told
    assert refused >= (least if how == 'changed' else 40)


@pytest.mark.parametrize('how', ['changed', 'zeroed', 'cut', 'zero to the end'])
def test_damaged_png(how, tmp_path):
    data = encoded(NOISE, 'PNG')
    for copy in damaged_copies(data, how):
        (tmp_path / 'x.png').write_bytes(copy)
        with pytest.raises(UserError, match=r'x.png. is damaged or cut off'):
            read_image(tmp_path / 'x.png')
        with pytest.raises(ImageError, match='is damaged or cut off'):
            check_raster(tmp_path / 'x.png', name='x.png')


@pytest.mark.parametrize(
    ('kind', 'hows'), [('JPEG', ('cut', 'zero to the end')), ('WEBP', ('cut',)), ('BMP', ('cut',)), ('TIFF', ('cut',))]
)
def test_files_without_their_end(kind, hows):
    """A JPEG needs its end marker: OpenCV gives grey rows for the rest of a file that ends in zeros."""
    data = encoded(NOISE, kind)
    for how in hows:
        for copy in damaged_copies(data, how):
            with pytest.raises(UserError):
                decode_image(copy, name='x')


def tiff(*tags, data=bytes(64)):
    """A TIFF whose pixels start at byte 8; ``tags`` are (number, value), sorted by number."""
    body = b''.join(struct.pack('<HHII', tag, 4, 1, value) for tag, value in tags) + bytes(4)
    return b'II*\0' + struct.pack('<I', 8 + len(data)) + data + struct.pack('<H', len(tags)) + body


GREY_8 = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 8, 279: 64}
PIXELS = chunk(b'IDAT', zlib.compress((b'\0' + b'\7' * 27) * 4))
HOSTILE = {
    'short pHYs.png': (png(9, 4, chunk(b'pHYs', b'123'), PIXELS), 'pHYs'),
    'text.png': (png(9, 4, chunk(b'zTXt', b'a\0\0' + zlib.compress(bytes(2**26))), PIXELS), 'too large'),
    'text behind.png': (png(9, 4, PIXELS, chunk(b'iTXt', b'a\0\1\0\0\0' + zlib.compress(bytes(2**26)))), ''),
    'no pixels.png': (png(9, 4), 'damaged'),
    'big.png': (png(60000, 60000, PIXELS), '60000 x 60000 pixels'),
    'postscript.png': (
        b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 4\n%%EndComments\n',
        'not an image of a known format',
    ),
    'tiles.tif': (tiff(*({**GREY_8, 322: 65536, 323: 65536, 324: 8, 325: 64}.items())), 'tiles of 65536 x 65536'),
    'strips.tif': (tiff(*({**GREY_8, 278: 2}.items())), '1 of 4 strips'),
    'no rows.tif': (tiff(*({**GREY_8, 278: 0}.items())), 'damaged'),
    'ycbcr.tif': (encoded(NOISE.convert('YCbCr'), 'TIFF', compression='tiff_lzw'), 'convert it to RGB'),
    'big endian.tif': (b'MM\0+' + bytes(60), 'a BigTIFF in big-endian order'),
}


@pytest.mark.parametrize('name', HOSTILE)
def test_hostile_files(name, tmp_path):
    """Refused in one sentence by the readers of images and labels, or (text behind the pixels) not looked at."""
    data, reason = HOSTILE[name]
    path = tmp_path / name
    path.write_bytes(data)
    for told in (told_or_read(read_image, path), told_or_read(decode_mask, data, where=name)):
        assert not reason or (isinstance(told, str) and name in told and '\n' not in told), told
    assert reason in told_or_read(read_image, path) if reason else read_image(path).shape == (4, 9, 3)
    assert name in told_or_read(read_labels, path)
    seen = inspect_pair((str(path), str(path)), InspectionOptions())
    assert {kind for kind, *_ in seen.problems} <= {'unreadable', 'mode', 'size'} and seen.problems


LABELS = np.random.default_rng(4).integers(0, 20, (24, 40), dtype=np.uint8)


def test_label_formats(tmp_path):
    palette = Image.fromarray(LABELS)
    palette.putpalette(bytes(range(256)) * 3)
    for kind, image in (
        ('PNG', Image.fromarray(LABELS)),
        ('PNG', palette),
        ('BMP', Image.fromarray(LABELS)),
        ('TIFF', Image.fromarray(LABELS)),
        ('TIFF', Image.fromarray(LABELS.astype(np.uint16))),
        ('PNG', Image.fromarray(LABELS.astype(np.int32))),
    ):
        content = encoded(image, kind)
        np.testing.assert_array_equal(labels_of(load_label_image(content, name='x'), name='x'), LABELS)
        np.testing.assert_array_equal(decode_mask(content, where='x'), LABELS)
    deep = encode_labels(LABELS.astype(np.uint16))
    assert Image.open(io.BytesIO(deep)).mode == 'I;16' and Image.open(io.BytesIO(deep)).info['Software'] == 'volo-seg'
    assert Image.open(io.BytesIO(encode_labels(LABELS.astype(np.int64)))).mode == 'L'
    pages = encoded(Image.fromarray(LABELS), 'TIFF', save_all=True, append_images=[Image.fromarray(LABELS)])
    (tmp_path / 'pages.tif').write_bytes(pages)
    with pytest.raises(UserError, match=r'pages.tif cannot be read as a label map \(it holds several images\)'):
        read_labels(tmp_path / 'pages.tif')


def mutations(data, count, random):
    """Copies of a file with seeded damage of every sort; most of it near the start, where the header is."""
    for _ in range(count):
        copy = bytearray(data)
        for _ in range(int(random.integers(1, 4))):
            end = len(copy) if random.random() < 0.4 else min(len(copy), 160)
            at, how = int(random.integers(0, max(1, end))), int(random.integers(0, 6))
            if how == 0:
                copy[at : at + 1] = bytes([int(random.integers(256))])
            elif how == 1:
                copy[at : at + 4] = random.choice([b'\xff\xff\xff\xff', b'\0\0\0\0', b'\x7f\xff\xff\xff', b'\0\0\1\0'])
            elif how == 2:
                copy[at : at + 16] = random.bytes(16)
            elif how == 3:
                del copy[at : at + int(random.integers(1, 40))]
            elif how == 4:
                copy[at:at] = copy[at : at + int(random.integers(1, 40))]
            else:
                del copy[int(random.integers(at, len(copy) + 1)) :]
        yield bytes(copy)


@pytest.mark.parametrize('name', [*SPECTRA, *LOSSY, 'labels.png', 'labels.tif', 'packbits.tif', 'deflate.tif'])
def test_mutated_files(name, tmp_path, monkeypatch):
    """40 damaged copies of each format through every reader: a correct array or one sentence, and no hang."""
    monkeypatch.setenv('VOLO_SEG_MAX_PIXELS', str(10**6))
    own = {
        'labels.png': lambda: encode_labels(LABELS),
        'labels.tif': lambda: encoded(Image.fromarray(LABELS), 'TIFF', compression='tiff_adobe_deflate'),
        'packbits.tif': lambda: encoded(RGB, 'TIFF', compression='packbits'),
        'deflate.tif': lambda: encoded(RGB, 'TIFF', compression='tiff_adobe_deflate'),
    }
    data = own[name]() if name in own else {**SPECTRA, **LOSSY}[name][0]
    whole = decode_image(data, name='x')
    memory, path = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, tmp_path / name
    for copy in mutations(data, 40, np.random.default_rng(len(name))):
        start = time.perf_counter()
        path.write_bytes(copy)
        image = told_or_read(read_image, path)
        header = told_or_read(lambda content: open_image(io.BytesIO(content), name='x'), copy)
        if isinstance(image, str):
            assert name in image and '\n' not in image.strip()
        else:
            assert image.dtype == np.uint8 and image.ndim == 3 and image.size <= 3 * 10**6
            assert not isinstance(header, str) and not has_several_images(header, name='x')
            if name.endswith('.png'):  # every byte but the last is under a checksum
                np.testing.assert_array_equal(image, whole)
        labels = told_or_read(read_labels, path)
        assert isinstance(labels, str) or (labels.ndim == 2 and labels.dtype in (np.uint8, np.int32))
        mask = told_or_read(decode_mask, copy, where=name)
        assert isinstance(mask, str) or (mask.ndim == 2 and mask.dtype == np.uint8)
        assert inspect_pair((str(path), str(path)), InspectionOptions()).image == str(path)
        assert time.perf_counter() - start < 60
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 2**18  # 256 MiB

"""Each kind of image file gives the same pixels in every command, or the same sentence of refusal."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
import rasterio
from mmcv.transforms import LoadImageFromFile as MmcvLoader
from mmengine.registry import init_default_scope
from mmseg.registry import TRANSFORMS
from PIL import Image

from volo_seg.commands import run
from volo_seg.config.untrusted import safe_model_config
from volo_seg.datasets.inspection.observation import InspectionOptions, inspect_pair
from volo_seg.datasets.masks import decode_mask
from volo_seg.datasets.transforms.loading import LoadImageFromFile, reading_of
from volo_seg.errors import UserError
from volo_seg.image_files import ImageError
from volo_seg.imageio import Reading, check_range, decode_image, read_image, to_8_bits
from volo_seg.inference.base import BasePredictor, Prediction
from volo_seg.inference.onnx_metadata import OnnxMetadata
from volo_seg.inference.pipeline import image_pipeline
from volo_seg.inference.raster.blending import Area
from volo_seg.inference.raster.source import RasterSource

pytestmark = pytest.mark.filterwarnings('ignore::UserWarning', 'ignore::rasterio.errors.NotGeoreferencedWarning')
FOLDERS = 'volo-nano_upernet_1xb4-20k_folders-256x256'
RANGE = (1000, 5000)
RNG = np.random.default_rng(0)
RGB = np.kron(RNG.integers(0, 256, (6, 8, 3)), np.ones((4, 5, 1))).astype(np.uint8)  # (24, 40): sides differ
GREY = np.ascontiguousarray(RGB[..., 0])
DEEP = RNG.integers(0, 6000, (24, 40, 3), dtype=np.uint16)
TURN = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 3),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


def pillow(array, kind, *, mode=None, orientation=1, **options):
    image = Image.fromarray(array) if isinstance(array, np.ndarray) else array
    stream, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    (image.convert(mode) if mode else image).save(stream, kind, exif=exif, **options)
    return stream.getvalue()


def deep_png(array, orientation=1):
    """A PNG of 16 bits; ``array`` is RGB, RGBA or grey."""
    swapped = array if array.ndim == 2 else array[..., [2, 1, 0, *range(3, array.shape[2])]]
    content = cv2.imencode('.png', swapped)[1].tobytes()
    exif = Image.Exif()
    exif[0x0112] = orientation
    body = b'eXIf' + exif.tobytes()[6:]
    chunk = struct.pack('>I', len(body) - 4) + body + struct.pack('>I', zlib.crc32(body))
    return content[:33] + chunk + content[33:]


def tiff(array, *, orientation=1, photometric=None, order='<', kind=None, bits=None):
    """An uncompressed TIFF of one strip; ``array`` is (H, W) or (H, W, C)."""
    height, width, channels = *array.shape[:2], 1 if array.ndim == 2 else array.shape[2]
    data = array.astype(array.dtype.newbyteorder(order)).tobytes()
    bits = bits or array.dtype.itemsize * 8
    sample = kind or {'u': 1, 'i': 2, 'f': 3, 'c': 6}[array.dtype.kind]
    tags = {256: width, 257: height, 258: [bits] * channels, 259: 1}
    tags |= {262: photometric if photometric is not None else 2 if channels > 2 else 1, 273: 8, 274: orientation}
    tags |= {277: channels, 278: height, 279: len(data), 339: [sample] * channels}
    if channels in (2, 4):
        tags[338] = 2  # alpha, not multiplied
    start = 8 + len(data) + len(data) % 2
    extra_at, extra, entries = start + 2 + 12 * len(tags) + 4, b'', b''
    for tag, value in sorted(tags.items()):
        values = value if isinstance(value, list) else [value]
        code, size = ('I', 4) if tag in (273, 279) else ('H', 3)
        packed = struct.pack(f'{order}{len(values)}{code}', *values)
        if len(packed) > 4:
            packed, extra = struct.pack(f'{order}I', extra_at + len(extra)), extra + packed
        entries += struct.pack(f'{order}HHI', tag, size, len(values)) + packed.ljust(4, b'\0')
    head = (b'II*\0' if order == '<' else b'MM\0*') + struct.pack(f'{order}I', start)
    return head + data.ljust(start - 8, b'\0') + struct.pack(f'{order}H', len(tags)) + entries + bytes(4) + extra


def geotiff(array, **options):
    with rasterio.MemoryFile() as memory:
        shape = {'count': len(array), 'height': array.shape[1], 'width': array.shape[2], 'dtype': array.dtype.name}
        with memory.open(driver='GTiff', **shape, **options) as file:
            file.write(array)
        return memory.read()


def upper(values, bits=16):
    return (values >> (bits - 8)).astype(np.uint8)


def spread(values):
    scaled = (values.astype(np.float64) - RANGE[0]) * 255 / (RANGE[1] - RANGE[0])
    return np.rint(scaled.clip(0, 255)).astype(np.uint8)


def bgr(values):
    return np.repeat(values[..., None], 3, 2) if values.ndim == 2 else values[..., 2::-1]


ALPHA = np.dstack([RGB, GREY])
CMYK = Image.fromarray(RGB).convert('CMYK')
FLOAT = DEEP[..., 0].astype(np.float32) - 100.25
SIGNED = DEEP[..., 0].astype(np.int32) - 500
PALETTE = Image.fromarray(RGB).quantize(200)
ONE_BIT = Image.fromarray(GREY).convert('1')
# name: (content, pixels as (H, W) or RGB without a range, with RANGE if they differ; a sentence if it is refused)
FILES = {}
for _o in TURN:
    _turn = TURN[_o]
    for _kind, _options in (('PNG', {}), ('WEBP', {'lossless': True}), ('TIFF', {})):
        FILES[f'RGB {_kind} {_o}'] = (pillow(RGB, _kind, orientation=_o, **_options), _turn(RGB), None)
    FILES[f'deep RGB PNG {_o}'] = (deep_png(DEEP, _o), _turn(upper(DEEP)), _turn(spread(DEEP)))
    FILES[f'deep RGB TIFF {_o}'] = (tiff(DEEP, orientation=_o), _turn(upper(DEEP)), _turn(spread(DEEP)))
    FILES[f'deep grey TIFF {_o}'] = (
        tiff(DEEP[..., 0], orientation=_o),
        _turn(upper(DEEP[..., 0])),
        _turn(spread(DEEP[..., 0])),
    )
    _jpeg = pillow(RGB, 'JPEG', orientation=_o)
    _stored = cv2.imdecode(np.frombuffer(_jpeg, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    FILES[f'RGB JPEG {_o}'] = (_jpeg, _turn(_stored)[..., ::-1], None)
NEEDS_RANGE = 'say which values are black and white by range=(black, white) of LoadImageFromFile in the config'
FILES |= {
    'grey PNG': (pillow(GREY, 'PNG'), GREY, None),
    'grey BMP': (pillow(GREY, 'BMP'), GREY, None),
    'grey TIFF': (pillow(GREY, 'TIFF'), GREY, None),
    'grey+alpha PNG': (pillow(ALPHA, 'PNG', mode='LA'), np.asarray(Image.fromarray(ALPHA).convert('LA'))[..., 0], None),
    'grey+alpha TIFF': (tiff(ALPHA[..., 2:]), ALPHA[..., 2], None),
    'RGBA PNG': (pillow(ALPHA, 'PNG'), RGB, None),
    'RGBA TIFF': (tiff(ALPHA), RGB, None),
    'RGB + near infrared GeoTIFF': (geotiff(np.moveaxis(ALPHA, 2, 0)), RGB, None),
    'RGBA WEBP': (pillow(ALPHA, 'WEBP', lossless=True, exact=True), RGB, None),
    'palette PNG': (pillow(PALETTE, 'PNG'), np.asarray(PALETTE.convert('RGB')), None),
    'palette TIFF': (pillow(PALETTE, 'TIFF'), np.asarray(PALETTE.convert('RGB')), None),
    'palette BMP': (pillow(PALETTE, 'BMP'), np.asarray(PALETTE.convert('RGB')), None),
    'RGB BMP': (pillow(RGB, 'BMP'), RGB, None),
    '1 bit PNG': (pillow(ONE_BIT, 'PNG'), np.asarray(ONE_BIT.convert('L')), None),
    '1 bit TIFF': (pillow(ONE_BIT, 'TIFF', compression='group4'), np.asarray(ONE_BIT.convert('L')), None),
    'CMYK TIFF': (pillow(CMYK, 'TIFF'), np.asarray(CMYK.convert('RGB')), None),
    'deep grey PNG': (deep_png(DEEP[..., 0]), upper(DEEP[..., 0]), spread(DEEP[..., 0])),
    'deep RGBA PNG': (deep_png(np.dstack([DEEP, DEEP[..., 0]])), upper(DEEP), spread(DEEP)),
    'deep RGBA TIFF': (tiff(np.dstack([DEEP, DEEP[..., 0]])), upper(DEEP), spread(DEEP)),
    'deep grey TIFF, big-endian': (tiff(DEEP[..., 0], order='>'), upper(DEEP[..., 0]), spread(DEEP[..., 0])),
    'deep RGB GeoTIFF': (
        geotiff(np.moveaxis(DEEP, 2, 0), photometric='rgb', compress='deflate', predictor=2),
        upper(DEEP),
        spread(DEEP),
    ),
    '12 bit grey TIFF': (
        geotiff(DEEP[None, ..., 0] % 4096, nbits=12),
        upper(DEEP[..., 0] % 4096, 12),
        spread(DEEP[..., 0] % 4096),
    ),
    'ZSTD TIFF': (geotiff(np.moveaxis(RGB, 2, 0), photometric='rgb', compress='zstd'), RGB, None),
    'float32 grey TIFF': (tiff(FLOAT), f"has pixels of mode 'F'; {NEEDS_RANGE}", spread(FLOAT)),
    'int32 grey TIFF': (tiff(SIGNED), f"has pixels of mode 'I'; {NEEDS_RANGE}", spread(SIGNED)),
    'int16 grey TIFF': (tiff(SIGNED.astype(np.int16)), f"has pixels of mode 'I'; {NEEDS_RANGE}", spread(SIGNED)),
    'float32 RGB TIFF': (tiff(DEEP.astype(np.float32)), 'has 3 channels of 32 bits (floating-point); convert', None),
    'float64 TIFF': (tiff(FLOAT.astype(np.float64)), 'has 1 channel of 64 bits (floating-point); convert', None),
    'complex TIFF': (tiff(FLOAT.astype(np.complex64)), 'has 1 channel of 64 bits (complex); convert', None),
    'int8 TIFF': (tiff(GREY.view(np.int8)), 'has 1 channel of 8 bits (signed); convert', None),
    '12 bit RGB TIFF': (
        geotiff(np.moveaxis(DEEP % 4096, 2, 0), photometric='rgb', nbits=12),
        'has 3 channels of 12 bits (unsigned); convert',
        None,
    ),
    'deep TIFF of three unmarked bands': (
        geotiff(np.moveaxis(DEEP, 2, 0), photometric='minisblack'),
        'has 3 channels of 16 bits (unsigned, not marked as RGB); convert',
        None,
    ),
    'deep TIFF by bands': (
        geotiff(np.moveaxis(DEEP, 2, 0), photometric='rgb', interleave='band'),
        'has 3 channels of 16 bits (unsigned, one channel after another); convert',
        None,
    ),
    'deep ZSTD TIFF': (
        geotiff(np.moveaxis(DEEP, 2, 0), photometric='rgb', compress='zstd'),
        "has 16 bits a channel and compression 'zstd'; compress it with deflate",
        None,
    ),
    'LAB TIFF': (pillow(Image.merge('LAB', Image.fromarray(RGB).split()), 'TIFF'), "has pixels of mode 'LAB'", None),
    'YCbCr TIFF': (pillow(RGB, 'TIFF', mode='YCbCr'), 'it stores colours as YCbCr without JPEG', None),
    'pages TIFF': (
        pillow(RGB, 'TIFF', save_all=True, append_images=[Image.fromarray(GREY)]),
        'holds several pictures (an animation or pages); save them one by one',
        None,
    ),
    'animated WEBP': (
        pillow(RGB, 'WEBP', save_all=True, append_images=[Image.fromarray(255 - RGB)]),
        'holds several pictures',
        None,
    ),
    'animated PNG': (
        pillow(RGB, 'PNG', save_all=True, append_images=[Image.fromarray(255 - RGB)]),
        'holds several pictures',
        None,
    ),
    'GIF': (pillow(GREY, 'GIF'), 'is a GIF; convert it to JPEG, PNG, TIFF, WebP or BMP', None),
}


class Echo(BasePredictor):
    """Its labels are of no interest; its results hold the image that it got."""

    def _segment(self, batch, *, confidence, probabilities):
        return [Prediction(np.zeros(image.shape[:2], np.uint8)) for image in batch]


def outcome(read):
    try:
        return read()
    except UserError as error:
        return str(error)


def ways(path, content, value_range):
    """What each command gets for a file, by name: the pixels, or the sentence."""
    step = {'type': 'LoadImageFromFile', '_scope_': 'volo_seg', 'range': value_range}
    init_default_scope('mmseg')
    loader = TRANSFORMS.build(dict(step))
    assert type(loader) is LoadImageFromFile
    reading, _ = image_pipeline([step, {'type': 'PackSegInputs'}])
    metadata = OnnxMetadata(('a',), ((0, 0, 0),), reading=reading)
    stored = OnnxMetadata.from_metadata(metadata.to_metadata(), name='m.onnx')
    yield 'train', outcome(lambda: loader({'img_path': str(path)})['img'])
    yield 'infer', outcome(lambda: Echo(('a',), [[0, 0, 0]], reading=reading)(path).image)
    yield 'infer of ONNX', outcome(lambda: read_image(path, reading=stored.reading))
    yield 'serve', outcome(lambda: decode_image(content, name=str(path), reading=reading))


@pytest.mark.parametrize('value_range', [None, RANGE], ids=['no range', 'range'])
@pytest.mark.parametrize('name', FILES)
def test_all_commands_agree(name, value_range, tmp_path):
    content, plain, ranged = FILES[name]
    expected = plain if value_range is None or ranged is None else ranged
    path = tmp_path / 'image'
    path.write_bytes(content)
    found = dict(ways(path, content, value_range))
    seen = inspect_pair((str(path), None), InspectionOptions(reading=Reading(value_range)))
    if isinstance(expected, str):
        first = found.pop('train')
        assert expected in first and str(path) in first and '\n' not in first
        assert set(found.values()) == {first}
        ((kind, _, sentence),) = seen.problems
        assert kind == 'unreadable' and expected.split(' (')[0].split('; ')[0] in sentence
    else:
        assert not seen.problems
        for way, pixels in found.items():
            assert pixels.dtype == np.uint8, way
            np.testing.assert_array_equal(pixels, bgr(expected), err_msg=way)


@pytest.mark.parametrize('name', ['deep RGB GeoTIFF', '12 bit grey TIFF', 'float32 grey TIFF', 'int16 grey TIFF'])
def test_rasters_have_the_same_pixels(name, tmp_path):
    (tmp_path / 'x.tif').write_bytes(FILES[name][0])
    with RasterSource(tmp_path / 'x.tif', model_range=RANGE) as source:
        pixels, _ = source.pixels(Area(0, 0, 24, 40))
    np.testing.assert_array_equal(np.moveaxis(pixels, 0, 2), bgr(FILES[name][2]))


def test_training_reads_plain_images_as_mmcv_does(tmp_path):
    for name in (
        'RGB JPEG 1',
        'RGB JPEG 6',
        'RGB PNG 1',
        'palette PNG',
        'RGBA PNG',
        'RGB BMP',
        'RGB WEBP 1',
        'RGB TIFF 1',
    ):
        (tmp_path / 'x').write_bytes(FILES[name][0])
        results = [load({'img_path': str(tmp_path / 'x')}) for load in (LoadImageFromFile(), MmcvLoader())]
        np.testing.assert_array_equal(results[0]['img'], results[1]['img'])
        assert results[0].keys() == results[1].keys() and results[0]['ori_shape'] == results[1]['ori_shape']


@pytest.mark.parametrize(
    'options',
    [{}, {'color_type': 'color_ignore_orientation'}, {'imdecode_backend': 'pillow'}],
    ids=['default', 'as stored', 'pillow'],
)
@pytest.mark.parametrize(
    'name', ['RGB JPEG 6', 'RGB PNG 6', 'RGBA TIFF', 'deep RGB PNG 1', 'deep RGB TIFF 1', 'pages TIFF']
)
def test_a_config_with_the_loader_of_mmcv_keeps_its_reading(name, options, tmp_path):
    (tmp_path / 'x').write_bytes(FILES[name][0])
    step = {'type': 'LoadImageFromFile', **options}
    reading, _ = image_pipeline([step, {'type': 'PackSegInputs'}])
    expected = MmcvLoader(**options)({'img_path': str(tmp_path / 'x')})['img']
    np.testing.assert_array_equal(read_image(tmp_path / 'x', reading=reading), expected)
    seen = inspect_pair((str(tmp_path / 'x'), None), InspectionOptions(reading=reading))
    assert not seen.problems


def test_the_config_in_a_checkpoint_may_name_the_loader_and_its_range():
    content = {'model': {'type': 'EncoderDecoder'}, 'test_dataloader': {'dataset': {}}}
    step = {'type': 'LoadImageFromFile', '_scope_': 'volo_seg', 'range': [0, 10000.5], 'backend_args': {'a': 'b'}}
    content['test_dataloader']['dataset']['pipeline'] = [step, {'type': 'PackSegInputs'}]
    found = safe_model_config(content, name='x.pth').test_dataloader.dataset.pipeline[0]
    assert reading_of(found) == Reading((0, 10000.5))
    for key, value in (('range', ['a', 'b']), ('range', 'file.txt'), ('_scope_', 'other'), ('color_type', 'x')):
        content['test_dataloader']['dataset']['pipeline'] = [{**step, key: value}]
        with pytest.raises(UserError, match=f'pipeline.0.{key}'):
            safe_model_config(content, name='x.pth')


@pytest.mark.parametrize('value', [(3, 3), (5, 1), (1,), (1, 2, 3), 7, 'ab', (0, float('nan')), (0, True), ('0', '1')])
def test_ranges_that_are_none(value):
    with pytest.raises(UserError, match='give two numbers, the first'):
        check_range(value)
    with pytest.raises(UserError, match='give two numbers, the first'):
        LoadImageFromFile(range=value)


def test_the_range_rule():
    """By hand, and for integers that float32 does not hold."""
    values = np.array([-np.inf, -5, 0, 1, 2, 4, 9, np.inf, np.nan], np.float32)
    assert to_8_bits(values, (0, 4), name='x').tolist() == [0, 0, 0, 64, 128, 255, 255, 255, 0]
    large = np.array([2**30, 2**30 + 1, 2**30 + 255], np.int32)
    assert to_8_bits(large, (2**30, 2**30 + 255), name='x').tolist() == [0, 1, 255]
    assert to_8_bits(np.array([0, 255, 256, 65535], np.uint16), None, name='x').tolist() == [0, 0, 1, 255]
    small = np.arange(256, dtype=np.uint8)
    assert to_8_bits(small, (10, 20), name='x') is small
    with pytest.raises(ImageError, match='x has values of int32; say which values are black'):
        to_8_bits(large, None, name='x')


def folders(root, train, val):
    """A data set of one training and one validation pair; images are arrays of 16 bits."""
    for split, values in (('train', train), ('val', val)):
        for kind in ('images', 'annotations'):
            (root / kind / split).mkdir(parents=True)
        cv2.imwrite(str(root / 'images' / split / 'a.png'), values)
        Image.fromarray((np.arange(24 * 40).reshape(24, 40) % 2).astype(np.uint8)).save(
            root / 'annotations' / split / 'a.png'
        )
    (root / 'classes.txt').write_text('one\ntwo\n')
    return root


def check(capsys, root, *options):
    words = ['--cfg-options', *options] if options else []
    status = run('check', [FOLDERS, '--data-root', str(root), '--nproc', '1', *words])
    return status, capsys.readouterr().out


def of_pipelines(value):
    return [
        f'train_dataloader.dataset.dataset.pipeline.0.range={value}',
        f'val_dataloader.dataset.pipeline.0.range={value}',
    ]


def test_check_prints_the_range_and_warns(tmp_path, capsys):
    low, wide = (RNG.integers(*ends, (24, 40, 3), dtype=np.uint16) for ends in ((100, 4001), (0, 60001)))
    dark = folders(tmp_path / 'dark', low, low[::-1])
    status, told = check(capsys, dark)
    assert status == 0 and f'images: values {low.min()} to {low.max()} (uint16)' in told
    assert 'of which training sees levels 0 to 15 of 255 by the upper 8 bits: nearly black; set range=(10' in told
    status, told = check(capsys, dark, *of_pipelines('[0,4100]'))
    assert status == 0 and 'warning' not in told.split('training can start')[0]
    status, told = check(capsys, dark, *of_pipelines('[0,2000]'))
    assert status == 0 and '% clipped by range=(0, 2000); set range=(10' in told
    status, told = check(capsys, folders(tmp_path / 'other', wide, low))
    assert status == 0 and 'images of val (values' in told and 'differ in range' in told
    status, told = check(capsys, folders(tmp_path / 'sound', wide, wide[::-1]))
    assert status == 0 and 'range=' not in told and 'differ' not in told


def test_check_gives_the_range_that_floats_need(tmp_path, capsys):
    root = folders(tmp_path, DEEP, DEEP)
    for split in ('train', 'val'):
        (root / 'images' / split / 'a.png').write_bytes(FILES['float32 grey TIFF'][0])
    status, told = check(capsys, root)
    assert (
        status == 1 and NEEDS_RANGE in told and f'images: values {FLOAT.min():g} to {FLOAT.max():g} (float32)' in told
    )
    assert check(capsys, root, *of_pipelines('[-100,6000]'))[0] == 0


@pytest.mark.parametrize('kind', ['PNG', 'WEBP', 'TIFF'])
def test_labels_are_turned_as_they_say(kind, tmp_path):
    """Both turned: no finding. Only the image: labels fall on the wrong pixels."""
    lossless = {'lossless': True} if kind == 'WEBP' else {}
    labels = (np.arange(24 * 40).reshape(24, 40) % 3).astype(np.uint8)
    (tmp_path / 'image').write_bytes(pillow(RGB, kind, orientation=6, **lossless))
    label_kind = 'PNG' if kind == 'WEBP' else kind
    for orientation, problems in ((6, []), (1, ['size']), (8, ['orientation'])):
        (tmp_path / 'mask').write_bytes(pillow(labels, label_kind, orientation=orientation))
        np.testing.assert_array_equal(
            decode_mask((tmp_path / 'mask').read_bytes(), where='mask'), TURN[orientation](labels)
        )
        seen = inspect_pair((str(tmp_path / 'image'), str(tmp_path / 'mask')), InspectionOptions(reading=Reading()))
        assert [kind for kind, *_ in seen.problems] == problems

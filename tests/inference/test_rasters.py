"""Rasters of any size against sliding windows in memory: the same labels for every budget, and whole files only."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import types
import zipfile

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import ConfigDict
from rasterio.transform import from_origin
from torch import nn

import volo_seg.models  # noqa: F401
from volo_seg.errors import UserError
from volo_seg.imageio import DEFAULT_READING
from volo_seg.inference.raster import blending
from volo_seg.inference.raster.plan import window_config
from volo_seg.inference.raster.segment import segment_raster
from volo_seg.inference.raster.source import RasterSource
from volo_seg.inference.raster.state import RasterState
from volo_seg.inference.raster.window_store import FileLogits, WindowStore
from volo_seg.io import open_locked
from volo_seg.models.resize.logit_source import TensorLogits, compute_labels, compute_labels_and_confidence
from volo_seg.windows import InferenceConfig, WindowGrid

from mmseg.registry import MODELS  # isort: skip
from mmseg.structures import SegDataSample  # isort: skip

pytestmark = pytest.mark.filterwarnings('ignore::rasterio.errors.NotGeoreferencedWarning')


@MODELS.register_module()
class DoubleBackbone(nn.Module):
    """One convolution in float64 of whatever comes, plus the place in the window, so that windows disagree."""

    def __init__(self, stride=8, slope=1.0):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride, 1)
        self.slope = slope

    def forward(self, x):
        x = self.conv(x.double())
        return (x + self.slope * torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype),)


def toy(classes=5, *, stride=8, test_cfg=None, preprocessor=None, **head):
    """What a predictor holds, around a toy network in float64 that always has the same weights."""
    options = {'num_classes': classes, 'in_channels': 6, 'in_index': 0, 'channels': 6, 'num_convs': 0, **head}
    normalise = {'mean': [120.0, 110.0, 100.0], 'std': [60.0, 50.0, 40.0], 'bgr_to_rgb': True, 'size': (32, 40)}
    model = MODELS.build(
        {
            'type': 'VOLOSegmentor',
            'data_preprocessor': {'type': 'mmseg.SegDataPreProcessor', **normalise, **(preprocessor or {})},
            'backbone': {'type': 'DoubleBackbone', 'stride': stride},
            'decode_head': {'type': 'FCNHead', 'concat_input': False, **options},
            'test_cfg': ConfigDict(test_cfg or {'mode': 'whole'}),
        }
    )
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, generator=generator)
    model.double().eval()
    names = tuple(f'class {i}' for i in range(max(classes, 2)))
    palette = np.random.default_rng(0).integers(0, 256, (len(names), 3), dtype=np.uint8)
    return types.SimpleNamespace(
        model=model, device=torch.device('cpu'), classes=names, palette=palette, reading=DEFAULT_READING
    )


def picture(height, width, bands=3, *, dtype='uint8', top=256, seed=0):
    """Random pixels (bands, height, width), smooth enough for regions."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, top, (bands, -(-height // 4), -(-width // 4)))
    return coarse.repeat(4, 1).repeat(4, 2)[:, :height, :width].astype(dtype)


def write(path, data, **options):
    profile = {'driver': 'GTiff', 'count': len(data), 'height': data.shape[1], 'width': data.shape[2]}
    with rasterio.open(path, 'w', dtype=data.dtype, **{**profile, **options}) as file:
        file.write(data)
    return path


def read(path):
    with rasterio.open(path) as file:
        return file.read(1)


def in_memory(network, data, **window):
    """Labels and confidence (percent) of ``data`` (RGB) by sliding windows over the whole image."""
    config = window_config(network.model, **window)
    options = {name: getattr(config, name) for name in ('mode', 'crop_size', 'stride', 'window_weights')}
    network.model.test_cfg = ConfigDict(options)
    sample = SegDataSample(metainfo={'ori_shape': data.shape[1:], 'img_shape': data.shape[1:]})
    inputs = {'inputs': [torch.from_numpy(data[::-1].copy())], 'data_samples': [sample]}
    with torch.no_grad():
        result = network.model.test_step(inputs)[0]
    labels = result.pred_sem_seg.data[0].numpy()
    logits = result.seg_logits.data
    if len(logits) == 1:
        share = torch.where(torch.from_numpy(labels) > 0, logits[0], 1 - logits[0])
    else:
        share = logits.softmax(0).amax(0)
    return labels, 100 * share.numpy()


@settings(max_examples=25, deadline=None)
@given(
    size=st.tuples(st.integers(9, 150), st.integers(9, 170)),
    crop=st.tuples(st.integers(16, 48), st.integers(16, 48)),
    share=st.floats(0.4, 1),
    weights=st.sampled_from(['uniform', 'hann', 'gaussian']),
    stride=st.sampled_from([1, 8]),
    classes=st.sampled_from([1, 5]),
    tile=st.sampled_from([16, 32, 64]),
    budgets=st.tuples(st.integers(0, 30000), st.integers(0, 10**6)),
)
def test_labels_equal_those_in_memory(tmp_path_factory, size, crop, share, weights, stride, classes, tile, budgets):
    """Whatever the windows, the blocks, what fits into memory and what waits on the disk."""
    folder = tmp_path_factory.mktemp('raster')
    data = picture(*size)
    write(folder / 'in.tif', data)
    options = {'num_classes': 2, 'out_channels': 1, 'threshold': 0.4} if classes == 1 else {}
    window = {
        'crop_size': crop,
        'stride': tuple(max(1, int(share * side)) for side in crop),
        'weights': weights,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name in ('volo_seg.inference.raster.blending.TILE', 'volo_seg.inference.raster.target.TILE'):
            patch.setattr(name, tile)
        found = []
        for budget in budgets:
            patch.setattr('volo_seg.inference.raster.segment.quarter_of_memory', lambda *_, budget=budget, **__: budget)
            network = toy(classes, stride=stride, **options)
            paths = segment_raster(
                network,
                folder / 'in.tif',
                folder / 'out.tif',
                kinds=('labels', 'confidence'),
                overwrite=True,
                **window,
            )
            found.append([read(path) for path in paths])
    labels, confidence = in_memory(network, data, **window)
    assert np.array_equal(found[0][0], labels)
    assert np.abs(found[0][1] - confidence).max() <= 0.5 + 1e-6
    assert np.array_equal(found[0][0], found[1][0]) and np.array_equal(found[0][1], found[1][1])


def run(tmp_path, data, *, network=None, profile=None, name='in.tif', **options):
    """Labels that ``data``, written to a file, gets."""
    write(tmp_path / name, data, **(profile or {}))
    segment_raster(network or toy(), tmp_path / name, tmp_path / 'out.tif', overwrite=True, **options)
    return read(tmp_path / 'out.tif')


def test_place_on_earth_palette_and_names_are_kept(tmp_path):
    transform = from_origin(500000, 5400000, 0.25, 0.5)
    run(tmp_path, picture(70, 300), profile={'crs': 'EPSG:32633', 'transform': transform})
    network = toy()
    with rasterio.open(tmp_path / 'out.tif') as file:
        assert file.crs.to_epsg() == 32633 and file.transform == transform
        assert (file.nodata, file.dtypes, file.shape) == (255, ('uint8',), (70, 300))
        assert file.profile['tiled'] and file.block_shapes == [(256, 256)] and file.compression.name == 'deflate'
        assert json.loads(file.tags()['CLASSES']) == list(network.classes)
        colours = file.colormap(1)
    assert [colours[i][:3] for i in range(5)] == [tuple(colour) for colour in network.palette.tolist()]
    assert colours[255] == (0, 0, 0, 0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['in.tif', 'out.tif']


def test_ground_control_points_are_kept(tmp_path):
    points = [
        rasterio.control.GroundControlPoint(row, col, 10.0 + col, 50.0 - row) for row, col in ((0, 0), (0, 9), (9, 0))
    ]
    run(tmp_path, picture(20, 30), profile={'gcps': points, 'crs': 'EPSG:4326'})
    with rasterio.open(tmp_path / 'out.tif') as file:
        found, crs = file.gcps
    assert [(p.row, p.col, p.x, p.y) for p in found] == [(p.row, p.col, p.x, p.y) for p in points]
    assert crs.to_epsg() == 4326


def test_more_than_255_classes(tmp_path):
    network = toy(300)
    labels = run(tmp_path, picture(40, 50), network=network, profile={'nodata': 0})
    assert labels.dtype == np.uint16 and labels.max() > 255
    with rasterio.open(tmp_path / 'out.tif') as file:
        assert file.nodata == 65535
        assert file.colormap(1)[299][:3] == tuple(network.palette[299].tolist())


def test_a_world_file_is_kept(tmp_path):
    transform = from_origin(500000, 5400000, 0.25, 0.5)
    (tmp_path / 'in.tfw').write_text('0.25\n0\n0\n-0.5\n500000.125\n5399999.75\n')
    run(tmp_path, picture(20, 30))
    with rasterio.open(tmp_path / 'out.tif') as file:
        assert file.transform == transform
    (tmp_path / 'in.tfw').write_text('no numbers')
    with pytest.raises(UserError, match=r"world file '.*in\.tfw' does not hold six numbers"):
        run(tmp_path, picture(20, 30))


def masked(kind, data, tmp_path, hole):
    """A file whose pixels in ``hole`` have no value, told in one of several ways."""
    shown = data.copy()
    path = tmp_path / f'{kind}.tif'
    if kind == 'nodata':
        shown[shown == 7], shown[:, hole] = 8, 7
        write(path, shown, nodata=7)
    elif kind == 'alpha':
        write(
            path, np.concatenate([shown, np.where(hole, 0, 255).astype(np.uint8)[None]]), photometric='rgb', alpha='yes'
        )
    elif kind in ('mask', 'mask file'):
        write(path, shown)
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=kind == 'mask'), rasterio.open(path, 'r+') as file:
            file.write_mask(~hole)
        assert (tmp_path / f'{kind}.tif.msk').exists() == (kind == 'mask file')
    else:
        shown = shown.astype(np.float32)
        shown[0][hole] = np.nan
        write(path, shown)
    return path


@pytest.mark.parametrize('kind', ['nodata', 'alpha', 'mask', 'mask file', 'nan'])
def test_pixels_without_a_value_get_none(tmp_path, kind):
    """All others get the labels of the whole image; windows without any value are not computed."""
    data = picture(120, 200)
    hole = np.zeros((120, 200), bool)
    hole[:, :90], hole[50:60, 150:170] = True, True
    path = masked(kind, data, tmp_path, hole)
    network = toy()
    batches = []
    network.model.backbone.register_forward_hook(lambda module, inputs, outputs: batches.append(len(inputs[0])))
    options = {'value_range': (0, 255)} if kind == 'nan' else {}
    window = {'crop_size': (32, 40), 'stride': (24, 30)}
    paths = segment_raster(network, path, tmp_path / 'out.tif', kinds=('labels', 'confidence'), **window, **options)
    computed = sum(batches)
    labels, confidence = map(read, paths)
    assert (labels[hole] == 255).all() and (confidence[hole] == 255).all()
    with rasterio.open(path) as file:
        seen = np.nan_to_num(file.read([1, 2, 3]))
    expected, share = in_memory(network, seen, **window)
    assert np.array_equal(labels[~hole], expected[~hole])
    assert np.abs(confidence - share)[~hole].max() <= 0.5 + 1e-6
    assert computed < sum(batches) - computed


def test_a_raster_without_any_value(tmp_path):
    labels = run(tmp_path, np.zeros((3, 40, 60), np.uint8), profile={'nodata': 0})
    assert (labels == 255).all()


@pytest.mark.parametrize(
    ('dtype', 'scale', 'offset'), [('uint16', 40, 1000), ('int16', 100, -9000), ('float32', 0.01, -1)]
)
def test_other_types_are_spread_over_a_range(tmp_path, dtype, scale, offset):
    data = picture(50, 70)
    spread = (data.astype(np.float64) * scale + offset).astype(dtype)
    labels = run(tmp_path, spread, value_range=(offset, 255 * scale + offset))
    assert np.array_equal(labels, run(tmp_path, data))


def test_values_beyond_the_range_are_cut_off(tmp_path):
    data = picture(50, 70)
    wild = data.astype(np.float32)
    wild[data == wild.max()], wild[data == wild.min()] = np.inf, -1e9
    with RasterSource(write(tmp_path / 'wild.tif', wild), value_range=(data.min(), data.max())) as source:
        pixels, valid = source.pixels(blending.Area(0, 0, 50, 70))
    assert valid.all() and pixels.min() == 0 and pixels.max() == 255


def test_bands(tmp_path):
    """By their marks, in the order that is asked for, one for all three."""
    data = picture(50, 70, 5)
    chosen = run(tmp_path, data, bands=[5, 1, 3])
    assert np.array_equal(chosen, run(tmp_path, data[[4, 0, 2]]))
    grey = run(tmp_path, data[:1])
    assert np.array_equal(grey, run(tmp_path, data[[0, 0, 0]]))
    assert np.array_equal(grey, run(tmp_path, data, bands=[1]))
    marked = {'photometric': 'rgb'}
    assert np.array_equal(run(tmp_path, data[:4], profile=marked), run(tmp_path, data[:3]))


def test_windows_go_through_the_network_in_batches(tmp_path):
    network = toy()
    batches = []
    network.model.backbone.register_forward_hook(lambda module, inputs, outputs: batches.append(len(inputs[0])))
    seen = []
    window = {'crop_size': (32, 40), 'stride': (24, 30), 'batch_windows': 4}
    labels = run(tmp_path, picture(80, 100), network=network, progress=lambda *numbers: seen.append(numbers), **window)
    assert batches == [4, 4, 1]
    assert seen[-1] == (9, 9) and seen == sorted(seen)
    assert np.array_equal(labels, run(tmp_path, picture(80, 100), **{**window, 'batch_windows': 1}))


def test_windows_of_the_config():
    sliding = {'mode': 'slide', 'crop_size': (32, 40), 'stride': (20, 25), 'window_weights': 'hann', 'batch_windows': 3}
    config = window_config(toy(test_cfg=sliding).model)
    assert config == InferenceConfig('slide', (32, 40), (20, 25), 'hann', 3)
    config = window_config(toy(test_cfg=sliding).model, crop_size=(16, 16), weights='gaussian', batch=2)
    assert config == InferenceConfig('slide', (16, 16), (12, 12), 'gaussian', 2)
    assert window_config(toy().model) == InferenceConfig('slide', (32, 40), (24, 30), 'uniform', 'auto')


def test_interrupted_runs_leave_nothing_and_break_nothing(tmp_path):
    source = write(tmp_path / 'in.tif', picture(100, 100))
    (tmp_path / 'out.tif').write_bytes(b'yesterday')

    def interrupt(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        segment_raster(toy(), source, tmp_path / 'out.tif', overwrite=True, progress=interrupt)
    assert (tmp_path / 'out.tif').read_bytes() == b'yesterday'
    assert_clean()
    assert sorted(p.name for p in tmp_path.iterdir()) == ['in.tif', 'out.tif']


WINDOW = {'crop_size': (64, 80), 'stride': (48, 60), 'weights': 'hann'}
BOTH = ('labels', 'confidence')


def sliding_batches(network):
    """The input of each forward pass of ``network`` from now on."""
    batches = []
    network.model.backbone.register_forward_hook(lambda _, inputs, __: batches.append(inputs[0].numpy().tobytes()))
    return batches


def interrupt_after_rows(tmp_path, rows=1, **options):
    """Run on in.tif until the state has ``rows`` rows of blocks, and interrupt."""
    finished, enough = set(), threading.Event()
    write_whole = RasterState.write

    def write_counted(self, area, values):
        write_whole(self, area, values)
        finished.update({self.rows} - {0})
        if len(finished) >= rows:
            enough.set()

    def interrupt(done, total):
        if enough.wait(60 if done >= total - 6 else 0):  # the thread that writes can be late
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RasterState, 'write', write_counted)
        with pytest.raises(KeyboardInterrupt):
            segment_raster(toy(), tmp_path / 'in.tif', tmp_path / 'out.tif', progress=interrupt, **WINDOW, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['in.tif', 'out.tif.resume']
    assert_clean()


@pytest.mark.parametrize('batch', [1, 5])
@pytest.mark.parametrize('nodata', [False, True])
def test_a_resumed_run_equals_a_whole_one(tmp_path, batch, nodata):
    """The same pixels from the same batches, and no finished row is computed again."""
    data = picture(900, 500)
    if nodata:
        data[data == 7] = 8
        data[:, :400, :170] = data[:, 600:700] = 7
    write(tmp_path / 'in.tif', data, **({'nodata': 7} if nodata else {}))
    options = {'kinds': BOTH, 'batch_windows': batch}
    network = toy()
    batches = sliding_batches(network)
    whole = [read(p) for p in segment_raster(network, tmp_path / 'in.tif', tmp_path / 'w.tif', **WINDOW, **options)]
    for path in tmp_path.glob('w*'):
        path.unlink()
    interrupt_after_rows(tmp_path, 2, **options)
    network = toy()
    resumed = sliding_batches(network)
    options |= {'resume': True, 'memory': 64}
    paths = segment_raster(network, tmp_path / 'in.tif', tmp_path / 'out.tif', **WINDOW, **options)
    for path, expected in zip(paths, whole, strict=True):
        assert np.array_equal(read(path), expected)
    assert 0 < len(resumed) < 0.6 * len(batches) and resumed == batches[-len(resumed) :]
    assert sorted(path.name for path in tmp_path.iterdir()) == ['in.tif', 'out.tif', 'out_confidence.tif']


KILL = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from test_rasters import WINDOW, RasterState, segment_raster, toy
written = RasterState.write
def write(self, area, values):
    written(self, area, values)
    if self.rows >= 512:
        os.kill(os.getpid(), signal.SIGKILL)
RasterState.write = write
segment_raster(toy(), 'in.tif', 'out.tif', memory=2, **WINDOW)
"""


@pytest.mark.skipif(sys.platform == 'win32', reason='has no such signals')
@pytest.mark.parametrize('lost', [0, 1])
def test_a_killed_run_is_resumed(tmp_path, lost):
    """After kill -9, also where the last byte of the state was lost and with it the last row."""
    write(tmp_path / 'in.tif', picture(700, 500))
    code = KILL.format(tests=os.path.dirname(__file__))
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    state = tmp_path / 'out.tif.resume'
    assert not (tmp_path / 'out.tif').exists()
    os.truncate(state, state.stat().st_size - lost)
    network = toy()
    batches = sliding_batches(network)
    segment_raster(network, tmp_path / 'in.tif', tmp_path / 'out.tif', resume=True, **WINDOW)
    computed = len(batches)
    segment_raster(network, tmp_path / 'in.tif', tmp_path / 'whole.tif', **WINDOW)
    assert np.array_equal(read(tmp_path / 'out.tif'), read(tmp_path / 'whole.tif'))
    assert computed < (0.8 if lost else 0.5) * (len(batches) - computed)
    assert not state.exists()


def test_a_run_that_failed_at_the_end_computes_nothing_again(tmp_path, monkeypatch):
    write(tmp_path / 'in.tif', picture(300, 500))
    with monkeypatch.context() as patch:
        patch.setattr('volo_seg.inference.raster.target.RasterTarget.publish', lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            segment_raster(toy(), tmp_path / 'in.tif', tmp_path / 'out.tif', **WINDOW)
    network = toy()
    batches = sliding_batches(network)
    segment_raster(network, tmp_path / 'in.tif', tmp_path / 'out.tif', resume=True, **WINDOW)
    assert not batches
    assert np.array_equal(read(tmp_path / 'out.tif'), in_memory(toy(), picture(300, 500), **WINDOW)[0])


def test_a_state_of_another_run_is_refused(tmp_path):
    source = write(tmp_path / 'in.tif', picture(600, 500))
    interrupt_after_rows(tmp_path)
    state = tmp_path / 'out.tif.resume'
    content = state.read_bytes()
    other, flipped = toy(), toy(preprocessor={'bgr_to_rgb': False})
    with torch.no_grad():
        other.model.backbone.conv.bias[0] += 1
    for network, options, different in (
        (other, {}, 'model'),
        (flipped, {}, 'model'),
        (toy(), {'stride': (48, 50)}, 'set of options'),
        (toy(), {'kinds': BOTH}, 'set of options'),
        (other, {'bands': [3, 2, 1]}, 'source and model'),
    ):
        with pytest.raises(UserError, match=rf"out\.tif\.resume' is of a run with another {different}; run the same"):
            segment_raster(network, source, tmp_path / 'out.tif', resume=True, **{**WINDOW, **options})
    write(source, picture(600, 500, seed=1))
    with pytest.raises(UserError, match='is of a run with another source; '):
        segment_raster(toy(), source, tmp_path / 'out.tif', resume=True, **WINDOW)
    with pytest.raises(UserError, match='interrupted run; add --resume to continue, --overwrite to start again or'):
        segment_raster(toy(), source, tmp_path / 'out.tif', **WINDOW)
    with open_locked(state, wait=False), pytest.raises(UserError, match="resume' is in use by another run; wait"):
        segment_raster(toy(), source, tmp_path / 'out.tif', resume=True, **WINDOW)
    assert state.read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ['in.tif', 'out.tif.resume']
    state.write_bytes(b'hello\n')
    with pytest.raises(UserError, match=r"resume' is damaged \(it does not begin with a line of JSON\); add"):
        segment_raster(toy(), source, tmp_path / 'out.tif', resume=True, **WINDOW)
    segment_raster(toy(), source, tmp_path / 'out.tif', overwrite=True, **WINDOW)
    assert np.array_equal(read(tmp_path / 'out.tif'), in_memory(toy(), picture(600, 500, seed=1), **WINDOW)[0])
    assert not state.exists()


def test_overviews_have_the_nearest_pixels(tmp_path):
    segment_raster(toy(), write(tmp_path / 'in.tif', picture(512, 1024)), tmp_path / 'out.tif', kinds=BOTH, **WINDOW)
    for name in ('out.tif', 'out_confidence.tif'):
        full = read(tmp_path / name)
        with rasterio.open(tmp_path / name) as file:
            assert file.overviews(1) == [2, 4]
        for level, factor in enumerate((2, 4)):
            with rasterio.open(tmp_path / name, overview_level=level) as file:
                assert np.array_equal(file.read(1), full[::factor, ::factor])
                assert file.compression.name == 'deflate' and file.block_shapes == [(256, 256)]
    assert not np.array_equal(full[::2, ::2], full[1::2, 1::2])
    run(tmp_path, picture(256, 200))
    with rasterio.open(tmp_path / 'out.tif') as file:
        assert file.overviews(1) == []


def assert_clean():
    assert not torch.is_inference_mode_enabled()
    assert not [thread.name for thread in threading.enumerate() if 'volo-seg' in thread.name]


def test_a_raster_that_is_cut_off(tmp_path):
    source = write(tmp_path / 'in.tif', picture(300, 300), tiled=True, blockxsize=64, blockysize=64)
    with open(source, 'r+b') as file:
        file.truncate(source.stat().st_size // 2)
    with pytest.raises(UserError, match=r"in.tif' is damaged or (cut off: the pixels at row \d+|not an image)"):
        segment_raster(toy(), source, tmp_path / 'out.tif')
    assert [p.name for p in tmp_path.iterdir()] == ['in.tif']


def test_damage_that_gdal_does_not_notice(tmp_path):
    """The checksum of deflate, and PNG files that are cut off, of which GDAL returns zeros."""
    random = np.random.default_rng(0).integers(0, 256, (3, 96, 96), dtype=np.uint8)
    smooth = np.repeat(random, 4, axis=2)
    source = write(tmp_path / 'in.tif', smooth, compress='deflate')
    content = bytearray(source.read_bytes())
    content[len(content) // 2] ^= 8
    source.write_bytes(content)
    with pytest.raises(UserError, match=r"in.tif' is damaged or cut off"):
        segment_raster(toy(), source, tmp_path / 'out.tif')
    picture_file = write(tmp_path / 'in.png', smooth, driver='PNG')
    picture_file.write_bytes(picture_file.read_bytes()[:20_000])
    with pytest.raises(UserError, match=r"in.png' is damaged or cut off"):
        segment_raster(toy(), picture_file, tmp_path / 'out.tif')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['in.png', 'in.tif']


@pytest.mark.skipif(sys.platform == 'win32', reason='limits the size of files')
@pytest.mark.parametrize('bytes_left', [200, 2000, 4000])
def test_a_full_disk(tmp_path, bytes_left):
    """At the start, in the middle, and for what is written when the file is closed."""
    import resource

    source = write(tmp_path / 'in.tif', picture(300, 600))
    network = toy()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, limits[1]))
        with pytest.raises(UserError, match=r"out.tif' cannot be written \(.*\); free some space or name another"):
            segment_raster(network, source, tmp_path / 'out.tif')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_clean()
    assert [p.name for p in tmp_path.iterdir()] == ['in.tif']


def test_a_failure_in_the_middle_ends_all_threads(tmp_path, monkeypatch):
    def fail(self, area, values):
        raise UserError('no more room')

    monkeypatch.setattr('volo_seg.inference.raster.target.RasterTarget.write', fail)
    source = write(tmp_path / 'in.tif', picture(600, 800))
    with pytest.raises(UserError, match='no more room') as error:
        segment_raster(toy(), source, tmp_path / 'out.tif')
    assert error.tb  # which keeps alive whatever was not ended
    assert_clean()
    assert [p.name for p in tmp_path.iterdir()] == ['in.tif']


def broken(network):
    network.model.test_cfg = None
    network.model.data_preprocessor.size = None
    return network


MISTAKES = {
    'no file': ({'source': 'none.tif'}, "none.tif' does not exist or is not a file"),
    'a network path': ({'source': '/vsicurl/x.tif'}, "'/vsicurl/x.tif' does not exist or is not a file"),
    'no image': ({'content': b'hello'}, "in.tif' is damaged or not an image ("),
    'empty': ({'content': b''}, "in.tif' is damaged or not an image ("),
    'no such band': ({'bands': [1, 2, 4]}, "bands [1, 2, 4] of '{}': give one or three numbers from 1 to 3"),
    'two bands': ({'bands': [1, 2]}, "bands [1, 2] of '{}': give one or three numbers from 1 to 3"),
    'five bands': (
        {'data': picture(20, 20, 5)},
        'has 5 bands (gray, undefined, undefined, undefined, undefined); say which are red, green and blue, such as '
        '--bands 3 2 1',
    ),
    '16 bit': (
        {'data': picture(20, 20, dtype='uint16')},
        'is of uint16, not 8 bit; say which values are black and white, such as --range 0 10000',
    ),
    'complex': ({'data': picture(20, 20, dtype='complex64')}, 'has complex numbers; turn them into intensities first'),
    'palette': ({'palette': True}, 'has a palette; turn it into colours first (gdal_translate -expand rgb)'),
    'range': ({'value_range': (9, 9)}, 'range 9 9: give two numbers, the first (black) below the second (white)'),
    'endless range': ({'value_range': (0, float('inf'))}, 'range 0 inf: give two numbers'),
    'suffix': ({'target': 'out.png'}, "out.png' must end in .tif or .tiff"),
    'itself': ({'target': 'in.tif', 'overwrite': True}, "in.tif' is the input; give another name"),
    'there already': ({'target': 'there.tif'}, "there.tif' exists already; add --overwrite or give another name"),
    'folder': ({'target': 'folder.tif'}, "folder.tif' is a folder; give the name of a file"),
    'below a file': ({'target': 'in.tif/out.tif'}, "out.tif' cannot be written ("),
    'kind': ({'kinds': ['label']}, "kinds ['label']: choose from labels, confidence"),
    'no kind': ({'kinds': []}, 'kinds []: choose from labels, confidence'),
    'stride': (
        {'crop_size': (16, 16), 'stride': (17, 16)},
        'test_cfg.stride=(17, 16) is larger than test_cfg.crop_size=(16, 16) and leaves pixels between windows',
    ),
    'weights': ({'weights': 'hamming'}, "test_cfg.window_weights='hamming' is not known; choose 'uniform', 'hann' or"),
    'memory': (
        {'memory': 0.01},
        'memory of 0.01 MiB is too little for windows of 20 x 20 pixels and 5 classes; allow 1 or more',
    ),
    'no memory': ({'memory': float('nan')}, 'memory of nan MiB is too little'),
    'no window': (
        {'network': broken(toy())},
        'the config has no size of windows; give one, such as --crop-size 512',
    ),
    'another model': (
        {'network': types.SimpleNamespace(model=nn.Identity())},
        "rasters need model.type=VOLOSegmentor, and this config has 'Identity'",
    ),
    'padding': (
        {'network': toy(preprocessor={'test_cfg': {'size_divisor': 32}})},
        'model.data_preprocessor.test_cfg pads images, and rasters are cut into windows as they are; add --cfg-options',
    ),
}


@pytest.mark.parametrize('name', MISTAKES)
def test_mistakes_get_one_sentence(tmp_path, name):
    options, message = MISTAKES[name]
    options = dict(options)
    path = tmp_path / 'in.tif'
    (tmp_path / 'folder.tif').mkdir()
    (tmp_path / 'there.tif').write_bytes(b'kept')
    palette = options.pop('palette', False)
    write(path, options.pop('data', picture(20, 20, 1 if palette else 3)))
    if palette:
        with rasterio.open(path, 'r+') as file:
            file.write_colormap(1, {0: (1, 2, 3, 255)})
    if 'content' in options:
        path.write_bytes(options.pop('content'))
    before = sorted(tmp_path.iterdir())
    source, target = tmp_path / options.pop('source', 'in.tif'), tmp_path / options.pop('target', 'out.tif')
    with pytest.raises(UserError) as error:
        segment_raster(options.pop('network', None) or toy(), source, target, **options)
    assert message.format(path) in str(error.value)
    assert '\n' not in str(error.value)
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / 'there.tif').read_bytes() == b'kept'


@pytest.fixture
def server():
    """A server on the loopback interface in a process of its own; its log has one line for each request."""
    code = (
        'import http.server, sys\n'
        'server = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)\n'
        'print(server.server_port, flush=True)\nserver.serve_forever()'
    )
    with tempfile.TemporaryFile('w+') as log:
        process = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=log, text=True)

        def requests():
            log.seek(0)
            return log.read().splitlines()

        yield types.SimpleNamespace(url=f'http://127.0.0.1:{int(process.stdout.readline())}', requests=requests)
        process.kill()
        process.wait()
        process.stdout.close()


def virtual(named):
    """A VRT file whose pixels are those of the file or URL ``named``."""
    source = f'<SourceFilename relativeToVRT="0">{named}</SourceFilename><SourceBand>1</SourceBand>'
    band = f'<VRTRasterBand dataType="Byte" band="1"><SimpleSource>{source}</SimpleSource></VRTRasterBand>'
    return f'<VRTDataset rasterXSize="60" rasterYSize="40">{band}</VRTDataset>'


@pytest.mark.parametrize('place', ['file', 'url', 'zip'])
def test_files_that_name_others_are_refused(tmp_path, server, place):
    """A VRT, under any name: neither the file nor the URL that it names is read."""
    secret = write(tmp_path / 'secret.tif', picture(40, 60, 1))
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as archive:
        archive.write(secret, 'secret.tif')
    named = {'file': secret, 'url': f'/vsicurl/{server.url}/x.tif', 'zip': f'/vsizip/{tmp_path}/a.zip/secret.tif'}[
        place
    ]
    (tmp_path / 'in.tif').write_text(virtual(named))
    with pytest.raises(UserError, match=r"in\.tif' is damaged or not an image \(.*give a TIFF, PNG, JPEG") as error:
        segment_raster(toy(), tmp_path / 'in.tif', tmp_path / 'out.tif')
    assert '\n' not in str(error.value) and not (tmp_path / 'out.tif').exists()
    assert not server.requests()
    if place == 'url':  # the server counts: GDAL reads the URL where VRT is allowed
        with pytest.raises(rasterio.errors.RasterioIOError), rasterio.open(tmp_path / 'in.tif') as file:
            file.read()
        assert server.requests()


@pytest.mark.parametrize('suffix', ['.ovr', '.msk', '.aux.xml', '.msk.ovr', '.msk.aux.xml', '.msk.msk'])
def test_files_beside_a_raster_name_no_others(tmp_path, server, suffix):
    source = write(tmp_path / 'in.tif', picture(40, 60))
    named = f'/vsicurl/{server.url}/x.tif'
    if suffix.startswith('.msk.'):
        write(tmp_path / 'in.tif.msk', np.full((1, 40, 60), 255, np.uint8))
    entry = f'<Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">{named}</MDI></Metadata>'
    (tmp_path / f'in.tif{suffix}').write_text(
        f'<PAMDataset>{entry}</PAMDataset>' if suffix.endswith('.xml') else virtual(named)
    )
    if suffix == '.msk':
        with pytest.raises(UserError, match=r"in\.tif\.msk' is damaged or not an image"):
            segment_raster(toy(), source, tmp_path / 'out.tif')
    else:
        segment_raster(toy(), source, tmp_path / 'out.tif')
        assert (read(tmp_path / 'out.tif') != 255).all()
    assert not server.requests()


def test_a_tag_that_names_another_file(tmp_path, server):
    source = write(tmp_path / 'in.tif', picture(40, 60))
    with rasterio.open(source, 'r+') as file:
        file.update_tags(ns='OVERVIEWS', OVERVIEW_FILE=f'/vsicurl/{server.url}/x.tif')
    with pytest.raises(UserError, match=r"in\.tif' names another file for its overviews"):
        segment_raster(toy(), source, tmp_path / 'out.tif')
    assert not server.requests()


@pytest.mark.skipif(sys.platform == 'win32', reason='has no named pipes')
def test_pipes_devices_and_masks_of_another_size(tmp_path):
    os.mkfifo(tmp_path / 'in.tif')
    with pytest.raises(UserError, match=r"in\.tif' does not exist or is not a file \(it is a pipe"):
        segment_raster(toy(), tmp_path / 'in.tif', tmp_path / 'out.tif')
    source = write(tmp_path / 'real.tif', picture(40, 60))
    write(tmp_path / 'real.tif.msk', np.zeros((1, 4, 6), np.uint8))
    with pytest.raises(UserError, match=r"real\.tif\.msk' has another size than its raster"):
        segment_raster(toy(), source, tmp_path / 'out.tif')


def test_missing_package(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'rasterio', None)
    with pytest.raises(UserError, match=r"rasters need the package rasterio: pip install 'volo-seg\[geo\]'"):
        RasterSource(tmp_path / 'in.tif')


def test_maps_wait_in_memory_then_on_the_disk(tmp_path):
    maps = [torch.randn(5, 4, 6) for _ in range(6)]
    with WindowStore(budget=2 * maps[0].nbytes, folder=tmp_path) as store:
        kept = [store.put(part) for part in maps[:4]]
        assert [isinstance(rows, FileLogits) for rows in kept] == [False, False, True, True]
        store.drop(kept[2])
        store.drop(kept[0])
        kept += [store.put(part) for part in maps[4:]]
        assert [isinstance(rows, FileLogits) for rows in kept[4:]] == [False, True]
        assert (store.in_memory, store.on_disk) == (2 * maps[0].nbytes, 2 * maps[0].nbytes)
        for index in (1, 3, 4, 5):
            assert torch.equal(kept[index].rows(1, 4), maps[index].permute(1, 2, 0)[1:4])
            assert kept[index].rows(1, 4).is_contiguous()
        assert not list(tmp_path.iterdir())


def test_maps_leave_when_their_neighbours_are_there(tmp_path):
    """Memory and scratch file hold what two rows of windows need, not what the image needs."""
    grid = WindowGrid((600, 60), crop_size=(40, 40), stride=(20, 20))
    network = toy()
    with WindowStore(budget=10 * 5 * 25 * 8, folder=tmp_path) as store:
        blend = blending.Blend(grid, weights='hann', store=store, resized=network.model.resize_logits, budget=10**6)
        seen = []
        for top, left in grid:
            seen += [area for area, _ in blend.finished(top)]
            blend.add(top, left, torch.randn(5, 5, 5, dtype=torch.float64))
        seen += [area for area, rows in blend.finished(600) if rows is not None]
        assert [area.top for area in seen] == [0, 256, 512] and sum(area.height for area in seen) == 600
        assert store.in_memory == 0 and not blend.windows
        live = -(-(256 + 2 * 40) // 20) * len(grid.lefts)
        assert 0 < store.on_disk <= (live - 10) * 5 * 25 * 8


def test_no_room_for_maps(tmp_path):
    with WindowStore(budget=0, folder=tmp_path / 'none') as store, pytest.raises(UserError) as error:
        store.put(torch.zeros(2, 3, 4))
    assert 'no room for intermediate results in ' in str(error.value)
    assert str(error.value).endswith('; free some space, or allow more memory')


@pytest.mark.parametrize('channels', [1, 2, 7])
def test_labels_and_confidence(channels):
    logits = torch.randn(channels, 30, 20, dtype=torch.float64)
    threshold = 0.3 if channels == 1 else None
    labels, confidence = compute_labels_and_confidence(TensorLogits(logits), budget=5000, threshold=threshold)
    assert torch.equal(labels, compute_labels(TensorLogits(logits), budget=5000, threshold=threshold)[0].long())
    shares = torch.cat([-logits, logits]).sigmoid() if channels == 1 else logits.softmax(0)
    torch.testing.assert_close(confidence, shares.gather(0, labels[None])[0])


MEMORY = """
import resource, sys, types
sys.path.insert(0, {tests!r})
import numpy as np, rasterio
from test_rasters import picture, toy
from volo_seg.inference.raster.segment import segment_raster

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (2**20 if sys.platform == 'darwin' else 2**10)

def make(path, height, width):
    options = dict(driver='GTiff', count=3, height=height, width=width, dtype='uint8', tiled=True, compress='deflate')
    band = picture(256, width)
    with rasterio.open(path, 'w', **options) as file:
        for top in range(0, height, 256):
            rows = min(256, height - top)
            file.write(band[:, :rows], window=rasterio.windows.Window(0, top, width, rows))

network = toy(40)
network.model.float()
network.model.backbone.forward = lambda x: (network.model.backbone.conv(x),)
for name, height, width in (('small', 400, 400), ('wide', 400, 6000), ('high', 6000, 400), ('large', 2000, 2000)):
    make(name + '.tif', height, width)
    segment_raster(network, name + '.tif', name + '_out.tif', crop_size=(256, 256), stride=(192, 192), memory=24)
    print(name, peak())
"""


@pytest.mark.skipif(sys.platform == 'win32', reason='has no resource usage')
def test_memory_does_not_grow_with_the_image(tmp_path):
    """In 24 MiB: the logits of the largest image would take 640 MB, one row of windows of the widest 250 MB."""
    code = MEMORY.format(tests=os.path.dirname(__file__))
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    peaks = {name: int(value) for name, value in map(str.split, done.stdout.splitlines()[-4:])}
    assert set(peaks) == {'small', 'wide', 'high', 'large'}
    assert max(peaks.values()) - peaks['small'] < 40, peaks


def test_command(tmp_path, monkeypatch, capsys):
    from volo_seg.commands import run as run_command

    monkeypatch.setattr('volo_seg.inference.predictor.Predictor', lambda *_, **__: toy())
    write(tmp_path / 'in.tif', picture(60, 90, dtype='uint16', top=5000))
    words = ['none.py', 'none.pth', str(tmp_path / 'in.tif'), str(tmp_path / 'new' / 'out.tif')]
    words += [
        '--crop-size',
        '32',
        '--stride',
        '24',
        '16',
        '--weights',
        'hann',
        '--memory',
        '64',
        '--batch-windows',
        '2',
    ]
    words += ['--range', '0', '5000', '--bands', '3', '2', '1', '--kinds', 'labels', 'confidence']
    assert run_command('raster', words) == 0
    assert capsys.readouterr().out.split() == [
        'wrote',
        str(tmp_path / 'new' / 'out.tif'),
        'wrote',
        str(tmp_path / 'new' / 'out_confidence.tif'),
    ]
    assert run_command('raster', words) == 2
    assert "out.tif' exists already; add --overwrite" in capsys.readouterr().err
    for flag in ('--crop-size', '--stride'):
        assert run_command('raster', [*words, '--overwrite', flag, '1', '2', '3']) == 2
        assert f'error: {flag} 1 2 3: give one or two numbers of pixels above 0' in capsys.readouterr().err
    assert run_command('raster', [*words, '--overwrite', '--batch-windows', 'all']) == 2
    assert "test_cfg.batch_windows='all' must be a number" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == 'win32', reason='has no such signals')
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_without_half_files(tmp_path, monkeypatch, capsys, number):
    """Ctrl-C, and what a scheduler sends."""
    from volo_seg.commands import run as run_command

    network = toy()
    network.model.backbone.register_forward_hook(lambda *_: signal.raise_signal(number))
    monkeypatch.setattr('volo_seg.inference.predictor.Predictor', lambda *_, **__: network)
    write(tmp_path / 'in.tif', picture(60, 90))
    before = signal.getsignal(signal.SIGTERM)
    words = ['none.py', 'none.pth', str(tmp_path / 'in.tif'), str(tmp_path / 'out.tif')]
    assert run_command('raster', words) == 128 + number
    assert capsys.readouterr().err == '\ninterrupted; nothing was written\n'
    assert [p.name for p in tmp_path.iterdir()] == ['in.tif']
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.skipif(sys.platform == 'win32', reason='has no such signals')
def test_the_command_continues_after_a_signal(tmp_path, monkeypatch, capsys):
    from volo_seg.commands import run as run_command

    network = toy()

    rows = []
    finished = RasterState.write

    def write_counted(self, area, values):
        finished(self, area, values)
        rows.append(self.rows)

    def interrupt(*_):
        if any(rows):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(RasterState, 'write', write_counted)
    hook = network.model.backbone.register_forward_hook(interrupt)
    monkeypatch.setattr('volo_seg.inference.predictor.Predictor', lambda *_, **__: network)
    write(tmp_path / 'in.tif', picture(1200, 300))
    words = ['none.py', 'none.pth', str(tmp_path / 'in.tif'), str(tmp_path / 'out.tif'), '--crop-size', '64']
    assert run_command('raster', words) == 130
    assert capsys.readouterr().err == '\ninterrupted; --resume continues\n'
    hook.remove()
    assert run_command('raster', words) == 2
    assert 'add --resume to continue' in capsys.readouterr().err
    assert run_command('raster', [*words, '--resume']) == 0
    assert np.array_equal(read(tmp_path / 'out.tif'), in_memory(toy(), picture(1200, 300), crop_size=(64, 64))[0])

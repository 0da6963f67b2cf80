"""OnnxPredictor: what Predictor says, without PyTorch."""

import dataclasses
import subprocess
import sys

import cv2
import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from volo_seg.errors import UserError
from volo_seg.export.metadata import make_metadata
from volo_seg.export.onnx_export import export_onnx, make_graph, with_metadata
from volo_seg.export.whole_image import WholeImage
from volo_seg.inference import OnnxPredictor, Predictor, load_predictor
from volo_seg.inference.exported_predictor import resize_image
from volo_seg.inference.onnx_metadata import InputSpec, OnnxMetadata, ResizeSpec
from volo_seg.inference.pipeline import image_pipeline
from volo_seg.inference.resizing import enlarged_rows, prediction_from_logits

from onnx_models import CLASSES, config_of, network_of  # isort: skip

SIZES = ((40, 56), (40, 56), (37, 91), (64, 48), (1, 1), (3, 100), (40, 56))
RULES = {
    'as it is': {},
    'longer and shorter side': {'resize': {'scale': (96, 48), 'keep_ratio': True}},
    'one size': {'resize': {'scale': (70, 50), 'keep_ratio': False}},
    'a factor': {'resize': {'scale_factor': 1.5, 'keep_ratio': True}},
    'windows': {'test_cfg': {'mode': 'slide', 'crop_size': (32, 40), 'stride': (20, 24)}},
    'windows without seams': {
        'resize': {'scale': (120, 60), 'keep_ratio': True},
        'test_cfg': {'mode': 'slide', 'crop_size': (32, 40), 'stride': (20, 24), 'window_weights': 'hann'},
    },
    'corners aligned': {'resize': {'scale': (96, 48), 'keep_ratio': True}, 'head': {'align_corners': True}},
}

DAMAGES = (
    ('input', '{'),
    ('input', '{"wrong": 1}'),
    ('input', '[1, 2]'),
    ('input', '{"channels": "CMYK"}'),
    ('input', '{"std": [1, 0, 1]}'),
    ('classes', '["a", "b"]'),
    ('classes', '[]'),
    ('palette', '[[0, 0, 0], [0, 0, 256], [0, 0, 0]]'),
    ('resize', '{"keep_ratio": true}'),
    ('resize', '{"scale": [0, 5]}'),
    ('windows', '{"crop_size": [8, 8], "stride": [0, 8]}'),
    ('output', '{"kind": "boxes"}'),
)


def images(sizes=SIZES):
    generator = np.random.default_rng(0)
    coarse = [generator.integers(0, 255, (4, 5, 3), dtype=np.uint8) for _ in sizes]
    return [cv2.resize(c, size[::-1], interpolation=cv2.INTER_CUBIC) for c, size in zip(coarse, sizes, strict=True)]


@pytest.fixture(scope='module')
def graph():
    """The graph of all networks here whose corners are not aligned: rules are metadata alone."""
    return make_graph(WholeImage(network_of(config_of()).model))


def write(graph, network, path):
    onnx.save(with_metadata(graph, make_metadata(network, normalize=False, argmax=False, source={})), path)
    return path


@pytest.mark.parametrize('rule', RULES)
def test_equals_predictor(rule, graph, tmp_path):
    """Labels, confidence and probabilities, whatever the size, however resized, in batches of several."""
    network = network_of(config_of(**RULES[rule]))
    if rule == 'corners aligned':
        export_onnx(network, tmp_path / 'a.onnx', shapes=[(1, 33, 47)])
    else:
        write(graph, network, tmp_path / 'a.onnx')
    options = {'device': 'cpu', 'confidence': True, 'probabilities': True}
    ours = OnnxPredictor(tmp_path / 'a.onnx', batch_size=3, **options)(images())
    theirs = Predictor(network, **options)(images())
    for one, other, image in zip(ours, theirs, images(), strict=True):
        assert one.labels.shape == image.shape[:2] and one.labels.dtype == np.uint8
        assert (one.labels == other.labels).mean() > 0.999
        np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-5)
        np.testing.assert_allclose(one.confidence, other.confidence, atol=1e-5)
    assert len({int(label) for one in ours for label in np.unique(one.labels)}) > 1
    assert ours[0].classes == theirs[0].classes and np.array_equal(ours[0].palette, theirs[0].palette)


def test_windows_are_used(graph, tmp_path):
    """A file that says windows gives something else than one that says whole images."""
    files = [
        OnnxPredictor(write(graph, network_of(config_of(**RULES[rule])), tmp_path / f'{i}.onnx'), probabilities=True)
        for i, rule in enumerate(('as it is', 'windows'))
    ]
    (image,) = images([(64, 80)])
    whole, windows = (file(image).probabilities for file in files)
    assert np.abs(whole - windows).max() > 1e-3


def test_one_channel(tmp_path):
    """One channel and its threshold: two classes, labels as Predictor's."""
    network = network_of(config_of(classes=1, head={'out_channels': 1, 'num_classes': 2, 'threshold': 0.45}))
    export_onnx(network, tmp_path / 'a.onnx', shapes=[(1, 33, 47)])
    options = {'device': 'cpu', 'confidence': True, 'probabilities': True}
    ours, theirs = OnnxPredictor(tmp_path / 'a.onnx', **options), Predictor(network, **options)
    assert ours.classes == ('background', 'a')
    for image in images():
        one, other = ours(image), theirs(image)
        assert (one.labels == other.labels).mean() > 0.999
        np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-5)
        np.testing.assert_allclose(one.confidence, other.confidence, atol=1e-5)


def test_labels_and_pixels_inside(tmp_path):
    """With normalisation and argmax inside: equal labels where nothing is resized, whole images, labels alone."""
    network = network_of(config_of(resize={'scale': (96, 48), 'keep_ratio': True}))
    export_onnx(network, tmp_path / 'a.onnx', normalize=True, argmax=True, shapes=[(2, 33, 47)])
    ours, theirs = OnnxPredictor(tmp_path / 'a.onnx'), Predictor(network, device='cpu')
    same, resized = images([(48, 96), (40, 56)])
    assert np.array_equal(ours(same).labels, theirs(same).labels)
    assert ours(resized).labels.shape == (40, 56) and (ours(resized).labels == theirs(resized).labels).mean() > 0.9
    with pytest.raises(UserError, match='labels only, no confidence'):
        next(ours.stream([same], confidence=True))


def test_runs_without_torch(graph, tmp_path):
    """In a process of its own, neither PyTorch nor MMSegmentation is imported; through load_predictor too."""
    write(graph, network_of(config_of(**RULES['windows without seams'])), tmp_path / 'a.onnx')
    cv2.imwrite(str(tmp_path / 'a.png'), images()[0])
    code = (
        'import sys\n'
        "for name in ('torch', 'mmengine', 'mmcv', 'mmseg', 'onnx', 'onnxscript', 'triton'):\n"
        '    sys.modules[name] = None\n'
        'from volo_seg.inference import OnnxPredictor, load_predictor\n'
        f'result = OnnxPredictor({str(tmp_path / "a.onnx")!r}, probabilities=True)({str(tmp_path / "a.png")!r})\n'
        f'again = load_predictor({str(tmp_path / "a.onnx")!r})({str(tmp_path / "a.png")!r})\n'
        f'print(result.labels.shape, (again.labels == result.labels).all(), *result.save({str(tmp_path / "out")!r}))\n'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('(40, 56) True') and len(list((tmp_path / 'out').rglob('*.*'))) == 2


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.one_of(st.none(), st.floats(0.3, 2.5), st.tuples(st.floats(0.3, 2.5), st.floats(0.3, 2.5))),
    st.booleans(),
)
def test_resizing_equals_the_pipeline(size, scale, factor, keep_ratio):
    """Every pixel as the test pipeline resizes it."""
    rule = {'scale': scale} if factor is None else {'scale_factor': factor}
    _, pipeline = image_pipeline(
        [{'type': 'LoadImageFromFile'}, {'type': 'Resize', 'keep_ratio': keep_ratio, **rule}, {'type': 'PackSegInputs'}]
    )
    (image,) = images([size])
    expected = pipeline({'img': image})['inputs'].permute(1, 2, 0).numpy()
    factors = (factor, factor) if isinstance(factor, float) else factor
    ours = ResizeSpec(scale=scale if factor is None else None, scale_factor=factors, keep_ratio=keep_ratio)
    np.testing.assert_array_equal(resize_image(ours, image), expected)


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 20)),
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.booleans(),
)
def test_logits_are_enlarged_as_pytorch_does(shape, size, align_corners):
    logits = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    expected = F.interpolate(torch.from_numpy(logits)[None], size, mode='bilinear', align_corners=align_corners)[0]
    parts = list(enlarged_rows(logits, size, align_corners=align_corners))
    got = np.concatenate([rows for _, rows in parts], 1)
    np.testing.assert_allclose(got, expected.numpy(), atol=2e-5)
    assert [start for start, _ in parts] == list(np.cumsum([0, *(rows.shape[1] for _, rows in parts)]))[:-1]


def test_chunks_of_rows_make_no_difference(monkeypatch):
    logits = np.random.default_rng(0).normal(size=(5, 9, 7)).astype(np.float32)
    whole = prediction_from_logits(logits, (50, 41), classes=5, confidence=True, probabilities=True)
    monkeypatch.setattr('volo_seg.inference.resizing.CHUNK', 1)
    rows = prediction_from_logits(logits, (50, 41), classes=5, confidence=True, probabilities=True)
    for one, other in zip(whole, rows, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(whole.probabilities.sum(0), 1, rtol=1e-5)
    np.testing.assert_array_equal(whole.probabilities.argmax(0), whole.labels)
    np.testing.assert_allclose(whole.probabilities.max(0), whole.confidence, rtol=1e-5)


def test_ties_go_to_the_first_class():
    logits = np.random.default_rng(0).integers(0, 3, (7, 20, 30)).astype(np.float32)
    np.testing.assert_array_equal(prediction_from_logits(logits, (20, 30), classes=7).labels, logits.argmax(0))


def test_many_classes_have_wide_labels():
    logits = np.zeros((300, 2, 2), np.float32)
    logits[299] = 1
    labels = prediction_from_logits(logits, (3, 3), classes=300).labels
    assert labels.dtype == np.int32 and (labels == 299).all()


def test_metadata_round_trip(graph, tmp_path):
    for rule in RULES.values():
        metadata = make_metadata(network_of(config_of(**rule)), normalize=False, argmax=False, source={'config': 'x'})
        assert OnnxMetadata.from_metadata(metadata.to_metadata(), name='a.onnx') == metadata
    assert metadata.classes == CLASSES and dataclasses.asdict(metadata)['source'] == {'config': 'x'}


def test_files_that_are_not_ours(graph, tmp_path):
    path = tmp_path / 'a.onnx'
    with pytest.raises(UserError, match='does not exist or is not a file'):
        OnnxPredictor(path)
    path.write_bytes(b'not a model')
    with pytest.raises(UserError, match='is not an ONNX file that onnxruntime opens'):
        OnnxPredictor(path)
    path.write_bytes(b'')
    with pytest.raises(UserError, match='is not an ONNX file'):
        OnnxPredictor(path)
    onnx.save(graph, path)
    with pytest.raises(UserError, match='write it with volo-seg export'):
        OnnxPredictor(path)
    model = with_metadata(graph, make_metadata(network_of(config_of()), normalize=False, argmax=False, source={}))
    for key, damage in DAMAGES:
        damaged = onnx.ModelProto()
        damaged.CopyFrom(model)
        for entry in damaged.metadata_props:
            if entry.key == key:
                entry.value = damage
        onnx.save(damaged, path)
        with pytest.raises(UserError, match='damaged metadata'):
            OnnxPredictor(path)


def test_graphs_that_do_not_fit_their_metadata(graph, tmp_path):
    path = tmp_path / 'a.onnx'
    metadata = make_metadata(network_of(config_of()), normalize=False, argmax=False, source={})
    onnx.save(with_metadata(graph, dataclasses.replace(metadata, classes=('a', 'b'), palette=((0, 0, 0),) * 2)), path)
    with pytest.raises(UserError, match='gives 3 channels and names 2 classes'):
        OnnxPredictor(path)
    onnx.save(with_metadata(graph, dataclasses.replace(metadata, input=InputSpec(name='pixels'))), path)
    with pytest.raises(UserError, match="has no input 'pixels'"):
        OnnxPredictor(path)


def test_a_graph_that_does_not_run(graph, tmp_path):
    """One sentence, also where one image fails in the middle of many."""
    metadata = make_metadata(network_of(config_of()), normalize=False, argmax=False, source={})
    onnx.save(
        with_metadata(graph, dataclasses.replace(metadata, input=InputSpec(channels='BGR', dtype='uint8'))),
        tmp_path / 'a',
    )
    (failure,) = OnnxPredictor(tmp_path / 'a').stream(images()[:1], on_error='yield')
    assert 'onnxruntime cannot run the network on 1 x 3 x 40 x 56 values' in failure.reason


def test_devices(graph, tmp_path):
    path = write(graph, network_of(config_of()), tmp_path / 'a.onnx')
    with pytest.raises(UserError, match="device 'tpu' is not auto, cpu, cuda, cuda:N or tensorrt"):
        OnnxPredictor(path, device='tpu')
    assert load_predictor(path, device='cpu', confidence=True)(images()[0]).confidence is not None


def test_without_onnxruntime(graph, tmp_path, monkeypatch):
    path = write(graph, network_of(config_of()), tmp_path / 'a.onnx')
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(UserError, match=r"need the package onnxruntime: pip install 'volo-seg\[onnx\]'"):
        OnnxPredictor(path)

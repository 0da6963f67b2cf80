"""ONNX files that someone sent: graphs and metadata of any content end in one sentence, and open no other file."""

import json

import numpy as np
import pytest
from onnx import TensorProto, helper

from volo_seg.commands import run
from volo_seg.errors import UserError
from volo_seg.imageio import DEFAULT_READING
from volo_seg.inference.onnx_metadata import FORMAT, OnnxMetadata
from volo_seg.inference.onnx_predictor import OnnxPredictor

cv2 = pytest.importorskip('cv2')
pytest.importorskip('onnxruntime')

METADATA = OnnxMetadata(classes=('a', 'b', 'c'), palette=((0, 0, 0), (1, 1, 1), (2, 2, 2)))
IMAGE = np.zeros((64, 64, 3), np.uint8)


def model(nodes=None, *, initializers=(), metadata=None, kind=TensorProto.FLOAT, shape=('b', 'c', 'h', 'w')):
    """A graph from ``image`` to ``logits``, the identity by default, with our metadata."""
    graph = helper.make_graph(
        nodes or [helper.make_node('Identity', ['image'], ['logits'])],
        'g',
        [helper.make_tensor_value_info('image', TensorProto.FLOAT, ['b', 3, 'h', 'w'])],
        [helper.make_tensor_value_info('logits', kind, shape)],
        list(initializers),
    )
    built = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)])
    built.ir_version = 10
    for key, value in (METADATA.to_metadata() if metadata is None else metadata).items():
        built.metadata_props.add(key=key, value=value)
    return built


def write(path, built):
    path.write_bytes(built.SerializeToString())
    return path


def refused(capsys, path):
    """The one sentence with which ``infer`` refuses the file."""
    image = path.with_name('image.png')
    cv2.imwrite(str(image), IMAGE)
    assert run('infer', [str(path), str(image), '--out-dir', str(path.with_name('out'))]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert told[-1].startswith('error: ') and 'Traceback' not in '\n'.join(told)
    assert len(told[-1]) < 600 and told[-1].isprintable()
    assert not any(path.with_name('out').rglob('*.png'))
    return told[-1]


def test_the_plain_file_works(tmp_path):
    assert OnnxPredictor(write(tmp_path / 'm.onnx', model()))(IMAGE).labels.shape == (64, 64)


# --- other files


def external(location):
    tensor = TensorProto(name='w', data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key='location', value=location)
    return model([helper.make_node('Add', ['image', 'w'], ['logits'])], initializers=[tensor])


@pytest.mark.parametrize(
    'location',
    ['inside.bin', '../secret.bin', 'ABSOLUTE', 'link.bin', 'deep/../../secret.bin', '/dev/zero', 'none', ''],
)
def test_weights_in_other_files_are_refused(tmp_path, capsys, location):
    folder = tmp_path / 'sent'
    (folder / 'deep').mkdir(parents=True)
    for path in (tmp_path / 'secret.bin', folder / 'inside.bin'):
        np.ones(1, np.float32).tofile(path)
    (folder / 'link.bin').symlink_to('../secret.bin')
    location = str(tmp_path / 'secret.bin') if location == 'ABSOLUTE' else location
    told = refused(capsys, write(folder / 'm.onnx', external(location)))
    assert told.endswith('keeps weights in other files: export it as one file')


def test_onnxruntime_itself_stays_in_the_folder(tmp_path, monkeypatch):
    """The second line, for files whose entry is encoded so that ours does not see it."""
    from volo_seg.inference import onnx_predictor

    monkeypatch.setattr(onnx_predictor, '_EXTERNAL', b'no file holds these bytes')
    (tmp_path / 'sent').mkdir()
    np.ones(1, np.float32).tofile(tmp_path / 'secret.bin')
    for location in ('../secret.bin', str(tmp_path / 'secret.bin')):
        with pytest.raises(UserError, match='is not an ONNX file that onnxruntime opens'):
            OnnxPredictor(write(tmp_path / 'sent' / 'm.onnx', external(location)))


# --- metadata

DEEP = '[' * 100_000 + ']' * 100_000
HOSTILE = [
    ('classes', DEEP),
    ('classes', '{"a": ' * 50_000 + '1' + '}' * 50_000),
    ('classes', 'null'),
    ('classes', '"abc"'),
    ('classes', '[1, 2, 3]'),
    ('classes', '["a", "b", null]'),
    ('classes', '{"a": 1, "b": 2, "c": 3}'),
    ('classes', json.dumps(['a', 'b', '\x1b[2J\n'])),
    ('classes', json.dumps(['a', 'b', 'c' * 10_000])),
    ('classes', 'x' * 5_000_000),
    ('palette', 'null'),
    ('palette', '[[0, 0, 0], [1, 1, 1]]'),
    ('palette', '[[0, 0, 0], [1, 1, 1], [1, 1, true]]'),
    ('palette', '[[0, 0, 0], [1, 1, 1], [1, 1, 1e400]]'),
    ('palette', '[0, 1, 2]'),
    ('input', 'null'),
    ('input', '[]'),
    ('input', '{"name": null}'),
    ('input', '{"name": 7}'),
    ('input', '{"name": "' + 'n' * 1000 + '"}'),
    ('input', '{"dtype": ["uint8"]}'),
    ('input', '{"mean": null}'),
    ('input', '{"mean": [1e400, 0, 0]}'),
    ('input', '{"mean": [NaN, 0, 0]}'),
    ('input', '{"std": ["1", "1", "1"]}'),
    ('input', '{"std": [1' + '0' * 5000 + ', 1, 1]}'),
    ('input', '{"std": [1' + '0' * 400 + ', 1, 1]}'),
    ('input', '{"mean": [1' + '0' * 400 + ', 1, 1]}'),
    ('resize', '[]'),
    ('resize', '7'),
    ('resize', '{}'),
    ('resize', '{"scale": [1000000000, 1000000000]}'),
    ('resize', '{"scale": [5.5, 5]}'),
    ('resize', '{"scale": "ab"}'),
    ('resize', '{"scale": [true, true]}'),
    ('resize', '{"scale": [4, 4, 4]}'),
    ('resize', '{"scale_factor": [1e9, 1e9]}'),
    ('resize', '{"scale_factor": [1e-9, 1]}'),
    ('resize', '{"scale": [64, 64], "keep_ratio": "no"}'),
    ('windows', '{"crop_size": [1, 1], "stride": [1, 1]}'),
    ('windows', '{"crop_size": [32, 32], "stride": [1, 32]}'),
    ('windows', '{"crop_size": [32, 32], "stride": [64, 64]}'),
    ('windows', '{"crop_size": [1e30, 32], "stride": [32, 32]}'),
    ('windows', '{"crop_size": [32, 32], "stride": [32, null]}'),
    ('windows', '{"crop_size": null, "stride": null}'),
    ('windows', '{"crop_size": [32, 32], "stride": [32, 32], "down": [1, 1], "across": [1]}'),
    ('windows', '{"crop_size": [32, 32], "stride": [32, 32], "down": 5}'),
    ('windows', json.dumps({'crop_size': [32, 32], 'stride': [32, 32], 'down': [0.0] * 32})),
    ('output', 'null'),
    ('output', '{"name": [1]}'),
    ('output', '{"kind": null}'),
    ('output', '{"kind": {}}'),
    ('output', '{"align_corners": "yes"}'),
    ('output', '{"threshold": "high"}'),
    ('output', '{"threshold": NaN}'),
    ('source', 'null'),
    ('source', '[1]'),
    ('format', '\x1b[31m\n' * 1000),
    ('format', ''),
]


@pytest.mark.parametrize(('key', 'value'), HOSTILE, ids=[f'{key}-{value[:24]}' for key, value in HOSTILE])
def test_metadata_of_any_content(tmp_path, capsys, key, value):
    metadata = {**METADATA.to_metadata(), key: value}
    told = refused(capsys, write(tmp_path / 'm.onnx', model(metadata=metadata)))
    assert 'export it again' in told or 'write it with volo-seg export' in told


@pytest.mark.parametrize('key', list(METADATA.to_metadata()))
def test_metadata_that_lack_an_entry(tmp_path, capsys, key):
    metadata = {name: value for name, value in METADATA.to_metadata().items() if name != key}
    path = write(tmp_path / 'm.onnx', model(metadata=metadata))
    if key == 'reading':  # files of 0.1 have none
        assert OnnxPredictor(path).metadata.reading == DEFAULT_READING
    else:
        refused(capsys, path)


@pytest.mark.parametrize(
    'reading',
    [
        '{"backend": "tifffile"}',
        '{"color_type": "unchanged"}',
        '{"value_range": [2, 1]}',
        '{"value_range": [0, NaN]}',
        '{"value_range": "12"}',
        '{"path": "x"}',
        '7',
    ],
)
def test_readings_that_are_refused(tmp_path, capsys, reading):
    metadata = {**METADATA.to_metadata(), 'reading': reading}
    assert 'export it again' in refused(capsys, write(tmp_path / 'm.onnx', model(metadata=metadata)))


def test_the_smallest_windows_take_seconds(tmp_path):
    metadata = {**METADATA.to_metadata(), 'windows': '{"crop_size": [16, 16], "stride": [2, 2]}'}
    counted = []
    predictor = OnnxPredictor(write(tmp_path / 'm.onnx', model(metadata=metadata)))
    run_graph = predictor.run
    predictor.run = lambda image: counted.append(1) or run_graph(image)
    assert predictor(IMAGE).labels.shape == (64, 64)
    assert len(counted) == 25**2


# --- graphs

CONSTANT = helper.make_tensor('size', TensorProto.INT64, [4], [1, 3, 2**20, 2**20])
GRAPHS = {
    'another size': [
        helper.make_node('MaxPool', ['image'], ['logits'], kernel_shape=[2, 2], strides=[2, 2]),
    ],
    'another rank': [helper.make_node('ReduceMax', ['image'], ['logits'], keepdims=0)],
    'other numbers': [helper.make_node('Cast', ['image'], ['logits'], to=TensorProto.INT64)],
    'words': [helper.make_node('Cast', ['image'], ['logits'], to=TensorProto.STRING)],
    'too much memory': [helper.make_node('ConstantOfShape', ['size'], ['logits'])],
}
KINDS = {'other numbers': TensorProto.INT64, 'words': TensorProto.STRING}


@pytest.mark.parametrize('name', GRAPHS)
def test_graphs_that_give_something_else(tmp_path, name):
    built = model(GRAPHS[name], initializers=[CONSTANT], kind=KINDS.get(name, TensorProto.FLOAT), shape=None)
    with pytest.raises(UserError) as caught:
        OnnxPredictor(write(tmp_path / 'm.onnx', built))(IMAGE)
    assert '\n' not in str(caught.value) and len(str(caught.value)) < 500


def test_labels_outside_the_classes(tmp_path):
    nodes = [
        helper.make_node('Cast', ['image'], ['whole'], to=TensorProto.INT64),
        helper.make_node('ReduceMax', ['whole', 'axis'], ['least'], keepdims=0),
        helper.make_node('Add', ['least', 'offset'], ['logits']),
    ]
    for offset in (3, -1):
        built = model(
            nodes,
            initializers=[
                helper.make_tensor('axis', TensorProto.INT64, [1], [1]),
                helper.make_tensor('offset', TensorProto.INT64, [1], [offset]),
            ],
            kind=TensorProto.INT64,
            shape=None,
            metadata={**METADATA.to_metadata(), 'output': '{"kind": "labels"}'},
        )
        with pytest.raises(UserError, match='not its labels: export it again'):
            OnnxPredictor(write(tmp_path / 'm.onnx', built))(IMAGE)


@pytest.mark.parametrize('content', [b'', b'\0' * 100, b'\x08\xff', b'\x3a\xff\xff\xff\xff\x0f', FORMAT.encode() * 100])
def test_bytes_that_are_no_graph(tmp_path, capsys, content):
    (tmp_path / 'm.onnx').write_bytes(content)
    assert 'is not an ONNX file that onnxruntime opens' in refused(capsys, tmp_path / 'm.onnx')


def test_metadata_that_are_no_text(tmp_path, capsys):
    data = model().SerializeToString().replace(b'"bilinear"', b'').replace(b'["a", "b", "c"]', b'["a", "b", "\xff"]')
    (tmp_path / 'm.onnx').write_bytes(data)
    refused(capsys, tmp_path / 'm.onnx')

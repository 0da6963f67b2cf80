"""OpenVINO files and programs of PyTorch: equal to PyTorch at any size, kept only if they are, used by commands."""

import re
import shutil

import cv2
import numpy as np
import pytest
import torch

from volo_seg.commands import run
from volo_seg.errors import UserError
from volo_seg.export.formats import FORMATS, export_file
from volo_seg.inference import Predictor
from volo_seg.inference.exported_predictor import PREDICTORS, exported_predictor
from volo_seg.inference.load import load_predictor
from volo_seg.inference.torch_program_predictor import TRUST, TorchProgramPredictor
from volo_seg.serve.models import open_models

from onnx_models import config_of, network_of, volo_config  # isort: skip

SHAPES = ((2, 160, 192), (1, 33, 47), (3, 40, 300), (1, 97, 131))
NAMES = sorted(FORMATS)


@pytest.fixture(autouse=True)
def trust(monkeypatch):
    monkeypatch.setenv(TRUST, '1')


@pytest.fixture(scope='module')
def network():
    return network_of(config_of(resize={'scale': (64, 48), 'keep_ratio': True}))


@pytest.fixture(scope='module')
def files(network, tmp_path_factory):
    """A file in each format, with the normalization outside."""
    folder = tmp_path_factory.mktemp('formats')
    for kind in NAMES:
        export_file(network, folder / f'a{FORMATS[kind].suffix}', kind=kind, shapes=SHAPES[:1])
    return folder


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize('kind', NAMES)
def test_volo_equals_pytorch_at_any_size(kind, tmp_path):
    path = tmp_path / f'volo{FORMATS[kind].suffix}'
    config, head = volo_config(), config_of(classes=19, head={'in_channels': 32, 'in_index': 3}).model.decode_head
    config.model.pop('neck')
    config.model.decode_head = {**head, 'num_classes': 19}
    found = export_file(network_of(config), path, kind=kind, normalize=True, argmax=True, shapes=SHAPES)
    assert [a.shape for a in found] == list(SHAPES)
    assert all(a.error <= 1e-5 * a.scale and a.equal > 0.999 for a in found)
    assert {file.name for file in tmp_path.iterdir()} == {path.name, *(['volo.bin'] if kind == 'openvino' else [])}
    labels = exported_predictor(path)(path)(noise(97, 131, 3)).labels
    assert labels.shape == (97, 131) and labels.max() < 19


@pytest.mark.parametrize('kind', NAMES)
@pytest.mark.parametrize('windows', [None, {'mode': 'slide', 'crop_size': (32, 32), 'stride': (24, 24)}])
def test_predictor_equals_that_of_the_checkpoint(kind, windows, tmp_path):
    made = network_of(config_of(test_cfg=windows))
    path = tmp_path / f'a{FORMATS[kind].suffix}'
    export_file(made, path, kind=kind, shapes=SHAPES[:1])
    exported = load_predictor(path, probabilities=True)
    assert isinstance(exported, exported_predictor(path))
    images = [noise(40, 70, 3), noise(40, 70, 3)[::-1].copy(), noise(33, 47, 3)]
    wanted = Predictor(made, device='cpu', probabilities=True)(images)
    for one, other in zip(exported(images), wanted, strict=True):
        np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-5)
        assert (one.labels == other.labels).mean() > 0.999
    assert exported.classes == made.classes


@pytest.mark.parametrize('kind', ['openvino', 'pt2'])
def test_a_wrong_file_is_not_kept(kind, tmp_path):
    """The exported form differs from the network."""
    path = tmp_path / f'a{FORMATS[kind].suffix}'
    path.write_bytes(b'kept')
    with pytest.raises(UserError, match='differs from PyTorch at 4 of 4 sizes'):
        export_file(network_of(config_of(lie=True)), path, kind=kind, shapes=SHAPES)
    assert path.read_bytes() == b'kept' and [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_network_that_an_exporter_refuses_is_one_sentence(tmp_path):
    class Choice(torch.nn.Module):
        def forward(self, x):
            return (x[:, :1].expand(-1, 8, -1, -1) * (2 if x.sum() > 0 else 1),)  # depends on values

    made = network_of(config_of())
    made.model.backbone = Choice()
    with pytest.raises(UserError, match='the network cannot be exported as pt2 .*: nothing was written; try --format'):
        export_file(made, tmp_path / 'a.pt2', kind='pt2', shapes=SHAPES)
    assert not list(tmp_path.iterdir())


def test_a_trace_that_holds_a_size_is_not_kept(tmp_path):
    class Fixed(torch.nn.Module):
        def forward(self, x):
            side = int(x.shape[-1]) // 4  # a number of Python, which the trace keeps
            return (torch.nn.functional.interpolate(x[:, :1].expand(-1, 8, -1, -1), (side, side)),)

    made = network_of(config_of())
    made.model.backbone = Fixed()
    with pytest.raises(UserError, match='TorchScript differs from PyTorch at'):
        export_file(made, tmp_path / 'a.ts', kind='torchscript', shapes=SHAPES)
    assert not list(tmp_path.iterdir())


def test_commands(files, tmp_path, capsys):
    """``infer`` gives what the predictor gives, and ``serve`` opens the files."""
    cv2.imwrite(str(tmp_path / 'photo.png'), noise(40, 70, 3))
    models = [str(files / f'a{FORMATS[kind].suffix}') for kind in NAMES]
    for model in models:
        out = tmp_path / f'out{model[-3:]}'
        assert run('infer', [model, str(tmp_path / 'photo.png'), '--out-dir', str(out), '--kinds', 'labels']) == 0
        labels = cv2.imread(str(out / 'labels' / 'photo.png'), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(labels, load_predictor(model)(tmp_path / 'photo.png').labels)
    assert [model.confidence for model in open_models([f'm{i}={path}' for i, path in enumerate(models)])] == [True] * 3


@pytest.mark.parametrize('suffix', ['.pt2', '.ts'])
def test_programs_need_trust(suffix, files, monkeypatch):
    monkeypatch.delenv(TRUST)
    monkeypatch.setattr('torch.jit.load', lambda *_, **__: pytest.fail('it was loaded'))
    monkeypatch.setattr('torch.export.load', lambda *_, **__: pytest.fail('it was loaded'))
    with pytest.raises(UserError, match=rf"a\{suffix}' is a program, .* set {TRUST}=1 in the environment"):
        TorchProgramPredictor(files / f'a{suffix}')


@pytest.mark.parametrize('suffix', sorted(PREDICTORS))
@pytest.mark.parametrize('content', [b'', b'PK\x03\x04 damaged', b'<?xml version="1.0"?><net/>'])
def test_damaged_files(suffix, content, tmp_path):
    path = tmp_path / f'a{suffix}'
    path.write_bytes(content)
    path.with_suffix('.bin').write_bytes(content)
    with pytest.raises(UserError, match=rf'a\{suffix}'):
        load_predictor(path)
    with pytest.raises(UserError, match='does not exist or is not a file'):
        load_predictor(tmp_path / f'none{suffix}')


def test_openvino_needs_its_weights(files, tmp_path):
    shutil.copy(files / 'a.xml', tmp_path)
    with pytest.raises(UserError, match=r"a\.bin' is missing; keep the \.bin file beside"):
        load_predictor(tmp_path / 'a.xml')
    with pytest.raises(UserError, match="device 'cuda' is not auto or cpu"):
        load_predictor(files / 'a.xml', device='cuda')


@pytest.mark.parametrize(
    'words, message',
    [
        (['a.bin'], r"'a.bin' ends in none of .onnx, .xml, .pt2, .ts: correct the name"),
        (['a.onnx', '--format', 'pt2'], r"'a.onnx' does not end in .pt2, as --format pt2 does"),
        (['a.ts', '--int8', 'photos'], r'--int8 is for --format onnx, and the format is torchscript'),
        (['a.onnx', '--max-changed', '5'], r'--max-changed 5 is not a share'),
        (['a.onnx', '--format', 'tensorrt'], r'this onnxruntime has no TensorrtExecutionProvider'),
    ],
)
def test_mistakes(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config_of().dump('config.py')
    assert run('export', ['volo-nano_upernet_1xb4-6k_toyscapes-256x256', 'volo-nano_toyscapes', *words]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert sorted(file.name for file in tmp_path.iterdir()) == ['config.py']

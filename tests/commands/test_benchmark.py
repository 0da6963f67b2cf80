"""volo-seg benchmark: from one image up, every stage accounted for, as a table and as JSON."""

import json
import math

import cv2
import numpy as np
import pytest

from volo_seg.commands import run
from volo_seg.export.onnx_export import export_onnx
from volo_seg.inference import OnnxPredictor, Predictor
from volo_seg.inference.stage_timing import StageTimer, generated_image, measure, summarize

from onnx_models import config_of, network_of  # isort: skip

TORCH_STAGES = ['load', 'preprocess', 'backbone', 'head', 'resize']


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    """A config file, an exported file and three images."""
    root = tmp_path_factory.mktemp('project')
    config = config_of(resize={'scale': (96, 48), 'keep_ratio': True})
    config.dump(root / 'tiny.py')
    export_onnx(network_of(config), root / 'net.onnx', shapes=[(1, 33, 47)])
    for i, size in enumerate(((40, 60), (40, 60), (50, 50))):
        image = np.full((*size, 3), 40 * i, np.uint8)
        (root / 'images').mkdir(exist_ok=True)
        cv2.imwrite(str(root / 'images' / f'{i}.png'), image)
    return root


def test_one_image_once(project, tmp_path, capsys):
    """No warm-up and a single run: every figure is a number."""
    words = [str(project / 'tiny.py'), '--size', '40', '60', '--repeat', '1', '--warm-up', '0']
    assert run('benchmark', [*words, '--device', 'cpu', '--json', str(tmp_path / 'new' / 'a.json')]) == 0
    content = json.loads((tmp_path / 'new' / 'a.json').read_text())
    figures = content['results']['PyTorch']
    assert figures['batches'] == 1 and content['batch_size'] == 1 and content['config'] == 'tiny'
    latency = figures['latency_ms']
    assert 0 < latency['p50'] == latency['p95'] < 1e6
    assert figures['images_per_second'] == pytest.approx(1000 / latency['p50'])
    assert figures['megapixels_per_second'] == pytest.approx(40 * 60 / 1e6 * 1000 / latency['p50'])
    assert list(figures['stages']) == TORCH_STAGES
    assert math.isclose(sum(stage['share'] for stage in figures['stages'].values()), 1)
    assert figures['peak_memory_mib'] > 0 and figures['peak_memory_counted'].startswith('tensors')
    said = capsys.readouterr().out
    assert 'nan' not in said.lower() and all(stage in said for stage in TORCH_STAGES)


def test_pytorch_and_onnx_side_by_side(project, tmp_path, capsys):
    words = [str(project / 'tiny.py'), '--onnx', str(project / 'net.onnx'), '--images', str(project / 'images')]
    assert run('benchmark', [*words, '--repeat', '2', '--device', 'cpu', '--json', str(tmp_path / 'a.json')]) == 0
    results = json.loads((tmp_path / 'a.json').read_text())['results']
    assert list(results) == ['PyTorch', 'net.onnx']
    assert all(figures['batches'] == 6 for figures in results.values())
    assert list(results['net.onnx']['stages']) == ['load', 'preprocess', 'network', 'resize']
    assert 'growth of the resident memory' in capsys.readouterr().out


def test_timing_changes_no_result(project):
    """The wrapped predictors give what they gave; batches of several images too."""
    network = network_of(config_of(resize={'scale': (96, 48), 'keep_ratio': True}))
    paths = [project / 'images' / '0.png', project / 'images' / '1.png']
    for make in (lambda: Predictor(network, device='cpu'), lambda: OnnxPredictor(project / 'net.onnx')):
        expected, predictor = make()(paths), make()
        seconds = StageTimer(predictor).run(paths)
        assert all(value > 0 for value in seconds.values())
        for one, other in zip(predictor(paths), expected, strict=True):
            np.testing.assert_array_equal(one.labels, other.labels)


def test_windows_are_summed(project):
    """The network's stage holds all windows of an image, so nothing of it is left to the other stages."""
    config = config_of(test_cfg={'mode': 'slide', 'crop_size': (16, 16), 'stride': (8, 8)})
    predictor = Predictor(network_of(config), device='cpu')
    calls = []
    forward = predictor.model.backbone.forward
    predictor.model.backbone.forward = lambda x: calls.append(len(x)) or forward(x)
    found = measure({'a': predictor}, [project / 'images' / '0.png'], repeat=2, warm_up=1)['a']
    assert len(calls) == 4 * 4 * 7 and list(found.stages) == TORCH_STAGES  # memory, warm-up and two rounds
    assert found.batches == 2


def test_summary_of_known_samples():
    samples = [{'load': 1.0, 'network': 3.0}, {'load': 1.0, 'network': 5.0}]
    found = summarize(samples, images=4, pixels=20_000_000, memory=(None, 'nothing'))
    assert (found.batches, found.p50, found.images_per_second, found.megapixels_per_second) == (2, 5.0, 0.4, 2.0)
    assert found.p95 == pytest.approx(5.9) and (found.peak_memory, found.memory_counted) == (None, 'nothing')
    assert found.stages['network'] == (4.0, pytest.approx(4.9), 0.8) and found.stages['load'] == (1.0, 1.0, 0.2)
    assert summarize(samples[:1], images=1, pixels=1, memory=(1, '')).p95 == 4.0


def test_generated_image_is_the_same_each_time(tmp_path):
    one, other = (cv2.imread(str(generated_image(tmp_path, (31, 47)))) for _ in range(2))
    assert one.shape == (31, 47, 3) and np.array_equal(one, other) and one.std() > 10


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--repeat', '0'], '--repeat 0 must be 1 or more'),
        (['--warm-up', '-1'], '--warm-up -1 must be 0 or more'),
        (['--size', '0', '8'], '--size 0 8 must be height and width'),
        (['--size', '8', '8', '--images', 'images'], 'leave it out with --images'),
        (['--images', 'empty'], "'empty' holds no image"),
        (['--images', 'images', '--batch-size', '3'], 'differ in size and make no batch'),
        (['--onnx', 'none.onnx'], 'does not exist'),
        (['--images', 'gone.png'], 'gone.png'),
        (['--checkpoint', 'gone.pth'], 'gone.pth'),
    ],
)
def test_mistakes(project, monkeypatch, capsys, words, message):
    monkeypatch.chdir(project)
    (project / 'empty').mkdir(exist_ok=True)
    assert run('benchmark', ['tiny.py', '--device', 'cpu', *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.gpu
def test_on_a_gpu(project, tmp_path):
    words = [str(project / 'tiny.py'), '--size', '40', '60', '--device', 'cuda', '--json', str(tmp_path / 'a.json')]
    assert run('benchmark', words) == 0
    figures = json.loads((tmp_path / 'a.json').read_text())['results']['PyTorch']
    assert figures['peak_memory_counted'].startswith('tensors on the GPU') and figures['peak_memory_mib'] > 0

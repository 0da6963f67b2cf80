"""Exported graphs: equal to PyTorch at any size, of standard operators alone, and never written if they are wrong."""

import json
import os
import re
import subprocess
import sys
from typing import NamedTuple

import cv2
import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from volo_seg.commands import run
from volo_seg.errors import UserError
from volo_seg.export import onnx_export
from volo_seg.export.metadata import make_metadata
from volo_seg.export.onnx_export import OPSET, export_onnx, foreign_operators, make_graph, with_metadata, write_checked
from volo_seg.export.parity import check_parity, compare, example_input, open_session, table
from volo_seg.export.quantization import calibration_images, equal_labels, quantize
from volo_seg.export.whole_image import WholeImage
from volo_seg.inference import OnnxPredictor
from volo_seg.inference.onnx_metadata import OnnxMetadata

from onnx_models import CLASSES, config_of, network_of, volo_config  # isort: skip

HARD_SHAPES = ((2, 160, 192), (1, 1, 1), (1, 8, 8), (3, 17, 300), (1, 97, 131), (1, 64, 64), (1, 210, 333))


class Exported(NamedTuple):
    model: onnx.ModelProto
    network: WholeImage
    metadata: OnnxMetadata

    def damaged(self, change):
        """A copy with ``change`` done to its model."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        change(model)
        return self._replace(model=model)


def graph_of(config, **options):
    network = network_of(config)
    metadata = make_metadata(
        network, normalize=options.get('normalize', False), argmax=options.get('argmax', False), source={}
    )
    exported = WholeImage(network.model, **options)
    return Exported(make_graph(exported), exported, metadata)


def file_of(made):
    return with_metadata(made.model, made.metadata)


@pytest.fixture(scope='module')
def volo():
    """VOLO with the pyramid and our head: from plain pixels to labels. The head on VOLO's own strides is exported by
    its own tests."""
    return graph_of(volo_config(), normalize=True, argmax=True)


@pytest.fixture(scope='module')
def plain():
    """Two convolutions."""
    return graph_of(config_of())


def test_equals_pytorch_at_any_size(volo):
    """One pixel, slivers, the size of the position grid, sides that 16 does not divide, batches of one to three."""
    found = check_parity(volo.model, volo.network, shapes=HARD_SHAPES)
    assert [a.shape for a in found] == list(HARD_SHAPES)
    assert all(a.error <= 1e-5 * a.scale and a.equal > 0.999 for a in found), table(found)


def test_standard_operators_of_one_opset(volo):
    model = file_of(volo)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [('', OPSET)]
    assert {node.domain for node in model.graph.node} == {''}
    kinds = {node.op_type for node in model.graph.node}
    assert 'Conv' in kinds and not kinds & {'Col2Im', 'Gelu', 'ATen'}
    assert not model.functions
    onnx.checker.check_model(model, full_check=True)


def test_nothing_of_this_machine_is_in_the_file(volo):
    content = file_of(volo).SerializeToString()
    for word in (os.path.dirname(os.path.abspath(__file__)), os.path.expanduser('~'), 'site-packages', 'forward('):
        assert word.encode() not in content, word


def test_axes_are_named(volo):
    model = file_of(volo)
    (out,) = model.graph.output
    axes = [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    assert axes == ['batch', 3, 'height', 'width']
    assert out.name == 'labels' and out.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_param for d in out.type.tensor_type.shape.dim] == ['batch', 'height', 'width']


def test_axes_of_logits_are_named(plain):
    (out,) = file_of(plain).graph.output
    assert out.name == 'logits' and out.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    axes = [d.dim_param or d.dim_value for d in out.type.tensor_type.shape.dim]
    assert axes == ['batch', 3, 'height', 'width']


def test_metadata_is_json(volo, plain):
    values = {entry.key: entry.value for entry in file_of(volo).metadata_props}
    assert values.pop('format') == 'volo-seg-onnx-1'
    values = {key: json.loads(value) for key, value in values.items()}
    assert values['classes'][0] == 'road' and len(values['classes']) == len(values['palette']) == 19
    assert values['palette'][0] == [128, 64, 128]
    assert values['input']['dtype'] == 'uint8' and values['input']['channels'] == 'BGR'
    assert values['resize'] == {'scale': [512, 256], 'scale_factor': None, 'keep_ratio': True}
    assert values['windows'] is None and values['output']['kind'] == 'labels'
    outside = json.loads({entry.key: entry.value for entry in file_of(plain).metadata_props}['input'])
    assert outside['channels'] == 'RGB' and outside['mean'] == pytest.approx([123.675, 116.28, 103.53])


def weigh(name, factor):
    def change(model):
        (weight,) = [w for w in model.graph.initializer if w.name.endswith(name)]
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(factor), weight.name))

    return change


def test_a_wrong_weight_is_refused(volo, tmp_path):
    """Nothing is written; the message names the worst size, its error and its share of equal labels, in a table too."""
    wrong = volo.damaged(weigh('fpn_convs.1.conv.weight', 1.2))
    with pytest.raises(UserError, match=r'differs from PyTorch at 7 of 7 sizes, most at \d') as error:
        write_checked(*wrong, tmp_path / 'a.onnx')
    assert re.search(r'\(error \d\.\de[-+]\d+, \d+\.\d+% equal labels\): nothing was written', str(error.value))
    assert re.search(r'1 x 33 x 47 .*differs', str(error.value)) and not list(tmp_path.iterdir())


def test_a_wrong_operator_is_refused(volo):
    def change(model):
        node = [n for n in model.graph.node if n.op_type == 'Softmax'][0]
        node.attribute[0].i = 1

    with pytest.raises(UserError, match='differs from PyTorch'):
        check_parity(*volo.damaged(change)[:2])


def test_a_module_that_exports_as_another_function_is_refused():
    with pytest.raises(UserError, match='differs from PyTorch'):
        check_parity(*graph_of(config_of(lie=True))[:2])


def test_a_graph_that_does_not_run_is_refused(plain, tmp_path):
    def change(model):
        node = [n for n in model.graph.node if n.op_type == 'Resize'][0]
        node.input[0], node.input[3] = 'image', node.input[3]
        conv = [n for n in model.graph.node if n.op_type == 'Conv'][-1]
        conv.input[0] = 'image'

    with pytest.raises(UserError, match='onnxruntime cannot run the graph .*: nothing was written'):
        write_checked(*plain.damaged(change), tmp_path / 'a.onnx')
    assert not list(tmp_path.iterdir())


def test_values_that_are_not_numbers_do_not_pass(plain):
    with pytest.raises(UserError, match='differs from PyTorch'):
        check_parity(*plain.damaged(weigh('first.bias', float('nan')))[:2])


def test_a_foreign_operator_is_refused(plain, tmp_path):
    def change(model):
        model.opset_import.add(domain='com.microsoft', version=1)
        model.graph.node.add(op_type='Gelu', domain='com.microsoft', input=['image'], output=['unused'])

    with pytest.raises(UserError, match='needs com.microsoft::Gelu'):
        write_checked(*plain.damaged(change), tmp_path / 'a.onnx')
    inner = onnx.helper.make_graph([onnx.helper.make_node('Col2Im', ['a', 'b', 'c'], ['d'])], 'inner', [], [])
    outer = onnx.helper.make_node('If', ['x'], ['y'], then_branch=inner, else_branch=inner)
    assert foreign_operators(onnx.helper.make_model(onnx.helper.make_graph([outer], 'g', [], []))) == ['Col2Im']


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'resize': {'scale': (64, 32), 'interpolation': 'bicubic'}}, "interpolation='bicubic'"),
        ({'resize': {'scale': (64, 32), 'backend': 'pillow'}}, "backend='pillow'"),
    ],
)
def test_pipelines_that_a_file_cannot_say(changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        export_onnx(network_of(config_of(**changes)), tmp_path / 'a.onnx')


def test_steps_that_a_file_cannot_say(tmp_path):
    config = config_of()
    config.test_dataloader.dataset.pipeline.insert(1, {'type': 'ResizeToMultiple', 'size_divisor': 32})
    with pytest.raises(UserError, match='ResizeToMultiple of the test pipeline cannot be exported'):
        export_onnx(network_of(config), tmp_path / 'a.onnx')
    config = config_of()
    config.test_dataloader.dataset.pipeline[0].to_float32 = True
    with pytest.raises(UserError, match='to_float32=True'):
        export_onnx(network_of(config), tmp_path / 'a.onnx')
    config = config_of()
    config.model.data_preprocessor.test_cfg = {'size_divisor': 32}
    config.model.data_preprocessor.pop('size')
    with pytest.raises(UserError, match=r'data_preprocessor\.test_cfg pads'):
        export_onnx(network_of(config), tmp_path / 'a.onnx')


def test_rooms_load_in_any_order():
    """The first thing of all that a process imports, wherever an optional part of the host is broken."""
    for name in ('onnx_export', 'metadata'):
        subprocess.run([sys.executable, '-c', f'import volo_seg.export.{name}'], check=True)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(onnx_export, 'find_spec', lambda name: None if name == 'onnxscript' else name)
    with pytest.raises(UserError, match=r"package onnxscript: pip install 'volo-seg\[onnx\]'"):
        onnx_export.require_onnx()


def write_images(folder, count=5, size=(40, 56)):
    generator = np.random.default_rng(0)
    for i in range(count):
        (folder / 'images').mkdir(parents=True, exist_ok=True)
        coarse = generator.integers(0, 255, (4, 5, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / 'images' / f'{i}.png'), cv2.resize(coarse, size[::-1]))
    return folder


def test_int8_of_volo(volo, tmp_path):
    """A smaller file with 8-bit weights per channel, of standard operators, that gives nearly the same labels."""
    model, metadata = file_of(volo), volo.metadata
    source, target = tmp_path / 'float.onnx', tmp_path / 'int8.onnx'
    onnx.save(model, source)
    images, held_back = calibration_images(write_images(tmp_path), count=3)
    changed = quantize(source, target, images, held_back=held_back)
    assert changed == 1 - equal_labels(source, target, held_back)
    done = onnx.load(target)
    weights = {w.name: w for w in done.graph.initializer}
    scales = [weights[n.input[1]] for n in done.graph.node if n.op_type == 'DequantizeLinear' and n.input[1] in weights]
    assert any(len(scale.dims) == 1 and scale.dims[0] > 1 for scale in scales)
    assert not foreign_operators(done) and [e.domain for e in done.opset_import] == ['']
    assert target.stat().st_size < 0.8 * source.stat().st_size
    assert 0.8 < equal_labels(source, target, images) <= 1
    assert OnnxPredictor(target).metadata.classes == metadata.classes
    assert OnnxPredictor(target).metadata.source['int8']['images'] == 3


def test_int8_calibrates_on_windows(tmp_path):
    config = config_of(test_cfg={'mode': 'slide', 'crop_size': (32, 32), 'stride': (24, 24)})
    export_onnx(network_of(config), tmp_path / 'a.onnx', normalize=True)
    images, held_back = calibration_images(write_images(tmp_path), count=2)
    quantize(tmp_path / 'a.onnx', tmp_path / 'b.onnx', images, held_back=held_back)
    assert equal_labels(tmp_path / 'a.onnx', tmp_path / 'b.onnx', images) > 0.8


def test_int8_that_changes_labels_is_refused(tmp_path, monkeypatch):
    export_onnx(network_of(config_of()), tmp_path / 'a.onnx', normalize=True)
    images, held_back = calibration_images(write_images(tmp_path), count=2)
    monkeypatch.setattr('volo_seg.export.quantization.equal_labels', lambda *_: 0.9)
    with pytest.raises(UserError, match=r'in int8, 10.00% of the labels of 2 images differ .*, more than 9%: nothing'):
        quantize(tmp_path / 'a.onnx', tmp_path / 'b.onnx', images, held_back=held_back, most=0.09)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a.onnx', 'images']


def test_calibration_images_are_spread(tmp_path):
    folder = write_images(tmp_path, count=10)
    used, held_back = ([path.name for path in paths] for paths in calibration_images(folder, count=3))
    assert used == ['0.png', '3.png', '6.png'] and held_back == ['1.png', '5.png', '8.png']
    assert [len(paths) for paths in calibration_images(folder, count=99)] == [5, 5]
    with pytest.raises(UserError, match='is not a folder'):
        calibration_images(folder / 'none')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match='holds no image'):
        calibration_images(tmp_path / 'empty')


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    """A config file of the network of two convolutions, images and labels."""
    root = tmp_path_factory.mktemp('project')
    config = config_of()
    dataset = config.test_dataloader.dataset
    dataset.update(
        data_root=str(root),
        data_prefix={'img_path': 'images', 'seg_map_path': 'labels'},
        seg_map_suffix='.png',
        img_suffix='.png',
    )
    dataset.pipeline.insert(1, {'type': 'LoadAnnotations'})
    config.dump(root / 'tiny.py')
    write_images(root)
    (root / 'labels').mkdir()
    for i in range(5):
        cv2.imwrite(str(root / 'labels' / f'{i}.png'), np.full((40, 56), i % 3, np.uint8))
    return root


def test_command(project, tmp_path, capsys):
    """Float and int8 files, the parity table, and scores that the metric agrees with."""
    out = tmp_path / 'new' / 'net.onnx'
    words = [
        str(project / 'tiny.py'),
        'none',
        str(out),
        '--int8',
        str(project / 'images'),
        '--evaluate',
        '--max-changed',
        '1',
    ]
    assert run('export', words) == 0
    said = capsys.readouterr().out
    assert (
        '2 x 97 x 131' in said
        and '5 test images' in said
        and 'calibrated on 3 images; ' in said
        and '% of the labels of 2 others' in said
    )
    assert sorted(p.name for p in out.parent.iterdir()) == ['net-int8.onnx', 'net.onnx']
    predictor = OnnxPredictor(out)
    assert predictor.classes == CLASSES and predictor.metadata.source['config'] == 'tiny'
    labels = np.stack([predictor(project / 'images' / f'{i}.png').labels for i in range(5)])
    truth = np.stack([np.full((40, 56), i % 3) for i in range(5)])
    ious = [((labels == c) & (truth == c)).sum() / ((labels == c) | (truth == c)).sum() for c in range(3)]
    assert f'float32   {100 * np.mean(ious):>8.2f}{100 * (labels == truth).mean():>8.2f}' in said
    assert run('export', words) == 2
    assert 'exists already: add --overwrite' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['net.pt'], "'net.pt' ends in none of .onnx, .xml, .pt2, .ts"),
        (['net.onnx', '--int8', 'nowhere'], "'nowhere' is not a folder"),
        (['net.onnx', '--calibration-images', '0'], '--calibration-images 0 is below 1'),
    ],
)
def test_mistakes(project, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert run('export', [str(project / 'tiny.py'), 'none', *words]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_labels_are_the_argmax_of_logits(volo):
    image = example_input(volo.network, (2, 50, 70), seed=5)
    found = compare(volo.network, open_session(volo.model), image)
    logits, labels = onnxruntime.InferenceSession(volo.model.SerializeToString()).run(None, {'image': image.numpy()})
    assert found.equal == 1.0 and np.array_equal(labels, logits.argmax(1)) and labels.dtype == np.uint8
    assert torch.from_numpy(labels).unique().numel() > 1

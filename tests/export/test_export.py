"""Exported graphs: equal to PyTorch at any size, of standard operators alone, and never written if they are wrong."""

import json
import os
import re
import subprocess
import sys

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
from volo_seg.export import graph as graph_module
from volo_seg.export.card import make_card
from volo_seg.export.graph import Graph, example_input, make_graph
from volo_seg.export.onnx_file import export_onnx, finished, foreign_operators, write_checked
from volo_seg.export.opset import LOWEST, NATIVE, lower
from volo_seg.export.parity import check_parity, compare, open_model, table
from volo_seg.export.quantization import calibration_images, equal_labels, quantize
from volo_seg.export.whole_image import WholeImage
from volo_seg.inference import OnnxPredictor

from onnx_models import CLASSES, config_of, network_of, volo_config  # isort: skip

HARD_SHAPES = ((2, 160, 192), (1, 1, 1), (1, 8, 8), (3, 17, 300), (1, 97, 131), (1, 64, 64), (1, 210, 333))


def graph_of(config, *, opset=LOWEST, **options):
    network = network_of(config)
    made = make_graph(WholeImage(network.model, **options), opset=opset)
    return made, make_card(
        network, normalize=options.get('normalize', False), argmax=options.get('argmax', False), source={}
    )


def file_of(made):
    return finished(made[0].model, made[1])


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
    found = check_parity(volo[0], shapes=HARD_SHAPES)
    assert [a.shape for a in found] == list(HARD_SHAPES)
    assert all(a.error <= 1e-5 * a.scale and a.equal > 0.999 for a in found), table(found)


def test_standard_operators_of_a_low_opset(volo):
    model = file_of(volo)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [('', 13)]
    assert {node.domain for node in model.graph.node} == {''}
    kinds = {node.op_type for node in model.graph.node}
    assert 'Conv' in kinds and not kinds & {'Col2Im', 'LayerNormalization', 'Gelu', 'ATen'}
    assert not model.functions and model.ir_version == 7
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


@pytest.mark.parametrize('opset', [13, 14, 15, 16, 17])
def test_lowering_keeps_the_arithmetic(opset):
    """Each older form equals the newer one; every rule is met on the way."""
    made = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18]>
        agraph (float[b, 8, h, 6] x, float[6] scale, float[6] bias) => (float[b, 2, h, 12] y, int64[2] sides)
        {
            n = LayerNormalization <axis = -1, epsilon = 0.01> (x, scale, bias)
            m = LayerNormalization <axis = -1> (n, scale)
            first, second, third, fourth = Split <axis = 1, num_outputs = 4> (m)
            sides = Shape <start = 1, end = 3> (x)
            s = Add (first, third)
            batch = Shape <end = 1> (x)
            rest = Constant <value_ints = [2, -1, 6]> ()
            shape = Concat <axis = 0> (batch, rest)
            r = Reshape <allowzero = 1> (s, shape)
            scales = Constant <value_floats = [1.0, 1.0, 1.0, 2.0]> ()
            y = Resize <mode = "linear", antialias = 0, keep_aspect_ratio_policy = "stretch"> (r, , scales)
        }""")
    lowered = lower(made, opset)
    onnx.checker.check_model(lowered, full_check=True)
    assert lowered.opset_import[0].version == opset
    generator = np.random.default_rng(0)
    shapes = {'x': (2, 8, 5, 6), 'scale': (6,), 'bias': (6,)}
    inputs = {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    for one, other in zip(open_model(made).run(None, inputs), open_model(lowered).run(None, inputs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_lowering_refuses_what_it_does_not_know():
    made = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> agraph (float[1, 1, 4, 4] x, float[4] s) => (float[1, 1, 2, 2] y)'
        '{ y = Resize <mode = "linear", antialias = 1> (x, , s) }'
    )
    with pytest.raises(UserError, match='Resize with antialias=1'):
        lower(made, 13)
    with pytest.raises(UserError, match='--opset 12 is too low: 13 is the lowest'):
        lower(made, 12)


def damaged(graph, change):
    """A copy of ``graph`` with ``change`` done to its model."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    change(model)
    return Graph(model, graph.network, graph.program)


def weigh(name, factor):
    def change(model):
        (weight,) = [w for w in model.graph.initializer if w.name.endswith(name)]
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(factor), weight.name))

    return change


def test_a_wrong_operator_is_named(volo, tmp_path):
    """The first one, not those behind it; nothing is written; the table tells by how much."""
    wrong = damaged(volo[0], weigh('fpn_convs.1.conv.weight', 1.2))
    with pytest.raises(
        UserError, match=r'first operator that differs is Conv \(.*\) of decode_head\.fpn_convs\.1'
    ) as e:
        write_checked(wrong, volo[1], tmp_path / 'a.onnx')
    assert re.search(r'1 x 33 x 47 .*differs', str(e.value)) and not list(tmp_path.iterdir())


def test_a_wrong_operator_in_the_backbone_is_named(volo):
    def change(model):
        node = [n for n in model.graph.node if n.op_type == 'Softmax'][0]
        node.attribute[0].i = 1

    with pytest.raises(UserError, match=r'Softmax \(.*\) of backbone\.network\.0\.0\.attn'):
        check_parity(damaged(volo[0], change))


def test_a_wrong_module_is_named():
    """PyTorch exports another function than it runs: every ONNX operator does as told, and a module is to blame."""
    with pytest.raises(UserError, match=r'first module that differs is backbone\.doubled \(Doubled\)'):
        check_parity(graph_of(config_of(lie=True))[0])


def test_a_graph_that_does_not_run_is_refused(plain, tmp_path):
    def change(model):
        node = [n for n in model.graph.node if n.op_type == 'Resize'][0]
        node.input[0], node.input[3] = 'image', node.input[3]
        conv = [n for n in model.graph.node if n.op_type == 'Conv'][-1]
        conv.input[0] = 'image'

    with pytest.raises(UserError, match='onnxruntime fails at 2 x 160 x 192, so nothing was written'):
        write_checked(damaged(plain[0], change), plain[1], tmp_path / 'a.onnx')
    assert not list(tmp_path.iterdir())


def test_values_that_are_not_numbers_do_not_pass(plain):
    with pytest.raises(UserError, match='differs from PyTorch'):
        check_parity(damaged(plain[0], weigh('first.bias', float('nan'))))


def test_a_foreign_operator_is_refused(plain, tmp_path):
    def change(model):
        model.opset_import.add(domain='com.microsoft', version=1)
        model.graph.node.add(op_type='Gelu', domain='com.microsoft', input=['image'], output=['unused'])

    with pytest.raises(UserError, match='needs com.microsoft::Gelu'):
        write_checked(damaged(plain[0], change), plain[1], tmp_path / 'a.onnx')
    inner = onnx.helper.make_graph([onnx.helper.make_node('Col2Im', ['a', 'b', 'c'], ['d'])], 'inner', [], [])
    outer = onnx.helper.make_node('If', ['x'], ['y'], then_branch=inner, else_branch=inner)
    assert foreign_operators(onnx.helper.make_model(onnx.helper.make_graph([outer], 'g', [], []))) == ['Col2Im']


def test_newer_opsets(tmp_path):
    """18 is the exporter's own; what no PyTorch knows is refused."""
    network = network_of(config_of())
    export_onnx(network, tmp_path / 'a.onnx', opset=NATIVE)
    assert onnx.load(tmp_path / 'a.onnx').opset_import[0].version == NATIVE
    with pytest.raises(UserError, match='--opset 99'):
        export_onnx(network, tmp_path / 'b.onnx', opset=99)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a.onnx']


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
    for name in ('onnx_file', 'card'):
        subprocess.run([sys.executable, '-c', f'import volo_seg.export.{name}'], check=True)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(graph_module, 'find_spec', lambda name: None if name == 'onnxscript' else name)
    with pytest.raises(UserError, match=r"package onnxscript: pip install 'volo-seg\[onnx\]'"):
        graph_module.require_onnx()


def write_images(folder, count=5, size=(40, 56)):
    generator = np.random.default_rng(0)
    for i in range(count):
        (folder / 'images').mkdir(parents=True, exist_ok=True)
        coarse = generator.integers(0, 255, (4, 5, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / 'images' / f'{i}.png'), cv2.resize(coarse, size[::-1]))
    return folder


def test_int8_of_volo(volo, tmp_path):
    """A smaller file with 8-bit weights per channel, of standard operators, that gives nearly the same labels."""
    model, card = file_of(volo), volo[1]
    source, target = tmp_path / 'float.onnx', tmp_path / 'int8.onnx'
    onnx.save(model, source)
    images = calibration_images(write_images(tmp_path), count=3)
    quantize(source, target, images)
    done = onnx.load(target)
    weights = {w.name: w for w in done.graph.initializer}
    scales = [weights[n.input[1]] for n in done.graph.node if n.op_type == 'DequantizeLinear' and n.input[1] in weights]
    assert any(len(scale.dims) == 1 and scale.dims[0] > 1 for scale in scales)
    assert not foreign_operators(done) and [e.domain for e in done.opset_import] == ['']
    assert target.stat().st_size < 0.8 * source.stat().st_size
    assert 0.8 < equal_labels(source, target, images) <= 1
    assert OnnxPredictor(target).card.classes == card.classes
    assert OnnxPredictor(target).card.source['int8']['images'] == 3


def test_int8_calibrates_on_windows(tmp_path):
    config = config_of(test_cfg={'mode': 'slide', 'crop_size': (32, 32), 'stride': (24, 24)})
    export_onnx(network_of(config), tmp_path / 'a.onnx', normalize=True)
    images = calibration_images(write_images(tmp_path), count=2)
    quantize(tmp_path / 'a.onnx', tmp_path / 'b.onnx', images)
    assert equal_labels(tmp_path / 'a.onnx', tmp_path / 'b.onnx', images) > 0.8


def test_calibration_images_are_spread(tmp_path):
    folder = write_images(tmp_path, count=10)
    assert [path.name for path in calibration_images(folder, count=3)] == ['0.png', '3.png', '6.png']
    assert len(calibration_images(folder, count=99)) == 10
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
    words = [str(project / 'tiny.py'), 'none', str(out), '--int8', str(project / 'images'), '--evaluate']
    assert run('export', words) == 0
    said = capsys.readouterr().out
    assert '2 x 97 x 131' in said and '5 test images' in said and 'of 5 calibration images' in said
    assert sorted(p.name for p in out.parent.iterdir()) == ['net-int8.onnx', 'net.onnx']
    predictor = OnnxPredictor(out)
    assert predictor.classes == CLASSES and predictor.card.source['config'] == 'tiny'
    labels = np.stack([predictor(project / 'images' / f'{i}.png').labels for i in range(5)])
    truth = np.stack([np.full((40, 56), i % 3) for i in range(5)])
    ious = [((labels == c) & (truth == c)).sum() / ((labels == c) | (truth == c)).sum() for c in range(3)]
    assert f'float32   {100 * np.mean(ious):>8.2f}{100 * (labels == truth).mean():>8.2f}' in said
    assert run('export', words) == 2
    assert 'is there already; add --overwrite' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['net.pt'], 'does not end in .onnx'),
        (['net.onnx', '--opset', '11'], '--opset 11 is too low'),
        (['net.onnx', '--int8', 'nowhere'], "'nowhere' is not a folder"),
        (['net.onnx', '--calibration-images', '0'], '--calibration-images 0 is below 1'),
    ],
)
def test_mistakes(project, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert run('export', [str(project / 'tiny.py'), 'none', *words]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_labels_are_the_argmax_of_logits(volo):
    image = example_input(volo[0].network, (2, 50, 70), seed=5)
    found = compare(volo[0], open_model(volo[0].model), image)
    logits, labels = onnxruntime.InferenceSession(volo[0].model.SerializeToString()).run(None, {'image': image.numpy()})
    assert found.equal == 1.0 and np.array_equal(labels, logits.argmax(1)) and labels.dtype == np.uint8
    assert torch.from_numpy(labels).unique().numel() > 1

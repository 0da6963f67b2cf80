"""The head against MMSegmentation's UPerHead: equal results and gradients, less arithmetic, exportable at any size."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import peak_bytes
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from volo_seg.models import VOLOUPerHead, winograd
from volo_seg.models.resize import split_conv
from volo_seg.models.resize.matrices import (
    BLOCK_ROWS_CPU,
    adaptive_avg_pools,
    pools_by_matrices,
    tap_axis,
    tap_matrices,
)
from volo_seg.models.resize.split_conv import conv3x3_of_maps, conv3x3_of_resized, split_pays

from mmengine.registry import MODELS as CONVOLUTIONS  # isort: skip
from mmseg.models.decode_heads import UPerHead  # isort: skip
from mmseg.registry import MODELS  # isort: skip

IN_CHANNELS = (6, 8, 10, 12)
NATIVE, PYRAMID = (8, 16, 16, 16), (4, 8, 16, 32)


def pair(dtype=torch.float64, in_channels=IN_CHANNELS, **options):
    """UPerHead and ours with the same weights, normalisations away from the identity."""
    options = {'channels': 8, 'num_classes': 5, 'norm_cfg': {'type': 'BN'}, 'dropout_ratio': 0.0, **options}
    theirs = UPerHead(in_channels=list(in_channels), in_index=[0, 1, 2, 3], **options)
    ours = VOLOUPerHead(in_channels=list(in_channels), in_index=[0, 1, 2, 3], **options)
    for name, tensor in (*theirs.named_parameters(), *theirs.named_buffers()):
        if tensor.is_floating_point() and ('.bn.' in name or '.gn.' in name):
            nn.init.uniform_(tensor, 0.5, 1.5)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs.to(dtype), ours.to(dtype)


def maps(sizes, dtype=torch.float64, batch=2, memory_format=torch.contiguous_format):
    shapes = [(batch, c, *size) for c, size in zip(IN_CHANNELS, sizes, strict=True)]
    return [torch.randn(shape, dtype=dtype).contiguous(memory_format=memory_format) for shape in shapes]


def sizes_of(height, width, strides):
    return [(-(-height // s), -(-width // s)) for s in strides]


def named_gradients(head, inputs, direction):
    """Output, gradients by name (inputs, parameters) and buffers after one forward and backward."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    out = head(inputs)
    out.backward(direction)
    gradients = {name: p.grad for name, p in head.named_parameters()}
    gradients |= {f'map {i}': x.grad for i, x in enumerate(inputs)}
    return out, gradients, dict(head.named_buffers())


def assert_equal_steps(theirs, ours, inputs, tolerance=1e-10):
    theirs.zero_grad()
    ours.zero_grad()
    direction = torch.randn_like(theirs(inputs))
    theirs.load_state_dict(ours.state_dict())  # the forward above moved running means
    expected, got = (named_gradients(head, inputs, direction) for head in (theirs, ours))
    torch.testing.assert_close(got[0], expected[0], rtol=tolerance, atol=tolerance)
    for kind in (1, 2):
        assert got[kind].keys() == expected[kind].keys()
        for name, value in expected[kind].items():
            assert value is not None, name
            torch.testing.assert_close(got[kind][name], value, rtol=tolerance, atol=tolerance, msg=name)


@pytest.fixture(params=['by cost', 'always', 'never'])
def split(request, monkeypatch):
    """Levels are split by their cost, or all of them, or none."""
    if request.param != 'by cost':
        monkeypatch.setattr(split_conv, 'split_pays', lambda *_: request.param == 'always')
    return request.param


@pytest.mark.parametrize('norm_cfg', [{'type': 'BN'}, {'type': 'GN', 'num_groups': 2}, None], ids=str)
@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize(
    'sizes',
    [
        sizes_of(95, 67, NATIVE),
        sizes_of(101, 67, PYRAMID),
        [(7, 5), (7, 5), (7, 5), (7, 5)],
        [(6, 9), (8, 4), (3, 11), (5, 2)],
    ],
    ids=str,
)
def test_equals_mmseg(split, norm_cfg, align_corners, training, sizes):
    """Outputs, every gradient by name and running statistics, in float64 to 1e-10; inference too."""
    theirs, ours = pair(norm_cfg=norm_cfg, align_corners=align_corners)
    theirs.train(training), ours.train(training)
    inputs = maps(sizes)
    assert_equal_steps(theirs, ours, inputs)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        laid_out = [x.contiguous(memory_format=memory_format) for x in inputs]
        before = [x.clone() for x in laid_out]
        with torch.no_grad():
            torch.testing.assert_close(ours.eval()(laid_out), theirs.eval()(laid_out), rtol=1e-10, atol=1e-10)
        assert all(torch.equal(x, y) for x, y in zip(laid_out, before, strict=True)), 'inputs were changed'


@pytest.mark.parametrize('training', [False, True])
def test_with_winograds_filtering(training, monkeypatch):
    """The 3x3 convolutions of levels in several chunks, and of the fusion."""
    used = []
    plain = winograd.winograd_conv3x3
    monkeypatch.setattr(winograd, 'winograd_conv3x3', lambda *maps: used.append(1) or plain(*maps))
    for name, value in (('MIN_CHANNELS', 1), ('MIN_PIXELS', 1), ('CHUNK_VALUES', 2000)):
        monkeypatch.setattr(winograd, name, value)
    theirs, ours = pair()
    theirs.train(training), ours.train(training)
    assert_equal_steps(theirs, ours, maps(sizes_of(95, 67, NATIVE)))
    assert len(used) == 5


@pytest.mark.parametrize('training', [False, True])
def test_plain_order_on_other_devices(training):
    """Without the type of the device in ``optimized_devices``, UPerHead computes: equal bit for bit, hooks fire."""
    theirs, ours = pair(torch.float32)
    ours.optimized_devices = VOLOUPerHead(
        in_channels=[4], in_index=[0], channels=4, num_classes=2, optimized_devices=('cuda',)
    ).optimized_devices
    inputs = maps(sizes_of(95, 67, NATIVE), torch.float32)
    called = []
    ours.fpn_bottleneck.conv.register_forward_hook(lambda *_: called.append(1))
    with torch.set_grad_enabled(training):
        assert torch.equal(ours.train(training)(inputs), theirs.train(training)(inputs))
    assert called
    assert VOLOUPerHead(in_channels=[4], in_index=[0], channels=4, num_classes=2).optimized_devices == ('cpu',)


@settings(max_examples=15, deadline=None)
@given(st.integers(17, 140), st.integers(17, 140), st.sampled_from([NATIVE, PYRAMID]), st.booleans())
def test_any_size_in_float32(height, width, strides, align_corners):
    theirs, ours = pair(torch.float32, align_corners=align_corners)
    inputs = maps(sizes_of(height, width, strides), torch.float32, batch=1)
    with torch.no_grad():
        expected, got = theirs.eval()(inputs), ours.eval()(inputs)
    assert float((got - expected).abs().max() / expected.abs().max()) < 1e-5


@pytest.mark.parametrize('pool_scales', [(1,), (2, 5), (1, 2, 3, 6)])
def test_pool_scales(pool_scales):
    theirs, ours = pair(pool_scales=pool_scales)
    assert_equal_steps(theirs.train(), ours.train(), maps(sizes_of(95, 67, NATIVE)))


class DoublingConv(nn.Conv2d):
    """A convolution that is not a plain one."""

    def forward(self, x):
        return 2 * super().forward(x)


def test_other_convolutions_go_the_plain_way():
    """A convolution of another kind is called, never taken apart."""
    CONVOLUTIONS.register_module(name='DoublingConv', module=DoublingConv, force=True)
    theirs, ours = pair(conv_cfg={'type': 'DoublingConv'})
    inputs = maps(sizes_of(96, 80, NATIVE))
    assert_equal_steps(theirs.eval(), ours.eval(), inputs)
    with torch.no_grad():
        torch.testing.assert_close(ours(inputs), theirs(inputs), rtol=1e-10, atol=1e-10)


def test_layout_on_a_cpu():
    """NHWC in memory at inference, NCHW where gradients are recorded."""
    head = pair()[1]
    inputs = maps(sizes_of(96, 80, NATIVE))
    seen = []
    for conv in head.fpn_convs:
        conv.register_forward_pre_hook(lambda _, x: seen.append(x[0].is_contiguous(memory_format=torch.channels_last)))
    head.train()(inputs)
    assert not any(seen)
    seen.clear()
    with torch.inference_mode():
        head.eval()(inputs)
    assert len(seen) == 3 and all(seen)


def test_folded_normalisation():
    """After mmcv folds BatchNorm into the convolutions, biases take their part."""
    from mmcv.cnn.utils import fuse_conv_bn

    theirs, ours = (head.eval() for head in pair())
    inputs = maps(sizes_of(96, 80, NATIVE))
    with torch.no_grad():
        expected = theirs(inputs)
        torch.testing.assert_close(fuse_conv_bn(ours)(inputs), expected, rtol=1e-10, atol=1e-10)


def test_sync_bn_at_inference():
    theirs, ours = (head.eval() for head in pair(norm_cfg={'type': 'SyncBN'}))
    inputs = maps(sizes_of(95, 67, PYRAMID))
    with torch.no_grad():
        torch.testing.assert_close(ours(inputs), theirs(inputs), rtol=1e-10, atol=1e-10)


def test_checkpoints_and_registry():
    """Same names and shapes both ways, the same initial values from the same seed."""
    theirs, ours = pair()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert list(theirs.state_dict()) == list(ours.state_dict())
    options = {'in_channels': [2] * 4, 'in_index': [0, 1, 2, 3], 'channels': 4, 'num_classes': 3}
    heads = []
    for kind in ('UPerHead', 'VOLOUPerHead'):
        torch.manual_seed(4)
        heads.append(MODELS.build({'type': kind, **options}))
        heads[-1].init_weights()
    assert all(torch.equal(a, b) for a, b in zip(*(h.state_dict().values() for h in heads), strict=True))


def test_inference_first_does_not_spoil_training():
    """Matrices are kept from one call to the next; those made in inference mode must serve training too."""
    theirs, ours = pair(torch.float64)
    tap_axis.cache_clear()
    inputs = maps(sizes_of(96, 80, NATIVE))
    with torch.inference_mode():
        ours.eval()(inputs)
    assert_equal_steps(theirs.train(), ours.train(), inputs)


@pytest.mark.parametrize('training', [False, True])
def test_autocast_is_as_precise_as_mmseg(split, training):
    """bfloat16: the error against float32 is at most half as large again as MMSegmentation's."""
    theirs, ours = (head.train(training) for head in pair(torch.float32))
    inputs = maps(sizes_of(96, 80, NATIVE), torch.float32)
    exact = copy.deepcopy(theirs)(inputs).detach()
    errors = []
    for head in (theirs, ours):
        with torch.autocast('cpu', dtype=torch.bfloat16):
            out = head(inputs)
        assert out.dtype == torch.bfloat16
        out.float().square().mean().backward()
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in head.parameters())
        errors.append(float((out.float() - exact).detach().square().mean().sqrt()))
    assert errors[1] <= 1.5 * errors[0], errors


def test_compiles_in_one_graph():
    theirs, ours = pair(torch.float32)
    inputs = maps(sizes_of(96, 80, NATIVE), torch.float32)
    compiled = torch.compile(ours, backend='eager', fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled.eval()(inputs), theirs.eval()(inputs), rtol=1e-5, atol=1e-5)
    torch.compile(ours, backend='aot_eager', fullgraph=True).train()(inputs).sum().backward()
    theirs.train()(inputs).sum().backward()
    gradient = ours.fpn_bottleneck.conv.weight.grad
    torch.testing.assert_close(gradient, theirs.fpn_bottleneck.conv.weight.grad, rtol=1e-3, atol=1e-4)


class OnSlices(nn.Module):
    """The head behind the cheapest backbone: every s-th pixel, repeated to the channels."""

    def __init__(self, head, strides):
        super().__init__()
        self.head, self.strides = head, strides

    def forward(self, x):
        return self.head([x[:, :, ::s, ::s].repeat(1, c, 1, 1) for c, s in zip(IN_CHANNELS, self.strides, strict=True)])


OTHER_SIZES = [(64, 64), (97, 131), (200, 33), (256, 320)]


@pytest.mark.parametrize(('strides', 'align_corners'), [(NATIVE, False), (PYRAMID, True)], ids=str)
def test_exports_for_any_size(strides, align_corners):
    theirs, ours = (head.eval() for head in pair(torch.float32, align_corners=align_corners))
    free = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    example = (torch.randn(1, 1, 128, 160),)
    program = torch.export.export(
        OnSlices(ours, strides), example, dynamic_shapes={'x': free}, prefer_deferred_runtime_asserts_over_guards=True
    ).module()
    assert not [node for node in program.graph.nodes if 'adaptive' in str(node.target)]
    for size in OTHER_SIZES:
        x = torch.randn(1, 1, *size)
        with torch.no_grad():
            torch.testing.assert_close(program(x), OnSlices(theirs, strides)(x), rtol=1e-4, atol=1e-5)


def test_onnx_for_any_size():
    pytest.importorskip('onnx')
    pytest.importorskip('onnxscript')
    runtime = pytest.importorskip('onnxruntime')
    theirs, ours = (head.eval() for head in pair(torch.float32))
    free = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    example = (torch.randn(1, 1, 128, 160),)
    file = io.BytesIO()
    model = torch.onnx.export(OnSlices(ours, NATIVE), example, dynamo=True, dynamic_shapes={'x': free}, verbose=False)
    model.save(file)
    session = runtime.InferenceSession(file.getvalue())
    for size in OTHER_SIZES:
        x = torch.randn(1, 1, *size)
        (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(got), OnSlices(theirs, NATIVE)(x), rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(st.integers(1, 50), st.integers(1, 50)),
    st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=4),
)
def test_pooling_matrices_equal_adaptive_pooling(size, targets):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    for got, target in zip(pools_by_matrices(x, targets), targets, strict=True):
        torch.testing.assert_close(got, F.adaptive_avg_pool2d(x, target), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(adaptive_avg_pools(x, targets), pools_by_matrices(x, targets), rtol=1e-12, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 70), st.integers(1, 150), st.booleans())
def test_tap_matrices_equal_interpolate(source, target, align_corners):
    taps = tap_matrices(source, target, align_corners=align_corners, dtype=torch.float64, device=torch.device('cpu'))
    identity = torch.eye(source, dtype=torch.float64)[None, :, :, None]
    rows = F.interpolate(identity, (target, 1), mode='bilinear', align_corners=align_corners)[0, :, :, 0].t()
    torch.testing.assert_close(taps[1], rows, rtol=1e-12, atol=1e-12)
    padded = F.pad(rows, (0, 0, 1, 1))
    assert torch.equal(taps[0], F.pad(taps[1], (0, 0, 1, 0))[:target])
    torch.testing.assert_close(taps[2], padded[2:], rtol=1e-12, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 60), st.integers(1, 140), st.booleans())
def test_blocks_make_up_the_matrix(source, target, align_corners):
    """Blocks of rows, put together, are the tap matrices; each is dense only where these are not zero."""
    options = {'align_corners': align_corners, 'dtype': torch.float64, 'device': torch.device('cpu')}
    taps = tap_matrices(source, target, **options).permute(1, 2, 0).reshape(target, source * 3)
    axis = tap_axis(source, target, **options)
    for matrix, blocks in ((taps, axis.forward), (taps.t(), axis.backward)):
        rebuilt = torch.zeros_like(matrix)
        for block in blocks:
            rebuilt[block.rows, block.columns] = block.weights
            assert len(block.weights) <= BLOCK_ROWS_CPU
        assert torch.equal(rebuilt, matrix)


@pytest.mark.parametrize('align_corners', [False, True])
def test_split_convolution_gradients(align_corners):
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    size = (7, 9)
    assert torch.autograd.gradcheck(
        lambda a, b: conv3x3_of_resized(a, b, size, align_corners=align_corners), (x, weight)
    )
    plain = F.conv2d(F.interpolate(x, size, mode='bilinear', align_corners=align_corners), weight, padding=1)
    got = conv3x3_of_resized(x, weight, size, align_corners=align_corners)
    torch.testing.assert_close(got, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('needed', ['pixels', 'weight'])
def test_one_gradient_alone(needed):
    """A frozen weight, or maps without gradient."""
    x = torch.randn(1, 3, 4, 5, dtype=torch.float64, requires_grad=needed == 'pixels')
    weight = torch.randn(2, 3, 3, 3, dtype=torch.float64, requires_grad=needed == 'weight')
    wanted = x if needed == 'pixels' else weight
    plain = F.conv2d(F.interpolate(x, (8, 10), mode='bilinear'), weight, padding=1)
    got = conv3x3_of_resized(x, weight, (8, 10), align_corners=False)
    expected = torch.autograd.grad(plain.square().sum(), wanted)
    torch.testing.assert_close(torch.autograd.grad(got.square().sum(), wanted), expected, rtol=1e-11, atol=1e-11)


def counted(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize(('strides', 'share'), [(NATIVE, 0.56), (PYRAMID, 0.53)], ids=str)
def test_half_the_arithmetic(strides, share):
    """With d1's channels, counted and not timed; a step saves as much."""
    channels, size = (192, 384, 384, 384), 160
    options = {'in_channels': list(channels), 'in_index': [0, 1, 2, 3], 'channels': 512, 'num_classes': 150}
    heads = UPerHead(**options), VOLOUPerHead(**options)
    inputs = [torch.randn(1, c, size // s, size // s) for c, s in zip(channels, strides, strict=True)]
    with torch.no_grad():
        plain, ours = (counted(lambda h=h: h(inputs)) for h in heads)
    assert ours < share * plain, ours / plain
    if strides == NATIVE:
        plain, ours = (counted(lambda h=h: h(inputs).sum().backward()) for h in heads)
        assert ours < share * plain, ours / plain


def test_what_costs_less():
    """Split where a map is enlarged much, plain where it is hardly enlarged, made smaller, or too small to matter."""
    wide = torch.empty(1, 512, 32, 32)
    assert split_pays(wide, 512, (64, 64)) and split_pays(wide, 512, (33, 128))
    assert not split_pays(wide, 512, (34, 34)) and not split_pays(wide, 512, (16, 16))
    assert not split_pays(torch.empty(1, 128, 48, 48), 128, (64, 64))
    assert not split_pays(torch.empty(1, 64, 4, 4), 64, (8, 8))


def test_equal_maps_are_taken_together():
    """Maps of the wanted size go through one convolution; neighbours of equal size are mixed once."""
    sizes = [(8, 8), (4, 4), (4, 4), (2, 2), (8, 8)]
    parts = [torch.randn(1, 3, *size, dtype=torch.float64) for size in sizes]
    weight = torch.randn(4, 15, 3, 3, dtype=torch.float64)
    whole = torch.cat([F.interpolate(p, (8, 8), mode='bilinear') for p in parts], dim=1)
    with torch.no_grad():
        got = conv3x3_of_maps(parts, weight, (8, 8), align_corners=False)
    torch.testing.assert_close(got, F.conv2d(whole, weight, padding=1), rtol=1e-12, atol=1e-12)


def test_equal_coarse_maps_are_mixed_once(monkeypatch):
    calls = []

    def counting(x, *rest, **options):
        calls.append(tuple(x.shape))
        return conv3x3_of_resized(x, *rest, **options)

    monkeypatch.setattr(split_conv, 'conv3x3_of_resized', counting)
    parts = [torch.randn(1, 64, *size) for size in [(32, 32), (16, 16), (16, 16), (16, 16)]]
    conv3x3_of_maps(parts, torch.randn(64, 256, 3, 3), (32, 32), align_corners=False)
    assert calls == [(1, 192, 16, 16)]


@pytest.mark.parametrize(('strides', 'inference', 'step'), [(NATIVE, 0.55, 0.9), (PYRAMID, 0.65, 0.75)], ids=str)
def test_takes_less_memory(strides, inference, step):
    theirs, ours = pair(torch.float32, channels=128)
    inputs = maps(sizes_of(256, 256, strides), torch.float32, batch=1)
    with torch.inference_mode():
        used = [peak_bytes(lambda h=h: h(inputs)) for h in (theirs.eval(), ours.eval())]
    assert used[1] < inference * used[0], used
    inputs = maps(sizes_of(256, 256, strides), torch.float32)
    used = [peak_bytes(lambda h=h: h(inputs).sum().backward()) for h in (theirs.train(), ours.train())]
    assert used[1] < step * used[0], used

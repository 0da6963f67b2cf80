"""Losses without logits at image size: equal to MMSegmentation's, with their gradient, in less memory."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import peak_bytes
from mmengine.structures import PixelData
from torch import nn

from volo_seg.models import VOLOFCNHead, WeightedCrossEntropyLoss
from volo_seg.models.decode_heads.resized_loss import ResizedLossMixin
from volo_seg.models.losses import resized_cross_entropy as module
from volo_seg.models.losses.resized_cross_entropy import resized_cross_entropy, resized_pixel_losses

from mmseg.models.decode_heads import FCNHead  # isort: skip
from mmseg.structures import SegDataSample  # isort: skip

CE = {'type': 'CrossEntropyLoss'}
WEIGHTS = [0.5, 2.0, 1.0, 0.0, 3.0]
LOSSES = {
    'all pixels': CE,
    'counted pixels': {**CE, 'avg_non_ignore': True, 'loss_weight': 0.4},
    'sum': {**CE, 'reduction': 'sum'},
    'class weights': {**CE, 'class_weight': WEIGHTS},
    'weighted': {'type': 'WeightedCrossEntropyLoss', 'class_weight': WEIGHTS, 'loss_weight': 0.4},
    'smoothed': {'type': 'WeightedCrossEntropyLoss', 'label_smoothing': 0.2},
    'weighted and smoothed': {'type': 'WeightedCrossEntropyLoss', 'class_weight': WEIGHTS, 'label_smoothing': 0.2},
    'several': [CE, {**CE, 'class_weight': WEIGHTS}, {**CE, 'avg_non_ignore': True, 'loss_name': 'loss_other'}],
}
SAMPLERS = {
    'none': None,
    'probability': {'type': 'OHEMPixelSampler', 'thresh': 0.3, 'min_kept': 20},
    'few': {'type': 'OHEMPixelSampler', 'thresh': 1e-6, 'min_kept': 20},
    'loss': {'type': 'OHEMPixelSampler', 'min_kept': 30},
}


def pair(loss=CE, **options):
    """FCNHead and ours."""
    options = {'in_channels': 4, 'channels': 4, 'num_classes': 5, 'in_index': 0, 'loss_decode': loss, **options}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return FCNHead(**options), VOLOFCNHead(**options)


def batch(small=(5, 7), large=(33, 41), images=3, classes=5, dtype=torch.float64, empty=True):
    """Logits and samples; of the last image no pixel counts."""
    generator = torch.Generator().manual_seed(sum(small) + 7 * sum(large))
    logits = (3 * torch.randn(images, classes, *small, generator=generator, dtype=torch.float64)).to(dtype)
    labels = torch.randint(0, classes, (images, 1, *large), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = 255
    if empty:
        labels[-1] = 255
    return logits, [SegDataSample(gt_sem_seg=PixelData(data=label)) for label in labels]


def losses_and_gradient(head, logits, samples):
    logits = logits.clone().requires_grad_()
    losses = head.loss_by_feat(logits, samples)
    sum(value for name, value in losses.items() if 'loss' in name).backward()
    return losses, logits.grad


def assert_equal(heads, logits, samples, tolerance=1e-10):
    (expected, theirs), (losses, ours) = (losses_and_gradient(head, logits, samples) for head in heads)
    assert losses.keys() == expected.keys()
    for name, value in losses.items():
        assert value.shape == expected[name].shape
        bound = max(tolerance, 1e-5) if name == 'acc_seg' else tolerance
        torch.testing.assert_close(value.double(), expected[name].double(), rtol=bound, atol=bound, msg=name)
    assert ours.dtype == theirs.dtype
    scale = float(theirs.abs().max()) or 1.0
    torch.testing.assert_close(ours / scale, theirs / scale, rtol=0, atol=tolerance)


@pytest.fixture
def no_plain_path(monkeypatch):
    """MMSegmentation's computation inside our head is an error; its own head is not affected."""
    plain = FCNHead.loss_by_feat

    def refused(self, *args):
        assert not isinstance(self, ResizedLossMixin), 'the plain path ran'
        return plain(self, *args)

    monkeypatch.setattr(FCNHead.__mro__[1], 'loss_by_feat', refused)


@pytest.fixture(params=[1, 3000, 2**26])
def chunk(request, monkeypatch):
    """A row, a few rows and whole batches in a chunk."""
    monkeypatch.setattr(module, 'CHUNK_CPU', request.param)


@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('sampler', SAMPLERS.values(), ids=SAMPLERS)
@pytest.mark.parametrize('loss', LOSSES.values(), ids=LOSSES)
def test_losses_accuracy_and_gradients_equal_mmsegs(no_plain_path, chunk, loss, sampler, align_corners):
    if not isinstance(loss, list) and loss.get('reduction') == 'sum' and sampler and 'thresh' not in sampler:
        sampler = {**sampler, 'thresh': None}
    if 'label_smoothing' in loss and sampler and 'thresh' not in sampler:
        pytest.skip('smoothed losses choose pixels in the plain path')
    assert_equal(pair(loss, sampler=sampler, align_corners=align_corners), *batch())


@settings(max_examples=60)
@given(
    *(st.integers(1, 12) for _ in range(2)),
    *(st.integers(1, 40) for _ in range(2)),
    st.integers(2, 6),
    st.booleans(),
    st.integers(1, 20000),
)
def test_any_sizes_and_chunks(h, w, height, width, classes, align_corners, chunk_bytes):
    before, module.CHUNK_CPU = module.CHUNK_CPU, chunk_bytes
    try:
        heads = pair(num_classes=classes, align_corners=align_corners)
        assert_equal(heads, *batch((h, w), (height, width), 2, classes, empty=False))
    finally:
        module.CHUNK_CPU = before


@pytest.mark.parametrize('loss', [CE, LOSSES['counted pixels']])
def test_float32_is_close_and_a_batch_without_a_counted_pixel_gives_zero(no_plain_path, loss):
    assert_equal(pair(loss), *batch((8, 8), (64, 64), dtype=torch.float32), 1e-6)
    logits, samples = batch()
    losses, gradient = losses_and_gradient(pair(loss)[1], logits, samples[-1:] * 3)
    assert losses['loss_ce'] == 0
    assert not gradient.any()
    assert torch.isfinite(losses['acc_seg']).all()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(no_plain_path, dtype):
    head = pair(LOSSES['class weights'])[1]
    logits, samples = batch(dtype=dtype)
    expected, wide = losses_and_gradient(head, logits.float(), samples)
    with torch.autocast('cpu', torch.bfloat16):
        losses, gradient = losses_and_gradient(head, logits, samples)
    assert losses['loss_ce'].dtype == torch.float32
    assert torch.equal(losses['loss_ce'], expected['loss_ce'])
    assert gradient.dtype == dtype
    assert torch.equal(gradient, wide.to(dtype))


def small_case():
    logits, samples = batch((2, 3), (7, 5), 2, 3, empty=False)
    labels = torch.stack([sample.gt_sem_seg.data[0] for sample in samples])
    weight = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
    return (
        logits.requires_grad_(),
        labels,
        {
            'class_weight': weight,
            'pixel_weight': torch.rand(2, 7, 5).double(),
            'label_smoothing': 0.2,
        },
    )


@pytest.mark.parametrize('names', [[], ['label_smoothing'], ['class_weight', 'pixel_weight', 'label_smoothing']])
def test_gradients_and_double_backward(names):
    logits, labels, options = small_case()
    options = {name: options[name] for name in names}

    def function(logits):
        return resized_cross_entropy(logits, labels, **options)[0] ** 2

    assert torch.autograd.gradcheck(function, logits)
    assert torch.autograd.gradgradcheck(function, logits)


@pytest.mark.parametrize('class_weight', [None, WEIGHTS])
def test_label_smoothing_is_torchs(no_plain_path, class_weight):
    """Of the head, in float32, against ``F.cross_entropy`` of logits at the size of the labels."""
    logits, samples = batch(dtype=torch.float32)
    labels = torch.cat([sample.gt_sem_seg.data for sample in samples])
    expected = logits.double().requires_grad_()
    large = F.interpolate(expected, labels.shape[1:], mode='bilinear')
    weight = class_weight and expected.new_tensor(class_weight)
    loss = F.cross_entropy(large, labels, weight, ignore_index=255, label_smoothing=0.3)
    loss.backward()
    head = pair({'type': 'WeightedCrossEntropyLoss', 'class_weight': class_weight, 'label_smoothing': 0.3})[1]
    losses, gradient = losses_and_gradient(head, logits, samples)
    torch.testing.assert_close(losses['loss_ce'].double(), loss.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient.double(), expected.grad, rtol=0, atol=1e-6 * float(expected.grad.abs().max()))


@pytest.mark.parametrize('label_smoothing', [-0.1, 1.0])
def test_label_smoothing_has_bounds(label_smoothing):
    with pytest.raises(ValueError, match='label_smoothing=.* is not in'):
        WeightedCrossEntropyLoss(label_smoothing=label_smoothing)


def test_pixel_losses_are_those_of_full_size_logits():
    logits, labels, _ = small_case()
    large = F.interpolate(logits, labels.shape[1:], mode='bilinear', align_corners=True)
    expected = F.cross_entropy(large, labels, ignore_index=255, reduction='none')
    losses = resized_pixel_losses(logits, labels, ignore_index=255, align_corners=True)
    assert not losses.requires_grad
    torch.testing.assert_close(losses, expected.detach())


def test_the_operators_are_well_formed():
    logits, labels, options = small_case()
    torch.library.opcheck(module._loss, (logits, labels, *options.values(), 255, False, True))
    torch.library.opcheck(module._loss, (logits.detach(), labels, None, None, 0.0, 255, True, False))
    torch.library.opcheck(module._pixel_losses, (logits.detach(), labels, 255, False))


def test_compiled_backward_multiplies_the_gradient_of_the_forward_pass():
    logits, labels, options = small_case()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    from torch._dynamo.backends.common import aot_autograd

    def function(logits):
        return resized_cross_entropy(logits, labels, **options)[0] * 2

    (expected,) = torch.autograd.grad(function(logits), logits)
    compiled = torch.compile(function, backend=aot_autograd(fw_compiler=backend), fullgraph=True)
    (gradient,) = torch.autograd.grad(compiled(logits), logits)
    torch.testing.assert_close(gradient, expected)
    called = [str(node.target) for graph in graphs for node in graph.graph.nodes if node.op == 'call_function']
    assert sum('resized_cross_entropy' in name for name in called) == 1
    assert not any('softmax' in name or 'upsample' in name for name in called)


def test_without_gradient_none_is_computed(no_plain_path, monkeypatch):
    head, (logits, samples) = pair()[1], batch()
    expected = head.loss_by_feat(logits.clone().requires_grad_(), samples)['loss_ce'].detach()
    monkeypatch.setattr(torch.Tensor, 'scatter_', None)  # the gradient needs it
    assert torch.equal(head.loss_by_feat(logits, samples)['loss_ce'], expected)
    with torch.no_grad():
        assert torch.equal(head.loss_by_feat(logits.requires_grad_(), samples)['loss_ce'], expected)
    with pytest.raises(TypeError):
        head.loss_by_feat(logits, samples)


class OtherLoss(WeightedCrossEntropyLoss):
    pass


def hooked():
    head = pair()[1]
    head.seen = []
    head.loss_decode.register_forward_hook(lambda *_: head.seen.append(True))
    return head


PLAIN = {
    'dice': lambda: pair([CE, {'type': 'DiceLoss', 'loss_name': 'loss_dice'}])[1],
    'per pixel': lambda: pair({**CE, 'reduction': 'none'})[1],
    'hook': hooked,
    'smoothed losses choose pixels': lambda: pair(LOSSES['smoothed'], sampler=SAMPLERS['loss'])[1],
    'sigmoid': lambda: pair({**CE, 'use_sigmoid': True})[1],
}


@pytest.mark.parametrize('build', PLAIN.values(), ids=PLAIN)
def test_other_losses_take_mmsegs_path(build, monkeypatch):
    head, (logits, samples) = build(), batch(empty=False)
    expected = FCNHead.loss_by_feat(head, logits, samples)
    plain = super(ResizedLossMixin, head).loss_by_feat(logits, samples)
    monkeypatch.setattr('volo_seg.models.decode_heads.resized_loss.resized_cross_entropy', None)
    losses = head.loss_by_feat(logits, samples)
    for name, value in plain.items():
        assert torch.equal(losses[name], value)
        assert name in expected
    assert getattr(head, 'seen', [True])


def test_transforms_take_mmsegs_path():
    head, (logits, samples) = pair()[1], batch(empty=False)
    expected = losses_and_gradient(head, logits, samples)[1]
    gradient = torch.func.grad(lambda x: head.loss_by_feat(x, samples)['loss_ce'])(logits)
    torch.testing.assert_close(gradient, expected)


def test_subclass_of_a_loss_takes_mmsegs_path(monkeypatch):
    head, (logits, samples) = pair()[1], batch(empty=False)
    head.loss_decode = OtherLoss(class_weight=WEIGHTS)
    monkeypatch.setattr('volo_seg.models.decode_heads.resized_loss.resized_cross_entropy', None)
    assert head.loss_by_feat(logits, samples)['loss_ce'] > 0


def test_a_label_that_is_no_class_is_an_error():
    head, (logits, samples) = pair()[1], batch()
    samples[0].gt_sem_seg.data[0, 0, 0] = 7
    with pytest.raises((IndexError, RuntimeError), match='out of bounds'):
        head.loss_by_feat(logits, samples)


def test_peak_memory_is_a_tenth():
    heads = pair(num_classes=19)
    logits, samples = batch((16, 16), (256, 256), 4, 19, torch.float32, empty=False)
    theirs, ours = (peak_bytes(lambda head=head: losses_and_gradient(head, logits, samples)) for head in heads)
    assert ours < 0.1 * theirs


def test_state_dict_is_that_of_fcn_head():
    theirs, ours = pair()
    assert isinstance(ours, nn.Module)
    ours.load_state_dict(theirs.state_dict(), strict=True)


def test_memory_format_of_the_logits_changes_nothing():
    logits, samples = batch(dtype=torch.float32)
    head = pair()[1]
    losses, gradient = losses_and_gradient(head, logits, samples)
    last, of_last = losses_and_gradient(head, logits.contiguous(memory_format=torch.channels_last), samples)
    assert all(torch.equal(last[name], value) for name, value in losses.items()) and torch.equal(of_last, gradient)

"""What users of PyTorch do with a head, done with MMSegmentation's ``UPerHead`` and with ours."""

import warnings

import pytest
import torch
from mmengine.analysis import get_model_complexity_info
from test_uper_head import IN_CHANNELS, NATIVE, PYRAMID, assert_equal_steps, maps, pair, sizes_of
from torch import func, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.nn.utils import parametrizations, parametrize, prune

from volo_seg.models.resize import split_conv
from volo_seg.models.resize.matrices import tap_axis

from mmseg.registry import MODELS  # isort: skip

SIZES = sizes_of(96, 80, NATIVE)
MODULES = [name for name, _ in pair()[0].named_modules() if name and not name.startswith(('loss', 'dropout'))]
CALLED = [name for name in MODULES if not name.endswith(('lateral_convs', 'fpn_convs'))]
CONVS = [name for name, module in pair()[0].named_modules() if isinstance(module, nn.Conv2d)]


@pytest.fixture(autouse=True)
def split_always(monkeypatch):
    """Every map that is enlarged takes the path that differs from ``UPerHead``."""
    monkeypatch.setattr(split_conv, 'split_pays', lambda *_: True)


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('grad', [False, True])
def test_every_forward_hook_fires(grad):
    """On each submodule alone, with the input and output that ``UPerHead`` gives it."""
    inputs = maps(SIZES, batch=1)
    assert len(CALLED) > 40
    for name in CALLED:
        seen = []
        for head in pair():
            head.eval()
            head.load_state_dict(seen[0][2].state_dict() if seen else head.state_dict())
            calls = []
            module = head.get_submodule(name)
            module.register_forward_pre_hook(lambda _, x, calls=calls: calls.append(x[0]))
            module.register_forward_hook(lambda _, x, out, calls=calls: calls.append(out))
            with torch.set_grad_enabled(grad):
                seen.append((head(inputs), calls, head))
        assert len(seen[0][1]) == len(seen[1][1]) == 2, name
        close(seen[1][0], seen[0][0])
        for got, expected in zip(seen[1][1], seen[0][1], strict=True):
            close(got, expected)


@pytest.mark.parametrize('kind', ['forward', 'forward_pre', 'full_backward', 'full_backward_pre'])
@pytest.mark.parametrize(
    'name', ['bottleneck', 'fpn_bottleneck', 'lateral_convs.1', 'conv_seg', 'psp_modules.2', 'psp_modules']
)
def test_hooks_change_the_result(name, kind):
    """A hook that doubles what passes: equal outputs and gradients by name."""

    def double(value):
        return (
            [double(v) for v in value]
            if isinstance(value, list)
            else tuple(map(double, value))
            if isinstance(value, tuple)
            else None
            if value is None
            else 2 * value
        )

    theirs, ours = (head.train() for head in pair())
    if name == 'psp_modules' and 'backward' in kind:
        pytest.skip('PyTorch allows no backward hook where the output is a list')
    for head in (theirs, ours):
        register = getattr(head.get_submodule(name), f'register_{kind}_hook')
        register(lambda _, *values: double(values[-1] if kind != 'full_backward' else values[0]))
    assert_equal_steps(theirs, ours, maps(SIZES))


def weight_normalised(conv):
    parametrizations.weight_norm(conv)


def weight_normalised_by_hook(conv):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        nn.utils.weight_norm(conv)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def pruned(conv):
    prune.l1_unstructured(conv, 'weight', 0.5)


def parametrised(conv):
    parametrize.register_parametrization(conv, 'weight', Doubled())


@pytest.mark.parametrize('change', [pruned, parametrised, weight_normalised, weight_normalised_by_hook])
@pytest.mark.parametrize('which', ['one', 'all'])
def test_weights_that_are_computed(change, which):
    """Two training steps, then inference."""
    theirs, ours = (head.train() for head in pair())
    for head in (theirs, ours):
        for name in ['fpn_bottleneck.conv'] if which == 'one' else CONVS:
            change(head.get_submodule(name))
    inputs = maps(SIZES)
    optimizers = [torch.optim.SGD(head.parameters(), lr=0.01) for head in (theirs, ours)]
    for _ in range(2):
        for head, optimizer in zip((theirs, ours), optimizers, strict=True):
            optimizer.zero_grad()
            head(inputs).square().mean().backward()
            optimizer.step()
    for (name, expected), got in zip(theirs.named_parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9, msg=name)
    with torch.no_grad():
        close(ours.eval()(inputs), theirs.eval()(inputs))


def dilated(head):
    head.fpn_bottleneck.conv.dilation = head.fpn_bottleneck.conv.padding = (2, 2)


def reflecting(head):
    old = head.bottleneck.conv
    head.bottleneck.conv = nn.Conv2d(
        old.in_channels, old.out_channels, 3, padding=1, padding_mode='reflect', bias=False, dtype=torch.float64
    )
    head.bottleneck.conv.load_state_dict(old.state_dict())


def wrapped(head):
    head.lateral_convs[0] = nn.Sequential(head.lateral_convs[0], nn.Tanh())
    head.bottleneck = nn.Sequential(head.bottleneck, nn.Tanh())


def own_forward(head):
    stock = head.bottleneck.conv.forward
    head.bottleneck.conv.forward = lambda x: stock(x) * 2


def own_pooling(head):
    head.psp_modules[1][0] = nn.AdaptiveMaxPool2d(2)


@pytest.mark.parametrize('change', [dilated, reflecting, wrapped, own_forward, own_pooling])
def test_exchanged_parts(change):
    """Parts that were exchanged or changed after the head was built are used as they are."""
    theirs, ours = (head.eval() for head in pair())
    for head in (theirs, ours):
        change(head)
    inputs = maps(SIZES)
    close(ours(inputs), theirs(inputs))
    with torch.no_grad():
        close(ours(inputs), theirs(inputs))


@pytest.mark.parametrize('sizes', [SIZES, sizes_of(64, 80, PYRAMID)], ids=['native', 'pyramid'])
def test_double_backward(sizes):
    """A penalty on gradients: its own gradients, by name."""
    theirs, ours = (head.eval() for head in pair())
    inputs = [x.requires_grad_() for x in maps(sizes, batch=1)]
    results = []
    for head in (theirs, ours):
        first = torch.autograd.grad(head(inputs).square().sum(), [*inputs, *head.parameters()], create_graph=True)
        penalty = sum(g.square().sum() for g in first)
        results.append((first, torch.autograd.grad(penalty, [*inputs, *head.parameters()], allow_unused=True)))
    for got, expected in zip(results[1], results[0], strict=True):
        for a, b in zip(got, expected, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8 * float(b.abs().max() + 1))


def test_gradients_of_one_input_twice():
    """A frozen weight, or maps that need no gradient."""
    for needed in (0, 1):
        x = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=needed == 0)
        weight = torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=needed == 1)
        assert torch.autograd.gradgradcheck(
            lambda a, b: split_conv.conv3x3_of_resized(a, b, (7, 9), align_corners=True), (x, weight)
        )


def transforms(head):
    """Results of the transforms of ``torch.func``."""
    parameters, buffers = dict(head.named_parameters()), dict(head.named_buffers())
    inputs = maps(SIZES)

    def loss(parameters, *inputs):
        return func.functional_call(head, (parameters, buffers), (list(inputs),)).square().mean()

    def forward(*inputs):
        return head(list(inputs))

    torch.manual_seed(1)
    inputs = maps(SIZES)
    stacked = {name: torch.stack([p, 2 * p]) for name, p in parameters.items()}
    one = tuple(x[:, None] for x in inputs)
    yield 'grad', lambda: func.grad(loss)(parameters, *inputs)
    yield 'vmap', lambda: func.vmap(forward)(*one)
    yield 'gradients of each sample', lambda: func.vmap(func.grad(loss), in_dims=(None, 0, 0, 0, 0))(parameters, *one)
    yield 'ensemble', lambda: func.vmap(loss, in_dims=(0, None, None, None, None))(stacked, *inputs)
    yield 'jvp', lambda: func.jvp(forward, tuple(inputs), tuple(x.cos() for x in inputs))
    yield 'vjp', lambda: func.vjp(forward, *inputs)[1](torch.ones(2, 5, 12, 10, dtype=torch.float64))

    def dual():
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(forward(*(forward_ad.make_dual(x, x.cos()) for x in inputs))).tangent

    yield 'dual', dual


@pytest.mark.parametrize('grad', [False, True])
def test_transforms_of_torch_func(grad):
    pairs = pair()
    theirs, ours = (transforms(head.eval()) for head in pairs)
    names = []
    with torch.set_grad_enabled(grad):
        for (name, expected), (_, got) in zip(theirs, ours, strict=True):
            torch.testing.assert_close(got(), expected(), rtol=1e-8, atol=1e-8, msg=lambda text, name=name: name + text)
            names.append(name)
    assert len(names) == 7


@pytest.mark.parametrize('grad', [False, True])
def test_traces(grad):
    """``torch.jit.trace`` without a warning about the result, and the trace at another batch size."""
    theirs, ours = (head.eval() for head in pair(torch.float32))
    example, other = maps(SIZES, torch.float32, batch=1), maps(SIZES, torch.float32, batch=3)
    with torch.set_grad_enabled(grad), warnings.catch_warnings():
        warnings.simplefilter('ignore', torch.jit.TracerWarning)
        traced = torch.jit.trace(ours, (example,))
        torch.testing.assert_close(traced(other), theirs(other), rtol=1e-4, atol=1e-5)


def test_complexity_is_counted():
    """The counter of MMEngine and get_flops.py traces the model: it counts as with ``UPerHead``."""
    counts = []
    for kind in ('UPerHead', 'VOLOUPerHead'):
        options = {'in_channels': [64, 128, 128, 128], 'in_index': [0, 1, 2, 3], 'channels': 64, 'num_classes': 19}
        backbone = {'type': 'VOLO', 'arch': 'nano', 'img_size': 64}
        model = {'type': 'EncoderDecoder', 'backbone': backbone, 'decode_head': {'type': kind, **options}}
        model = MODELS.build({**model, 'test_cfg': {'mode': 'whole'}}).eval()
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            counts.append(get_model_complexity_info(model, (3, 64, 64), show_table=False, show_arch=False))
    assert counts[0]['flops'] == counts[1]['flops'] > 1e7 and counts[0]['params'] == counts[1]['params']


def test_fake_tensors_leave_no_trace():
    """Matrices are cached by size; those of a fake pass must not be met by real tensors."""
    theirs, ours = (head.eval() for head in pair())
    tap_axis.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        assert ours(maps(SIZES)).shape == (2, 5, 12, 10)
        for kind in ('meta', 'cpu'):
            fake = torch.randn(2, IN_CHANNELS[0], 6, 5, device=kind)
            weight = torch.ones(4, IN_CHANNELS[0], 3, 3, device=kind)
            split_conv.conv3x3_of_maps([fake], weight, (12, 10), align_corners=False)
    inputs = maps(SIZES)
    with torch.no_grad():
        close(ours(inputs), theirs(inputs))
    assert_equal_steps(theirs.train(), ours.train(), inputs)


def test_meta_device():
    with torch.device('meta'):
        ours = pair()[1]
    ours = ours.to_empty(device='cpu')
    theirs, other = pair()
    ours.load_state_dict(other.state_dict())
    inputs = maps(SIZES)
    with torch.no_grad():
        close(ours.eval()(inputs), theirs.eval()(inputs))

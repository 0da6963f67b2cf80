"""The backbone of the nano configs: shapes, blocks by their definition, frozen stages, folding, tracing."""

import pytest
import torch
from torch import nn

from volo_seg.errors import UserError
from volo_seg.layers.convolutions import ConvOutlooker
from volo_seg.models import VOLONano, fuse
from volo_seg.ops import outlook_attention

CHANNELS, STRIDES = (48, 64, 64, 128), (4, 8, 16, 32)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def with_statistics(model):
    """Give each batch normalisation statistics and weights of its own."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return model


def close(actual, wanted, *, tolerance=1e-4):
    for one, other in zip(actual, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * other.abs().max().item())


@pytest.mark.parametrize('size', [(1, 1), (31, 33), (64, 96), (65, 3), (2, 130)])
def test_shapes(size):
    maps = VOLONano().eval()(torch.randn(2, 3, *size))
    expected = [(2, c, -(-size[0] // s), -(-size[1] // s)) for c, s in zip(CHANNELS, STRIDES, strict=True)]
    assert [tuple(m.shape) for m in maps] == expected
    assert all(m.isfinite().all() for m in maps)


@pytest.mark.parametrize('indices', [(0,), (3,), (1, 2, 3), (0, 2)])
def test_out_indices(indices):
    model, full = VOLONano(out_indices=indices).eval(), VOLONano().eval()
    full.load_state_dict(model.state_dict())
    image = torch.randn(1, 3, 48, 40)
    every, maps = full(image), model(image)
    assert len(maps) == len(indices)
    assert all(torch.equal(one, every[i]) for one, i in zip(maps, indices, strict=True))
    channels = tuple(CHANNELS[i] for i in indices)
    assert VOLONano.out_channels_of({'out_indices': indices}) == tuple(m.shape[1] for m in maps) == channels
    assert VOLONano.out_channels_of({}) == CHANNELS


@pytest.mark.parametrize('stages', [-1, 0, 1, 2, 3])
def test_frozen_stages(stages):
    """Frozen parameters have no gradient, frozen statistics stay, also after train(); the others move."""
    model = VOLONano(frozen_stages=stages).train()
    before = {name: value.clone() for name, value in model.named_buffers() if name.endswith('running_mean')}
    maps = model(torch.randn(2, 3, 64, 64))
    assert maps[-1].requires_grad is (stages < 3)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad is (int(name.split('.')[1]) > stages), name
    for name, value in model.named_buffers():
        if name in before:
            assert torch.equal(value, before[name]) is (int(name.split('.')[1]) <= stages), name
    assert [stage.training for stage in model.stages] == [i > stages for i in range(4)]


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(out_indices=(4,)), r'out_indices=\(4,\)'),
        (dict(out_indices=(1, 0)), 'ascending'),
        (dict(out_indices=()), r'out_indices=\(\)'),
        (dict(frozen_stages=4), 'frozen_stages=4 is not one of -1'),
        (dict(frozen_stages=-2), 'frozen_stages=-2 is not one of -1'),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        VOLONano(**arguments)


def test_other_normalisation():
    model = VOLONano(norm_cfg=dict(type='GN', num_groups=4), num_outlookers=1, expand_ratio=2)
    kinds = {type(m) for m in model.modules() if isinstance(m, (nn.GroupNorm, nn.modules.batchnorm._NormBase))}
    assert kinds == {nn.GroupNorm}
    assert sum(isinstance(m, ConvOutlooker) for m in model.modules()) == 1
    assert all(m.isfinite().all() for m in model(torch.randn(1, 3, 32, 48)))


@pytest.mark.parametrize('size', [(8, 8), (5, 7), (1, 1)])
def test_outlooker_by_its_definition(size):
    """x + attention of the normalised x, then x + expansion, 3x3 of each channel and projection, in float64."""
    block = with_statistics(ConvOutlooker(8, 2, expand_ratio=2, norm_layer=nn.BatchNorm2d)).double().eval()
    x = torch.randn(2, 8, *size, dtype=torch.float64)
    attn, tokens = block.attn, block.norm(x).permute(0, 2, 3, 1)
    pad = (0, size[1] % 2, 0, size[0] % 2)
    counted = nn.functional.pad(torch.ones_like(x), pad)
    sums = nn.functional.pad(tokens.permute(0, 3, 1, 2), pad)
    # mean over 2x2 tokens, of those inside the map
    centres = nn.functional.avg_pool2d(sums, 2) / nn.functional.avg_pool2d(counted, 2)
    mixed = outlook_attention(
        attn.v(tokens),
        attn.attn(centres.permute(0, 2, 3, 1)),
        2,
        kernel_size=3,
        stride=2,
        padding=1,
        scale=4**-0.5,
        implementation='reference',
    )
    wanted = x + attn.proj(mixed).permute(0, 3, 1, 2)
    expand, depthwise, project = block.mlp.layers
    hidden = expand.norm(expand.conv(wanted)).relu()
    hidden = depthwise.norm(depthwise.conv(hidden)).relu()
    wanted = wanted + project.norm(project.conv(hidden))
    assert depthwise.conv.groups == 16 and depthwise.conv.kernel_size == (3, 3)
    with torch.no_grad():
        torch.testing.assert_close(block(x), wanted.detach(), rtol=1e-9, atol=1e-9)


def test_gradients_reach_all_parameters():
    model = VOLONano().train()
    sum(m.square().mean() for m in model(torch.randn(2, 3, 64, 64))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_fuse():
    """Each normalisation behind a convolution is folded; those before outlook attention stay."""
    model = with_statistics(VOLONano()).eval()
    image = torch.randn(1, 3, 48, 72)
    with torch.no_grad():
        expected = model(image)
        assert fuse(model) is model
        close(model(image), expected)
    left = [name for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert left == ['stages.1.1.norm', 'stages.1.2.norm']


def test_traced_at_another_size():
    model = with_statistics(VOLONano()).double().eval()
    with torch.no_grad():
        traced = torch.jit.trace(model, torch.randn(1, 3, 64, 64, dtype=torch.float64))
        image = torch.randn(2, 3, 45, 83, dtype=torch.float64)
        close(traced(image), model(image), tolerance=1e-9)


@pytest.mark.parametrize('value', [torch.zeros(1), 'text'])
def test_initial_weights_must_fit(tmp_path, value):
    torch.save({'state_dict': {'backbone.stages.0.0.conv.weight': value}}, tmp_path / 'other.pth')
    model = VOLONano(init_cfg={'type': 'Pretrained', 'checkpoint': str(tmp_path / 'other.pth')})
    with pytest.raises(UserError, match='other.pth'):
        model.init_weights()

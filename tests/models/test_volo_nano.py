"""VOLONano: shapes, arguments, and its block against a plain definition."""

import pytest
import torch

from volo_seg.errors import UserError
from volo_seg.layers.convolutions import ConvOutlooker
from volo_seg.models import fuse
from volo_seg.models.backbones.volo_nano import CHANNELS, VOLONano
from volo_seg.ops.reference import Window, outlook_attention_reference

STRIDES = (4, 8, 16, 32)


@pytest.mark.parametrize('size', [(64, 96), (65, 71), (1, 1), (33, 128)])
def test_shapes(size):
    maps = VOLONano().eval()(torch.zeros(2, 3, *size))
    sides = [(-(-size[0] // s), -(-size[1] // s)) for s in STRIDES]
    assert [tuple(m.shape) for m in maps] == [(2, c, *side) for c, side in zip(CHANNELS, sides, strict=True)]


def test_out_indices():
    torch.manual_seed(0)
    model, x = VOLONano().eval(), torch.randn(1, 3, 64, 64)
    some = VOLONano(out_indices=(1, 3)).eval()
    some.load_state_dict(model.state_dict())
    for one, other in zip(some(x), [model(x)[i] for i in (1, 3)], strict=True):
        assert torch.equal(one, other)
    assert VOLONano.out_channels_of({'out_indices': (1, 3)}) == (64, 128)
    assert VOLONano.out_channels_of({}) == CHANNELS


def test_block_is_its_definition():
    torch.manual_seed(0)
    block = ConvOutlooker(16, 2, expand_ratio=2, norm_layer=torch.nn.BatchNorm2d).double().eval()
    for norm in (m for m in block.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        torch.nn.init.uniform_(norm.weight, 0.5, 2.0)
        torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, 16, 7, 10, dtype=torch.float64)
    tokens, attn = block.norm(x).permute(0, 2, 3, 1), block.attn
    centres = torch.nn.functional.avg_pool2d(tokens.permute(0, 3, 1, 2), 2, 2, ceil_mode=True).permute(0, 2, 3, 1)
    mixed = outlook_attention_reference(attn.v(tokens), attn.attn(centres), Window(2, 3, 2, 1, 8**-0.5))
    y = x + attn.proj(mixed).permute(0, 3, 1, 2)
    torch.testing.assert_close(block(x), y + block.mlp.layers(y), rtol=1e-10, atol=1e-10)


def test_every_parameter_has_a_gradient():
    model = VOLONano(norm_cfg={'type': 'GN', 'num_groups': 4}).train()
    sum(m.square().sum() for m in model(torch.randn(2, 3, 64, 64))).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize('stages', [-1, 0, 3])
def test_frozen_stages(stages):
    model = VOLONano(frozen_stages=stages).train()
    for i, stage in enumerate(model.stages):
        assert stage.training is (i > stages)
        assert all(p.requires_grad is (i > stages) for p in stage.parameters())


def test_fuse_and_trace():
    torch.manual_seed(0)
    model, x = VOLONano().train(), torch.randn(2, 3, 64, 64)
    model(x)  # statistics that are not 0 and 1
    expected = model.eval()(x)
    traced = torch.jit.trace(model, torch.randn(1, 3, 32, 96))
    for found in (traced(x), fuse(model)(x)):
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ('options', 'message'),
    [({'out_indices': (4,)}, r'out_indices=\(4,\)'), ({'frozen_stages': 4}, 'frozen_stages=4')],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        VOLONano(**options)


def test_initial_weights_must_fit(tmp_path):
    torch.save({'state_dict': {'backbone.a': torch.zeros(1)}}, tmp_path / 'other.pth')
    model = VOLONano(init_cfg={'type': 'Pretrained', 'checkpoint': str(tmp_path / 'other.pth')})
    with pytest.raises(UserError, match='has no stages.0.0.conv.weight of shape .* not of this VOLONano'):
        model.init_weights()

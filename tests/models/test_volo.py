"""The backbone against timm's VOLO (an independent implementation) and against its own contract."""

import copy

import pytest
import timm
import torch
from mmengine.runner.checkpoint import load_state_dict
from torch import nn

from volo_seg.checkpoints import VARIANTS
from volo_seg.layers import resize_pos_embed
from volo_seg.layers.volo import STRIDES, drop_path_rates
from volo_seg.models import VOLO, VOLOPyramid, fuse

# parameters for dense prediction, without output norms: the released models without class attention and classifiers,
# counted on timm's modules in `test_equals_timm`; in millions, as published
PARAMS = {'d1': 22.90, 'd2': 52.40, 'd3': 80.05, 'd4': 179.61, 'd5': 279.74}


def timm_stages(model, image):
    """The four stages of timm's VOLO before any norm, NHWC."""
    x = model.patch_embed(image).permute(0, 2, 3, 1)
    outputs = []
    for index, block in enumerate(model.network):
        if index == 2:
            x = x + model.pos_embed
        x = block(x)
        if index != 1:
            outputs.append(x)
    return outputs


def relative_error(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def from_timm(arch, oracle, img_size):
    ours = VOLO(arch, img_size=img_size).eval()
    state = {k: v for k, v in oracle.state_dict().items() if k in ours.state_dict()}
    missing, unexpected = ours.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) == {f'norm{i}.{p}' for i in range(4) for p in ('weight', 'bias')}
    return ours


@pytest.fixture
def quick_init(monkeypatch):
    """timm's weights are uniform, which takes a fraction of the time of a truncated normal distribution."""
    monkeypatch.setattr('timm.models.volo.trunc_normal_', lambda tensor, std: nn.init.uniform_(tensor, -std, std))


@pytest.mark.parametrize('arch', PARAMS)
def test_equals_timm(arch, quick_init):
    with torch.device('cpu'), torch.no_grad():
        oracle = timm.create_model(f'volo_{arch}_224').eval()
        ours = from_timm(arch, oracle, 224)
        image = torch.randn(1, 3, 224, 224)
        expected = timm_stages(oracle, image)
        actual = ours.stages(image)
    assert len(actual) == len(expected) == 4
    for stage, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert relative_error(a, e) < 1e-5, f'stage {stage + 1}'

    dense = sum(
        p.numel()
        for n, p in oracle.named_parameters()
        if not n.startswith(('cls_token', 'post_network', 'head', 'aux_head', 'norm'))
    )
    norms = sum(p.numel() for n, p in ours.named_parameters() if n.startswith('norm'))
    assert sum(p.numel() for p in ours.parameters()) - norms == dense
    assert round(dense / 1e6, 2) == PARAMS[arch]


@pytest.mark.parametrize('arch', ['d1', 'd4'])
def test_equals_timm_non_square(arch, quick_init):
    """At 160x224 with the position grid of 224x224 resized on both sides."""
    with torch.no_grad():
        square = timm.create_model(f'volo_{arch}_224').eval()
        oracle = timm.create_model(f'volo_{arch}_224', img_size=(160, 224)).eval()
        state = square.state_dict()
        state['pos_embed'] = resize_pos_embed(state['pos_embed'], (10, 14))
        oracle.load_state_dict(state)
        ours = from_timm(arch, square, 224)
        image = torch.randn(2, 3, 160, 224)
        for a, e in zip(ours.stages(image), timm_stages(oracle, image), strict=True):
            assert relative_error(a, e) < 1e-5


@pytest.mark.parametrize('size', [(9, 9), (17, 17), (16, 16), (33, 64), (50, 35), (224, 97), (1, 1), (1, 70)])
def test_any_image_size(size):
    model = VOLO('nano').eval()
    with torch.no_grad():
        maps = model(torch.randn(2, 3, *size))
    for i, m in enumerate(maps):
        expected = (2, VARIANTS['nano'].embed_dims[i], -(-size[0] // STRIDES[i]), -(-size[1] // STRIDES[i]))
        assert tuple(m.shape) == expected
        assert torch.isfinite(m).all()


def test_padding_is_exact_where_none_is_needed():
    """A padded image's maps equal those of the image that was padded by hand, cropped."""
    model = VOLO('nano').eval()
    image = torch.randn(1, 3, 40, 50)
    padded = torch.zeros(1, 3, 48, 64)
    padded[..., :40, :50] = image
    with torch.no_grad():
        for small, large in zip(model(image), model(padded), strict=True):
            torch.testing.assert_close(small, large[..., : small.shape[2], : small.shape[3]])


@pytest.mark.parametrize('indices', [(0,), (3,), (1, 3), (0, 1, 2, 3)])
def test_out_indices(indices):
    model = VOLO('nano', out_indices=indices).eval()
    full = VOLO('nano').eval()
    full.load_state_dict(model.state_dict(), strict=False)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for i, m in zip(indices, model(image), strict=True):
            torch.testing.assert_close(m, full(image)[i])
    assert {n for n, _ in model.named_children() if n.startswith('norm')} == {f'norm{i}' for i in indices}


def test_with_cp_gives_equal_gradients():
    image = torch.randn(2, 3, 48, 64)
    gradients = []
    model = VOLO('nano').train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    for with_cp in (False, True):
        model.with_cp = with_cp
        model.zero_grad()
        sum(m.square().mean() for m in model(image)).backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
    assert len(gradients[0]) == len(list(model.parameters()))
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, msg=name)


def test_with_cp_recomputes():
    """The saved tensors are fewer: what checkpointing is for."""

    def saved(with_cp):
        model = VOLO('nano', with_cp=with_cp).train()
        count = 0

        def pack(tensor):
            nonlocal count
            count += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            model(torch.randn(1, 3, 64, 64))
        return count

    assert saved(True) < 0.5 * saved(False)


@pytest.mark.parametrize('stages', [-1, 0, 1, 2, 3, 4])
def test_frozen_stages(stages):
    model = VOLO('nano', frozen_stages=stages).train()
    parts = ['patch_embed', 'network.0', 'network.2', 'network.3', 'network.4']
    for depth, part in enumerate(parts):
        module = model.get_submodule(part)
        assert module.training is (depth > stages), part
        assert all(p.requires_grad is (depth > stages) for p in module.parameters()), part
    assert model.pos_embed.requires_grad is (stages < 2)
    assert model.network[1].proj.weight.requires_grad is (stages < 2)
    model(torch.randn(1, 3, 32, 32))[-1].sum().backward()


def test_frozen_batch_norm_keeps_its_statistics():
    model = VOLO('nano', frozen_stages=0).train()
    before = model.patch_embed.conv[1].running_mean.clone()
    model(torch.randn(2, 3, 32, 32))
    assert torch.equal(before, model.patch_embed.conv[1].running_mean)


def test_drop_path_rules():
    linear = drop_path_rates((2, 2, 2, 1), 0.6, 'linear')
    assert linear == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert drop_path_rates((2, 2, 2, 1), 0.6, 'official') == pytest.approx([0.0, 0.0, *linear[2:]])


def test_official_drop_path_equals_timm():
    oracle = timm.create_model('volo_d1_224', drop_path_rate=0.3)
    ours = VOLO('d1', drop_path_rate=0.3)
    for stage in (2, 3, 4):
        for theirs, block in zip(oracle.network[stage], ours.network[stage], strict=True):
            expected = getattr(theirs.drop_path1, 'drop_prob', 0.0)
            assert block.drop_path.rate == pytest.approx(expected)
    assert all(block.drop_path.rate == 0.0 for block in ours.network[0])


def test_drop_path_keeps_the_expectation():
    from volo_seg.layers import DropPath

    drop = DropPath(0.25).train()
    x = torch.ones(20000, 1, 1, 1)
    y = drop(x)
    assert y.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert y.mean().item() == pytest.approx(1.0, abs=0.02)
    assert torch.equal(drop.eval()(x), x)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(arch='d9'), "arch='d9' is not one of nano, d1, d2, d3, d4, d5"),
        (dict(arch=dict(depths=(1, 1, 1, 1))), 'it needs'),
        (dict(arch='nano', out_indices=(4,)), r'out_indices=\(4,\)'),
        (dict(arch='nano', out_indices=(1, 0)), 'ascending'),
        (dict(arch='nano', frozen_stages=5), 'frozen_stages=5'),
        (dict(arch='nano', drop_path_rate=1.0), 'drop_path_rate=1.0'),
        (dict(arch='nano', drop_path_rule='cosine'), "drop_path_rule='cosine'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        VOLO(**arguments)


def test_custom_arch():
    arch = dict(depths=[1, 1, 1, 1], embed_dims=[32, 64, 64, 64], num_heads=[1, 2, 2, 2], mlp_ratio=2, stem_channels=16)
    assert [m.shape[1] for m in VOLO(arch)(torch.randn(1, 3, 32, 32))] == [32, 64, 64, 64]


def test_norm_cfg_reaches_the_stem():
    model = VOLO('nano', norm_cfg=dict(type='GN', num_groups=4))
    assert isinstance(model.patch_embed.conv[1], nn.GroupNorm)


def test_img_size_sets_the_grid():
    assert VOLO('nano', img_size=(100, 224)).pos_embed.shape[1:3] == (7, 14)


def test_position_grid_gets_gradients_at_another_size():
    model = VOLO('nano', img_size=64).train()
    model(torch.randn(1, 3, 80, 48))[-1].sum().backward()
    assert model.pos_embed.grad.abs().sum() > 0


@pytest.mark.parametrize('size', [(64, 64), (72, 40)])
def test_pyramid_strides(size):
    channels = VARIANTS['nano'].embed_dims
    maps = VOLO('nano').eval()(torch.randn(1, 3, *size))
    out = VOLOPyramid(channels).eval()(maps)
    assert [m.shape[1] for m in out] == list(channels)
    if size == (64, 64):
        assert [size[0] // m.shape[2] for m in out] == [4, 8, 16, 32]


def test_pyramid_errors():
    with pytest.raises(ValueError, match='3 entries'):
        VOLOPyramid([1, 2, 3])
    with pytest.raises(ValueError, match='got 1 maps'):
        VOLOPyramid([8, 8, 8, 8])([torch.zeros(1, 8, 4, 4)])


def test_resize_pos_embed():
    grid = torch.randn(1, 4, 6, 8)
    assert resize_pos_embed(grid, (4, 6)) is grid
    assert resize_pos_embed(grid.bfloat16(), (5, 9)).dtype == torch.bfloat16
    constant = torch.full((1, 3, 3, 2), 2.5, dtype=torch.float64)
    torch.testing.assert_close(resize_pos_embed(constant, (7, 5)), torch.full((1, 7, 5, 2), 2.5, dtype=torch.float64))


def test_fuse():
    """BatchNorm with statistics of its own, folded: the same maps, no normalisation left."""
    model = VOLO('nano').eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    image = torch.randn(1, 3, 48, 64)
    with torch.no_grad():
        expected = model(image)
        assert fuse(model) is model
        for actual, wanted in zip(model(image), expected, strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    with pytest.raises(ValueError, match='call model.eval'):
        fuse(VOLO('nano').train())


@pytest.mark.parametrize('strict', [True, False])
def test_a_fused_model_refuses_other_normalisations(strict):
    """Statistics of a batch normalisation that was folded could not take effect; a fused state dict loads."""
    model, other = fuse(VOLO('nano').eval()), VOLO('nano').eval()
    message = r"the state dict has 'patch_embed.conv.1.bias', but fuse\(\) has folded"
    for target in (model, copy.deepcopy(model)):
        with pytest.raises(RuntimeError, match=message):
            target.load_state_dict(other.state_dict(), strict=strict)
    segmentor, whole = nn.ModuleDict({'backbone': model}), nn.ModuleDict({'backbone': other})
    with pytest.raises(RuntimeError, match=r"'backbone.patch_embed.conv.1.bias'"):
        load_state_dict(segmentor, whole.state_dict())
    fused = fuse(other)
    model.load_state_dict(fused.state_dict())
    with torch.no_grad():
        image = torch.randn(1, 3, 32, 32)
        assert all(torch.equal(a, b) for a, b in zip(model(image), fused(image), strict=True))


def test_compiles_without_graph_breaks():
    arch = dict(depths=(1, 1, 1, 1), embed_dims=(16, 32, 32, 32), num_heads=(1, 2, 2, 2), mlp_ratio=2, stem_channels=8)
    model = VOLO(arch).eval()
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    image = torch.randn(1, 3, 48, 64)
    with torch.no_grad():
        for actual, wanted in zip(compiled(image), model(image), strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-5)

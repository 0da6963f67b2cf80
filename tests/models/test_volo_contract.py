"""What users of PyTorch and timm do with a backbone, done with timm's VOLO and with ours."""

import pytest
import timm
import torch
from mmengine.config import ConfigDict
from test_volo import relative_error
from torch import func, fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from volo_seg.layers import Outlooker
from volo_seg.models import VOLO

from mmseg.registry import MODELS  # isort: skip

SIZE = 64
ARCH = dict(depths=(2, 1, 1, 1), embed_dims=(32, 64, 64, 64), num_heads=(2, 4, 4, 4), mlp_ratio=2.0, stem_channels=16)


class TimmMaps(nn.Module):
    """The last stage of timm's VOLO as an NCHW map, before any norm."""

    def __init__(self):
        super().__init__()
        self.model = timm.models.volo.VOLO(
            layers=list(ARCH['depths']),
            img_size=SIZE,
            embed_dims=list(ARCH['embed_dims']),
            num_heads=list(ARCH['num_heads']),
            mlp_ratio=ARCH['mlp_ratio'],
            stem_hidden_dim=ARCH['stem_channels'],
            post_layers=None,
            use_aux_head=False,
            use_mix_token=False,
            num_classes=0,
        )

    def forward(self, x):
        x = self.model.patch_embed(x).permute(0, 2, 3, 1)
        return self.model.forward_tokens(x).reshape(-1, SIZE // 16, SIZE // 16, ARCH['embed_dims'][3])


class OurTokens(nn.Module):
    """The same of ours."""

    def __init__(self):
        super().__init__()
        self.model = VOLO(ARCH, img_size=SIZE)

    def forward(self, x):
        return self.model.stages(x)[-1]


@pytest.fixture
def peers():
    """timm's and ours, with the same weights."""
    torch.manual_seed(0)
    theirs, ours = TimmMaps().eval(), OurTokens().eval()
    state = {key: value for key, value in theirs.model.state_dict().items() if key in ours.model.state_dict()}
    missing, _ = ours.model.load_state_dict(state, strict=False)
    assert all(key.startswith('norm') for key in missing)
    return theirs, ours


IMAGES = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def by_name(tensors):
    """Gradients by their names in the released weights."""
    return {key.removeprefix('model.'): value for key, value in tensors.items()}


def loss_of(model):
    buffers = dict(model.named_buffers())

    def loss(parameters, x):
        return func.functional_call(model, (parameters, buffers), (x,)).square().mean()

    return loss, dict(model.named_parameters())


def gradients_of_each_sample(model):
    loss, parameters = loss_of(model)
    return func.vmap(func.grad(loss), in_dims=(None, 0))(parameters, IMAGES[:, None])


def second_gradients(model):
    loss, parameters = loss_of(model)
    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        value = loss(parameters, IMAGES)
    first = torch.autograd.grad(value, parameters['model.pos_embed'], create_graph=True)[0]
    inputs = {key: p for key, p in parameters.items() if 'network' in key or 'patch_embed' in key}
    return dict(zip(inputs, torch.autograd.grad(first.square().sum(), list(inputs.values())), strict=True))


def ensemble(model):
    loss, parameters = loss_of(model)
    stacked = {key: torch.stack([p, 1.5 * p]) for key, p in parameters.items()}
    return func.vmap(loss, in_dims=(0, None))(stacked, IMAGES)


def forward_mode(model):
    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        return func.jvp(model, (IMAGES,), (IMAGES.cos(),))[1]


OPERATIONS = {
    'call': lambda m: m(IMAGES),
    'vmap': lambda m: torch.vmap(m)(IMAGES[:, None])[:, 0],
    'vmap without gradients': lambda m: torch.no_grad()(torch.vmap(m))(IMAGES[:, None])[:, 0],
    'fx': lambda m: fx.symbolic_trace(m)(IMAGES),
    'jit.trace': lambda m: torch.jit.trace(m, IMAGES)(IMAGES.flip(0)),
    'jit.trace at another batch size': lambda m: torch.jit.trace(m, IMAGES[:1])(IMAGES),
    'func.grad': lambda m: func.grad(loss_of(m)[0])(loss_of(m)[1], IMAGES),
    'gradients of each sample': gradients_of_each_sample,
    'second gradients': second_gradients,
    'ensemble': ensemble,
    'jvp': forward_mode,
}


@pytest.mark.parametrize('name', OPERATIONS)
def test_operations_of_pytorch(peers, name):
    expected, got = (OPERATIONS[name](model) for model in peers)
    if not isinstance(expected, dict):
        assert relative_error(got.detach(), expected.detach()) < 1e-4
        return
    expected, got = by_name(expected), by_name(got)
    checked = [key for key in expected if key in got]
    assert len(checked) > 30
    for key in checked:
        torch.testing.assert_close(
            got[key], expected[key], rtol=1e-3, atol=1e-4 * float(expected[key].abs().max() + 1e-3), msg=key
        )


def test_the_whole_backbone_under_fx_and_trace():
    """All maps; what was recorded at one size holds at others, with padding."""
    model = VOLO('nano', img_size=SIZE).eval()
    recorded = {'fx': fx.symbolic_trace(model), 'jit.trace': torch.jit.trace(model, IMAGES)}
    for name, other in recorded.items():
        for size in ((64, 64), (96, 48), (50, 71)):
            image = torch.randn(3, 3, *size)
            with torch.no_grad():
                for got, wanted in zip(other(image), model(image), strict=True):
                    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f'{n}: {m}')


class WithPooling(nn.Module):
    """A network of a user around the backbone."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, x: torch.Tensor):
        return self.backbone(x)[3].mean((2, 3))


def test_jit_script(peers, tmp_path):
    """Alone and inside a scripted network, as timm's: equal results, also at other sizes and after saving."""
    assert torch.jit.script(peers[0].model)(IMAGES).shape[0] == 2
    model = VOLO('nano', img_size=SIZE).eval()
    alone, whole = torch.jit.script(model), torch.jit.script(WithPooling(model))
    torch.jit.save(whole, tmp_path / 'scripted.pt')
    loaded = torch.jit.load(tmp_path / 'scripted.pt')
    for image in (IMAGES, torch.randn(3, 3, 50, 71)):
        with torch.no_grad():
            expected = model(image)
            for got, wanted in zip(alone(image), expected, strict=True):
                torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
            for network in (whole, loaded):
                torch.testing.assert_close(network(image), expected[3].mean((2, 3)), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r'needs VOLO in evaluation mode: call model.eval\(\) first'):
        torch.jit.script(VOLO('nano').train())


def test_set_grad_checkpointing(peers):
    """The switch of timm; as many blocks are recomputed as there are, with equal gradients."""
    ours = peers[1].model.train()
    for module in ours.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    found = []
    for enable in (False, True):
        ours.set_grad_checkpointing(enable)
        calls = []
        handle = ours.network[0][0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        found.append(torch.autograd.grad(ours(IMAGES)[-1].sum(), ours.patch_embed.proj.weight)[0])
        handle.remove()
        assert len(calls) == 1 + enable
    torch.testing.assert_close(*found)
    ours.set_grad_checkpointing()
    assert ours.with_cp


@pytest.mark.parametrize('mode', ['meta', 'fake'])
def test_construction_without_memory(mode):
    """Under the meta device and under fake tensors: built, run, and on the meta device then filled."""
    with torch.device('meta') if mode == 'meta' else FakeTensorMode():
        model = VOLO('d1').eval()
        with torch.no_grad():
            maps = model(torch.randn(1, 3, 224, 200))
        gradients = torch.autograd.grad(sum(m.sum() for m in model.train()(torch.randn(2, 3, 32, 32))), model.pos_embed)
    assert [tuple(m.shape) for m in maps] == [(1, 192, 28, 25), (1, 384, 14, 13), (1, 384, 14, 13), (1, 384, 14, 13)]
    assert gradients[0].shape == model.pos_embed.shape
    if mode == 'fake':
        assert all(isinstance(tensor, FakeTensor) for tensor in (*maps, *model.parameters()))
        return
    assert all(tensor.is_meta for tensor in (*maps, *model.parameters()))
    with torch.device('meta'):
        empty = VOLO('nano', img_size=SIZE).eval()
    full = VOLO('nano', img_size=SIZE).eval()
    for filled in (empty.to_empty(device='cpu'), full):
        filled.load_state_dict(full.state_dict())
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(empty(IMAGES), full(IMAGES), strict=True))


def test_fake_tensors_are_recorded_in_full():
    """A block under fake tensors has the shapes of a real one."""
    block = Outlooker(32, 2, mlp_ratio=2.0).eval()
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert block(torch.randn(1, 7, 9, 32)).shape == (1, 7, 9, 32)
    assert block(torch.randn(1, 7, 9, 32)).shape == (1, 7, 9, 32)


@pytest.mark.parametrize('training', [False, True])
def test_maps_are_contiguous(training):
    """As those of MMSegmentation's backbones, whatever the size."""
    model = VOLO('nano', img_size=SIZE).train(training)
    for size in ((64, 64), (50, 71)):
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                assert all(m.is_contiguous() for m in model(torch.randn(2, 3, *size)))


HEADS = {
    'DMHead': dict(filter_sizes=(1, 3, 5)),
    'ANNHead': dict(project_channels=16, in_channels=[64, 128], in_index=[0, 3]),
    'APCHead': dict(pool_scales=(1, 2, 3)),
    'ASPPHead': dict(dilations=(1, 2)),
    'CCHead': dict(),
    'DAHead': dict(pam_channels=16),
    'DNLHead': dict(),
    'EMAHead': dict(ema_channels=16, num_bases=8, num_stages=2),
    'FCNHead': dict(num_convs=1),
    'FPNHead': dict(in_channels=[64, 128, 128, 128], in_index=[0, 1, 2, 3], feature_strides=[8, 16, 16, 16]),
    'GCHead': dict(),
    'ISAHead': dict(isa_channels=16, down_factor=(2, 2)),
    'NLHead': dict(),
    'PSPHead': dict(pool_scales=(1, 2)),
    'SegformerHead': dict(in_channels=[64, 128, 128, 128], in_index=[0, 1, 2, 3]),
    'UPerHead': dict(in_channels=[64, 128, 128, 128], in_index=[0, 1, 2, 3]),
}


@pytest.mark.parametrize('segmentor', ['EncoderDecoder', 'VOLOSegmentor'])
@pytest.mark.parametrize('kind', HEADS)
def test_stock_heads(kind, segmentor):
    """Any head of MMSegmentation predicts and trains on the maps of the backbone."""
    if kind == 'CCHead':
        pytest.importorskip('mmcv.ops', exc_type=ImportError)
    options = {'in_channels': 128, 'in_index': 3, 'channels': 16, 'num_classes': 5, **HEADS[kind]}
    backbone = {'type': 'VOLO', 'arch': 'nano', 'img_size': SIZE}
    head = {'type': kind, 'align_corners': False, 'norm_cfg': {'type': 'BN'}, **options}
    model = {'type': segmentor, 'backbone': backbone, 'decode_head': head, 'test_cfg': {'mode': 'whole'}}
    model = MODELS.build(ConfigDict(model)).eval()
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            assert model.predict(IMAGES)[0].pred_sem_seg.shape == (SIZE, SIZE)
    output = model.train()(IMAGES)
    (output[0] if isinstance(output, (tuple, list)) else output).sum().backward()

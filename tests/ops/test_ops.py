"""Outlook attention: every implementation equals the loops over windows, gradients too, and says why it was taken."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from volo_seg.ops import IMPLEMENTATIONS, explain, outlook_attention
from volo_seg.ops import eager as eager_module
from volo_seg.ops.reference import Window

FAST = ('eager', 'torch_impl')
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def make_inputs(
    height: int,
    width: int,
    *,
    batch: int = 2,
    heads: int = 2,
    dim: int = 3,
    kernel: int = 3,
    stride: int = 2,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    v = torch.randn(batch, height, width, heads * dim, dtype=dtype)
    shape = (batch, -(-height // stride), -(-width // stride), heads * kernel**4)
    return v.requires_grad_(), torch.randn(shape, dtype=dtype).requires_grad_()


def numbers(kernel: int = 3, stride: int = 2) -> dict:
    return {'kernel_size': kernel, 'stride': stride, 'padding': kernel // 2, 'scale': 0.7}


def with_gradients(v: Tensor, logits: Tensor, heads: int = 2, **options) -> dict[str, Tensor]:
    """The result and each gradient, by name; the incoming gradient is the same for every caller."""
    result = outlook_attention(v, logits, heads, **options)
    incoming = torch.randn(result.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grad_v, grad_logits = torch.autograd.grad(result, (v, logits), incoming.to(result.dtype))
    return {'result': result.detach(), 'v': grad_v, 'logits': grad_logits}


def unfold_matmul_fold(v: Tensor, logits: Tensor, heads: int, window: Window) -> Tensor:
    """The published order of operations, an independent check of the reference."""
    _, kernel, stride, padding, scale = window
    batch, height, width, channels = v.shape
    windows = F.unfold(v.permute(0, 3, 1, 2), kernel, padding=padding, stride=stride)
    windows = windows.reshape(batch, heads, channels // heads, kernel**2, -1).permute(0, 4, 1, 3, 2)
    weights = logits.reshape(batch, windows.shape[1], heads, kernel**2, kernel**2) * scale
    mixed = (weights.softmax(-1) @ windows).permute(0, 2, 4, 3, 1).reshape(batch, channels * kernel**2, -1)
    return F.fold(mixed, (height, width), kernel, padding=padding, stride=stride).permute(0, 2, 3, 1)


@pytest.mark.parametrize(('kernel', 'stride'), [(3, 1), (3, 2), (3, 3), (5, 2), (5, 4)])
def test_reference_is_the_published_formula(kernel: int, stride: int) -> None:
    v, logits = make_inputs(6, 7, kernel=kernel, stride=stride)
    expected = unfold_matmul_fold(v, logits, 2, Window(2, kernel, stride, kernel // 2, 0.7))
    actual = outlook_attention(v, logits, 2, implementation='reference', **numbers(kernel, stride))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    kernel_stride=st.sampled_from([(k, s) for k in (1, 3, 5) for s in range(1, k + 1)]),
    heads=st.integers(1, 3),
    batch=st.integers(1, 2),
    chunk=st.integers(0, 3),
)
def test_every_implementation_equals_the_reference(
    height: int, width: int, kernel_stride: tuple[int, int], heads: int, batch: int, chunk: int
) -> None:
    kernel, stride = kernel_stride
    v, logits = make_inputs(height, width, batch=batch, heads=heads, kernel=kernel, stride=stride)
    options = numbers(kernel, stride)
    expected = with_gradients(v, logits, heads, implementation='reference', **options)
    with pytest.MonkeyPatch.context() as patch:
        if chunk:  # so many window rows a chunk
            patch.setattr(eager_module, 'CHUNK_VALUES', chunk * logits.shape[2] * kernel**2 * v.shape[3])
        for name in FAST:
            actual = with_gradients(v, logits, heads, implementation=name, **options)
            for key, value in actual.items():
                torch.testing.assert_close(value, expected[key], rtol=0, atol=1e-10, msg=lambda m: f'{name}: {m}')  # noqa: B023


@pytest.mark.parametrize('implementation', FAST)
@pytest.mark.parametrize('dtype', list(TOLERANCE), ids=str)
def test_dtypes(implementation: str, dtype: torch.dtype) -> None:
    v, logits = make_inputs(7, 6, dtype=dtype)
    actual = with_gradients(v, logits, implementation=implementation, **numbers())
    v64, logits64 = (t.detach().double().requires_grad_() for t in (v, logits))
    result = outlook_attention(v64, logits64, 2, implementation='reference', **numbers())
    incoming = torch.randn(result.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = torch.autograd.grad(result, (v64, logits64), incoming.to(dtype).double())
    for key, value in zip(('result', 'v', 'logits'), (result, *gradients), strict=True):
        assert actual[key].dtype == dtype, key
        error = (actual[key].double() - value).abs().max() / value.abs().max()
        assert error < TOLERANCE[dtype], f'{key}: {error:.1e}'


@pytest.mark.parametrize('implementation', FAST)
def test_mixed_dtypes_keep_that_of_v(implementation: str) -> None:
    v, logits = make_inputs(4, 5, dtype=torch.float32)
    half = logits.detach().bfloat16().requires_grad_()
    actual = with_gradients(v, half, implementation=implementation, **numbers())
    assert [actual[key].dtype for key in ('result', 'v', 'logits')] == [v.dtype, v.dtype, torch.bfloat16]


@pytest.mark.parametrize('implementation', FAST)
def test_autocast_changes_neither_dtype_nor_result(implementation: str) -> None:
    v, logits = (t.detach().bfloat16().requires_grad_() for t in make_inputs(4, 4, dtype=torch.float32))
    expected = with_gradients(v, logits, implementation=implementation, **numbers())
    with torch.autocast('cpu', dtype=torch.bfloat16):
        actual = with_gradients(v, logits, implementation=implementation, **numbers())
    for key, value in actual.items():
        assert value.dtype == torch.bfloat16
        torch.testing.assert_close(value, expected[key], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize('implementation', FAST)
@pytest.mark.parametrize('stride', [1, 2])
def test_gradients_and_second_gradients(implementation: str, stride: int) -> None:
    v, logits = make_inputs(3, 2, batch=1, heads=1, dim=2, stride=stride)

    def call(v: Tensor, logits: Tensor) -> Tensor:
        return outlook_attention(v, logits, 1, implementation=implementation, **numbers(stride=stride))

    assert gradcheck(call, (v, logits), fast_mode=True)
    assert gradgradcheck(call, (v, logits), fast_mode=True)


def test_second_gradient_where_only_one_input_has_a_first() -> None:
    v, logits = make_inputs(3, 3)
    result = outlook_attention(v, logits.detach(), 2, implementation='eager', **numbers())
    (gradient,) = torch.autograd.grad(result.square().sum(), v, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), v)
    assert second.abs().max() > 0


def test_gradients_of_views_in_any_layout() -> None:
    v, logits = make_inputs(5, 4)
    expected = with_gradients(v, logits, implementation='reference', **numbers())
    turned = v.detach().permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1).requires_grad_()
    strided = logits.detach().repeat_interleave(2, dim=3)[..., ::2].requires_grad_()
    actual = with_gradients(turned, strided, implementation='eager', **numbers())
    for key, value in actual.items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=1e-12)


@pytest.mark.parametrize('implementation', FAST)
def test_large_logits_stay_finite(implementation: str) -> None:
    v, logits = make_inputs(4, 4, dtype=torch.float32)
    actual = with_gradients(v, (logits * 1e4).detach().requires_grad_(), implementation=implementation, **numbers())
    assert all(value.isfinite().all() for value in actual.values())


def test_dropout_keeps_the_mean_and_drops_something() -> None:
    v, logits = make_inputs(6, 6, dtype=torch.float64)
    whole = outlook_attention(v, logits, 2, **numbers())
    samples = torch.stack([outlook_attention(v, logits, 2, dropout_p=0.3, **numbers()) for _ in range(400)])
    assert (samples[0] - whole).abs().max() > 1e-3
    assert (samples.mean(0) - whole).abs().max() < 6 * samples.std(0).max() / 20


def test_empty_batch() -> None:
    v, logits = make_inputs(4, 4, batch=0)
    for implementation in FAST:
        assert outlook_attention(v, logits, 2, implementation=implementation, **numbers()).shape == v.shape


def test_eager_keeps_only_its_inputs_and_works_in_small_pieces() -> None:
    v, logits = make_inputs(32, 32, batch=1, heads=4, dim=8, dtype=torch.float32)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        outlook_attention(v, logits, 4, implementation='eager', **numbers())
        assert sum(t.numel() for t in kept) == v.numel() + logits.numel()
        kept.clear()
        unfold_matmul_fold(v, logits, 4, Window(4, 3, 2, 1, 0.7))
        assert sum(t.numel() for t in kept) > 2 * v.numel() + logits.numel()


def test_eager_peak_is_a_fraction_of_the_published_order(monkeypatch: pytest.MonkeyPatch) -> None:
    v, logits = make_inputs(64, 64, batch=1, heads=4, dim=16, dtype=torch.float32)
    monkeypatch.setattr(eager_module, 'CHUNK_VALUES', 1 << 16)

    def eager() -> None:
        outlook_attention(v, logits, 4, implementation='eager', **numbers()).sum().backward()

    def published() -> None:
        unfold_matmul_fold(v, logits, 4, Window(4, 3, 2, 1, 0.7)).sum().backward()

    assert peak_of(eager) < 0.5 * peak_of(published)


def peak_of(call) -> int:
    call()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    alive = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == '[memory]':
            alive += event.nbytes()
            peak = max(peak, alive)
    assert peak > 0
    return peak


class Block(nn.Module):
    """The operation as a network uses it: logits pooled from the same map."""

    def __init__(self, stride: int = 2) -> None:
        super().__init__()
        self.stride = stride
        self.v = nn.Linear(6, 6, bias=False)
        self.attn = nn.Linear(6, 2 * 81)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.avg_pool2d(x.permute(0, 3, 1, 2), self.stride, self.stride, ceil_mode=True)
        logits = self.attn(pooled.permute(0, 2, 3, 1))
        return outlook_attention(self.v(x), logits, 2, stride=self.stride, scale=0.7)


@pytest.mark.parametrize('backend', ['aot_eager'])
def test_compiles_without_a_graph_break(backend: str) -> None:
    torch._dynamo.reset()
    block, x = Block(), torch.randn(1, 5, 6, 6)
    compiled = torch.compile(block, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(x), block(x))
    compiled(x).square().sum().backward()
    actual = block.attn.weight.grad.clone()
    block.zero_grad()
    block(x).square().sum().backward()
    torch.testing.assert_close(actual, block.attn.weight.grad)


def test_exports_for_any_size_without_unfold_or_fold() -> None:
    block = Block().eval()
    height, width = torch.export.Dim('height', min=2, max=64), torch.export.Dim('width', min=2, max=64)
    program = torch.export.export(
        block, (torch.randn(1, 8, 10, 6),), dynamic_shapes={'x': {1: 2 * height, 2: 2 * width}}, strict=False
    )
    names = {str(node.target) for node in program.graph.nodes if node.op == 'call_function'}
    assert names
    assert not any('im2col' in name or 'col2im' in name for name in names)
    for size in ((8, 10), (4, 4), (22, 6)):
        x = torch.randn(1, *size, 6)
        torch.testing.assert_close(program.module()(x), block(x))


def test_meta_tensors_pass_through() -> None:
    v, logits = (t.to('meta') for t in make_inputs(5, 7))
    assert outlook_attention(v, logits, 2, **numbers()).shape == v.shape
    assert explain(v, 2) == ('torch_impl', 'meta tensors hold shapes only')


def test_explain_says_what_runs_and_why() -> None:
    v, _ = make_inputs(4, 4)
    assert explain(v, 2)[0] == 'eager' and 'cache' in explain(v, 2)[1]
    assert explain(v, 2, dropout_p=0.1) == ('torch_impl', 'dropout_p=0.1 needs the weights themselves')
    for name in ('reference', 'eager', 'torch_impl'):
        assert explain(v, 2, implementation=name) == (name, 'implementation= requests it')


@contextlib.contextmanager
def refused(sentence: str):
    with pytest.raises(ValueError) as caught:
        yield
    assert str(caught.value) == sentence


def test_refuses_bad_windows() -> None:
    v, logits = make_inputs(4, 4)
    with refused('kernel_size=4 must be odd and positive'):
        outlook_attention(v, logits, 2, kernel_size=4, padding=2)
    with refused('stride=4 must lie in 1..kernel_size=3, or pixels are skipped'):
        outlook_attention(v, logits, 2, stride=4)
    with refused('padding=0 must be kernel_size // 2 = 1'):
        outlook_attention(v, logits, 2, stride=2, padding=0)
    with refused('dropout_p=1.5 must lie in [0, 1]'):
        outlook_attention(v, logits, 2, stride=2, dropout_p=1.5)


def test_refuses_bad_shapes() -> None:
    v, logits = make_inputs(4, 4)
    with refused('v must be a floating (B, H, W, C) tensor, not torch.float64 (4, 4, 6)'):
        outlook_attention(v[0], logits, 2, stride=2)
    with refused('v must be a floating (B, H, W, C) tensor, not torch.int64 (2, 4, 4, 6)'):
        outlook_attention(v.detach().long(), logits, 2, stride=2)
    with refused('v has 6 channels, which num_heads=4 does not divide'):
        outlook_attention(v, logits, 4, stride=2)
    with refused('logits must have shape (2, 4, 4, 162) for v of (2, 4, 4, 6), not (2, 2, 2, 162)'):
        outlook_attention(v, logits, 2)
    with refused('v is on cpu and logits on meta; they must share a device'):
        outlook_attention(v, logits.to('meta'), 2, stride=2)


def test_refuses_implementations_that_cannot() -> None:
    v, logits = make_inputs(4, 4)
    with refused(f"implementation='quick' is not None or one of {IMPLEMENTATIONS}"):
        outlook_attention(v, logits, 2, stride=2, implementation='quick')
    with refused("implementation='eager' has no dropout (dropout_p=0.1); take 'torch_impl'"):
        outlook_attention(v, logits, 2, stride=2, dropout_p=0.1, implementation='eager')
    with pytest.raises(ValueError, match="implementation='fused' cannot run here: "):
        outlook_attention(v, logits, 2, stride=2, implementation='fused')

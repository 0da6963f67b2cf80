"""The fused kernels equal the reference: in triton's interpreter on a CPU, compiled where there is a GPU.

The interpreter has to be chosen before triton is imported, so without a GPU ``test_interpreted`` runs this file in a
process of its own.
"""

import contextlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from interpreter import quick_interpreter
from torch import Tensor

from volo_seg.ops import explain, outlook_attention

HAS_TRITON = importlib.util.find_spec('triton') is not None
INTERPRETED = HAS_TRITON and os.environ.get('TRITON_INTERPRET') == '1'
DEVICE = 'cpu' if INTERPRETED else 'cuda'
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}

runs_kernel = pytest.mark.skipif(
    not INTERPRETED and not (HAS_TRITON and torch.cuda.is_available()),
    reason='runs on a GPU, or in the process that test_interpreted starts',
)


@pytest.fixture(autouse=True, scope='module')
def quick() -> Iterator[None]:
    with quick_interpreter() if INTERPRETED else contextlib.nullcontext():
        yield


def make_inputs(
    height: int, width: int, *, batch: int = 1, heads: int = 1, dim: int = 3, kernel: int = 3, stride: int = 2
) -> tuple[Tensor, Tensor]:
    v = torch.randn(batch, height, width, heads * dim, dtype=torch.float64, device=DEVICE)
    shape = (batch, -(-height // stride), -(-width // stride), heads * kernel**4)
    return v, torch.randn(shape, dtype=torch.float64, device=DEVICE)


def numbers(kernel: int = 3, stride: int = 2) -> dict:
    return {'kernel_size': kernel, 'stride': stride, 'padding': kernel // 2, 'scale': 0.7}


def with_gradients(v: Tensor, logits: Tensor, heads: int, **options) -> dict[str, Tensor]:
    v, logits = (tensor.detach().clone().requires_grad_() for tensor in (v, logits))
    result = outlook_attention(v, logits, heads, **options)
    incoming = torch.linspace(-1, 1, result.numel(), dtype=torch.float64, device=v.device).sin()
    incoming = incoming.bfloat16().reshape(result.shape).to(result.dtype)
    grad_v, grad_logits = torch.autograd.grad(result, (v, logits), incoming)
    return {'result': result.detach(), 'v': grad_v, 'logits': grad_logits}


def check(v: Tensor, logits: Tensor, heads: int, dtype: torch.dtype, **options) -> None:
    """Kernel in ``dtype`` against the reference in float64, on inputs that ``dtype`` can hold."""
    v, logits = v.to(dtype), logits.to(dtype)
    expected = with_gradients(v.double(), logits.double(), heads, implementation='reference', **options)
    actual = with_gradients(v, logits, heads, implementation='fused', **options)
    for key, value in actual.items():
        assert value.dtype == dtype and value.isfinite().all(), key
        error = (value.double() - expected[key]).abs().max() / expected[key].abs().max().clamp_min(1e-6)
        assert error < TOLERANCE[dtype], f'{key}: {error:.1e}'


@runs_kernel
@pytest.mark.parametrize(
    ('height', 'width', 'stride', 'heads'), [(5, 6, 1, 1), (5, 6, 2, 2), (1, 7, 2, 1), (6, 1, 1, 1), (1, 1, 2, 1)]
)
def test_sizes(height: int, width: int, stride: int, heads: int) -> None:
    inputs = make_inputs(height, width, stride=stride, heads=heads)
    check(*inputs, heads, torch.float32, **numbers(stride=stride))


@runs_kernel
def test_kernel_of_five() -> None:
    check(*make_inputs(4, 5, kernel=5), 1, torch.float32, **numbers(5))


@runs_kernel
def test_kernel_of_five_at_every_token() -> None:
    v, logits = make_inputs(4, 5, stride=1, kernel=5)
    expected = outlook_attention(v, logits, 1, implementation='reference', **numbers(5, 1))
    actual = outlook_attention(v.float(), logits.float(), 1, implementation='fused', **numbers(5, 1))
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)


@runs_kernel
@pytest.mark.parametrize(('dim', 'batch'), [(1, 2), (48, 1)])
def test_head_dimensions(dim: int, batch: int) -> None:
    check(*make_inputs(3, 4, dim=dim, batch=batch), 1, torch.float32, **numbers())


@runs_kernel
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype: torch.dtype) -> None:
    check(*make_inputs(4, 5, dim=4), 1, dtype, **numbers())


@runs_kernel
def test_tiles_that_the_map_does_not_fill() -> None:
    check(*make_inputs(6, 18, dim=32), 1, torch.float32, **numbers())


@runs_kernel
def test_large_logits_and_mixed_dtypes() -> None:
    v, logits = make_inputs(3, 3)
    actual = with_gradients(v.float(), (logits * 1e4).bfloat16(), 1, implementation='fused', **numbers())
    assert all(value.isfinite().all() for value in actual.values())
    assert actual['logits'].dtype == torch.bfloat16 and actual['result'].dtype == torch.float32


@runs_kernel
def test_second_gradient() -> None:
    v, logits = (tensor.float().requires_grad_() for tensor in make_inputs(3, 3))

    def second(implementation: str) -> Tensor:
        result = outlook_attention(v, logits, 1, implementation=implementation, **numbers())
        (gradient,) = torch.autograd.grad(result.square().sum(), v, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), logits)[0]

    torch.testing.assert_close(second('fused'), second('torch_impl'), rtol=1e-4, atol=1e-5)


@runs_kernel
def test_operator_registration() -> None:
    v, logits = (tensor.float().requires_grad_() for tensor in make_inputs(2, 3))
    checks = ('test_schema', 'test_autograd_registration', 'test_faketensor')
    torch.library.opcheck(torch.ops.volo_seg.outlook_attention.default, (v, logits, 1, 3, 2, 1, 0.7), test_utils=checks)


@runs_kernel
def test_compile_keeps_the_operators_in_its_graphs() -> None:
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    graphs: list[str] = []

    def record(graph: torch.fx.GraphModule, _: object):
        graphs.append(graph.code)
        return make_boxed_func(graph.forward)

    v, logits = (tensor.float().requires_grad_() for tensor in make_inputs(3, 4))

    def call(v: Tensor, logits: Tensor) -> Tensor:
        return outlook_attention(v * 2, logits, 1, implementation='fused', **numbers())

    backend = aot_autograd(fw_compiler=record, bw_compiler=record)
    result = torch.compile(call, fullgraph=True, backend=backend)(v, logits)
    torch.testing.assert_close(result, call(v, logits))
    gradients = torch.autograd.grad(result.sum(), (v, logits))
    for actual, expected in zip(gradients, torch.autograd.grad(call(v, logits).sum(), (v, logits)), strict=True):
        torch.testing.assert_close(actual, expected)
    assert ['volo_seg.outlook_attention.' in code for code in graphs] == [True, False]
    assert 'volo_seg.outlook_attention_backward.' in graphs[1]


def test_shapes_without_running_the_kernel() -> None:
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        v, logits = torch.empty(2, 5, 7, 12), torch.empty(2, 3, 4, 4 * 81, dtype=torch.bfloat16)
        result, sums = torch.ops.volo_seg.outlook_attention(v, logits, 4, 3, 2, 1, 0.7)
        assert (result.shape, result.dtype) == (v.shape, v.dtype)
        assert (sums.shape, sums.dtype) == ((2, 3, 4, 36), torch.float32)
        gradients = torch.ops.volo_seg.outlook_attention_backward(result, v, logits, sums, 4, 3, 2, 1, 0.7)
        assert [(g.shape, g.dtype) for g in gradients] == [(t.shape, t.dtype) for t in (v, logits)]


def test_importing_the_operation_does_not_import_triton() -> None:
    code = "import sys, volo_seg.ops; sys.exit('triton' in sys.modules and 'torch._inductor' not in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, '-c', code], cwd=root).returncode == 0


@runs_kernel
def test_what_the_kernel_does_not_do_is_said() -> None:
    v, logits = make_inputs(3, 3, stride=3)
    with pytest.raises(ValueError, match=r"'fused' cannot run here: torch.float64 is not one of float32"):
        outlook_attention(v, logits, 1, implementation='fused', **numbers(stride=3))
    with pytest.raises(ValueError, match=r'kernel_size=3, stride=3 is not 3 or 5 with stride 1 or 2'):
        outlook_attention(v.float(), logits.float(), 1, implementation='fused', **numbers(stride=3))


@pytest.mark.gpu
def test_a_gpu_takes_the_kernel() -> None:
    v = torch.randn(1, 4, 4, 32, device='cuda')
    assert explain(v, 1, stride=2)[0] == ('fused' if HAS_TRITON else 'eager')
    assert explain(v.double(), 1, stride=2)[0] == 'eager'


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', list(TOLERANCE), ids=str)
@pytest.mark.parametrize('dim', [192, 384])
def test_real_maps_on_a_gpu(dim: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    v = torch.randn(2, 64, 64, dim, device='cuda', dtype=dtype)
    logits = torch.randn(2, 32, 32, dim // 32 * 81, device='cuda', dtype=dtype)
    expected = with_gradients(v.double(), logits.double(), dim // 32, implementation='eager', **numbers())
    actual = with_gradients(v, logits, dim // 32, **numbers())
    for key, value in actual.items():
        error = (value.double() - expected[key]).abs().max() / expected[key].abs().max()
        assert error < TOLERANCE[dtype], f'{key}: {error:.1e}'

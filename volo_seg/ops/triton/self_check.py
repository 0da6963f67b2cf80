"""A check of the Triton kernels on the device at hand: forward and gradients against the plain path in float64.

``torch.compile`` evaluates :func:`why_not_fused` while it traces and takes the answer as a constant. Each process
decides for its own device.
"""

import contextlib
import functools
import hashlib
import json
import os
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from volo_seg.errors import UserError
from volo_seg.io import atomic_write
from volo_seg.ops.reference import Window
from volo_seg.ops.torch_impl import outlook_attention_torch_impl

MINIMUM_TRITON = (3, 2)
TOLERANCES = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}
"""Largest error by dtype, as a share of the largest absolute value of the expected tensor."""


@dataclass(frozen=True)
class Case:
    """What the compiled kernels depend on; ``head_dim`` is the number of channels of a head."""

    device: torch.device
    dtype: torch.dtype
    kernel_size: int
    stride: int
    num_heads: int
    head_dim: int

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix('torch.')
        heads = f'{self.num_heads} heads of {self.head_dim} channels'
        return f'{self.device}, {kind}, kernel_size={self.kernel_size}, stride={self.stride}, {heads}'


@dataclass(frozen=True)
class Verdict:
    """The outcome for one case: ``problem`` is empty if the kernels agree; ``error`` is None if they did not run."""

    problem: str
    error: float | None
    seconds: float


_verdicts: dict[Case, Verdict] = {}
_lock = threading.Lock()


def why_not_fused(
    device: torch.device, dtype: torch.dtype, kernel_size: int, stride: int, num_heads: int, head_dim: int
) -> str:
    """Why the kernels are not used for these arguments; empty if the check has passed.

    The check runs once for each case and process, unless a file in :func:`cache_folder` holds its result. A failure is
    reported in one warning. While a CUDA graph is captured no check can run, and a case without a result is refused.
    """
    case = Case(device, dtype, kernel_size, stride, num_heads, head_dim)
    verdict = _verdicts.get(case)
    if verdict is None:
        with _lock:
            verdict = _verdicts.get(case) or _read(case)
            if verdict is None and device.type == 'cuda' and torch.cuda.is_current_stream_capturing():
                return 'a CUDA graph is being captured, and these kernels have not been checked before'
            if verdict is None:
                verdict = check(case)
                _write(case, verdict)
            if verdict.problem and case not in _verdicts:
                text = f'the fused kernels are not used for {case}: {verdict.problem}; the eager path replaces them'
                warnings.warn(text, RuntimeWarning, stacklevel=2)
            _verdicts[case] = verdict
    return verdict.problem


# what torch.compiler.assume_constant_result sets; that function imports torch._dynamo, which takes a second
why_not_fused._dynamo_marked_constant = True  # type: ignore[attr-defined]


def check(case: Case) -> Verdict:
    """Run the kernels of ``case`` on two small maps and compare each tensor that they fill.

    It runs in a thread of its own, where no autocast, grad mode, hook or dispatch mode of the caller is active.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(_check, case).result()


def _check(case: Case) -> Verdict:
    start = time.perf_counter()
    worst = None
    try:
        with torch.cuda.device(case.device) if case.device.type == 'cuda' else contextlib.nullcontext():
            for name, error in compare(import_kernels(), case):
                worst = max(error, worst or 0.0)
                if not error <= TOLERANCES[case.dtype]:  # NaN, too
                    problem = f'{name}: error {error:.1e}, allowed {TOLERANCES[case.dtype]:.0e}'
                    return Verdict(problem, error, time.perf_counter() - start)
        return Verdict('', worst, time.perf_counter() - start)
    except Exception as error:  # whatever a compiler or a driver raises
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:300]
        return Verdict(f'they do not run ({reason})', None, time.perf_counter() - start)


def import_kernels() -> ModuleType:
    """The module of the kernels.

    Raises:
        UserError: The installed Triton is older than ``MINIMUM_TRITON``.
    """
    import triton

    if tuple(int(number) for number in triton.__version__.split('.')[:2]) < MINIMUM_TRITON:
        wanted = '.'.join(map(str, MINIMUM_TRITON))
        raise UserError(f'triton {triton.__version__} is older than {wanted}; install a newer torch, which brings it')
    from volo_seg.ops.triton import kernels

    return kernels


def compare(kernels: ModuleType, case: Case) -> Iterator[tuple[str, float]]:
    """Yield the name and the error of each tensor that the kernels fill, as a share of its largest absolute value.

    The first map has two images, an odd height and an even width; the second one has two rows of three tiles, an even
    height and an odd width. Outputs are NaN before the kernels run, and every tensor lies between NaN, so that a value
    that is not written gives NaN, as does a read outside of a tensor; a write outside is an infinite error.
    """
    stride, area = case.stride, case.kernel_size**2
    _, tile_h, tile_w = kernels.tile(case.head_dim)
    heads = case.num_heads
    window = Window(heads, case.kernel_size, stride, case.kernel_size // 2, 0.7)
    for batch, height, width in ((2, 3, 6), (1, stride * tile_h + 2, (2 * stride * tile_w + 1) | 1)):
        tokens = batch, height, width, heads * case.head_dim
        rows = batch, -(-height // stride), -(-width // stride), heads * area
        generator = torch.Generator('cpu').manual_seed(0)
        v, logits, grad = (
            torch.randn(size, generator=generator, device='cpu', dtype=torch.float32).to(case.dtype)
            for size in (tokens, (*rows[:3], heads * area**2), tokens)
        )
        logits *= 3
        wanted = _plain(v, logits, grad, window)
        sums = torch.empty(rows, device='cpu', dtype=torch.float32)
        memory = [_between_nan(tensor, case.device) for tensor in (v, logits, grad)]
        memory += [_between_nan(torch.full_like(t, torch.nan), case.device) for t in (v, sums, v, logits)]
        v, logits, grad, result, sums, grad_v, grad_logits = (inner for _, inner in memory)
        kernels.forward(v, logits, result, sums, window)
        yield 'the result', _error(result, wanted[0])
        kernels.backward(grad, v, logits, sums, grad_v, grad_logits, window)
        yield 'the gradient of v', _error(grad_v, wanted[1])
        yield 'the gradient of the logits', _error(grad_logits, wanted[2])
        written = any(whole.isfinite().sum() > inner.isfinite().sum() for whole, inner in memory)
        yield 'memory outside of the tensors', float('inf') if written else 0.0


def _between_nan(tensor: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Memory on ``device`` filled with NaN, and a copy of ``tensor`` in the middle of it, aligned to 64 values."""
    margin = -(-4 * tensor.numel() // 64) * 64
    whole = torch.full((2 * margin + tensor.numel(),), torch.nan, dtype=tensor.dtype, device=device)
    inner = whole[margin : margin + tensor.numel()].view(tensor.shape)
    return whole, inner.copy_(tensor)


def _plain(v: Tensor, logits: Tensor, grad: Tensor, window: Window) -> list[Tensor]:
    """The result and the gradients of ``v`` and ``logits`` by torch operations in float64."""
    v, logits = (tensor.double().requires_grad_() for tensor in (v, logits))
    result = outlook_attention_torch_impl(v, logits, window)
    return [result.detach(), *torch.autograd.grad(result, (v, logits), grad.double())]


def _error(actual: Tensor, wanted: Tensor) -> float:
    return float((actual.cpu().double() - wanted).abs().max() / wanted.abs().max())


def cache_folder() -> Path:
    """The folder of the stored results: ``volo-seg`` in ``XDG_CACHE_HOME`` or in ``~/.cache``."""
    return Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser() / 'volo-seg' / 'self-check'


def _key(case: Case) -> dict[str, str]:
    """What a stored result holds for: hardware, versions, case, and the source of the kernels and of this check."""
    import triton

    gpu = torch.cuda.get_device_properties(case.device) if case.device.type == 'cuda' else None
    return {
        'device': f'{gpu.name} {gpu.major}.{gpu.minor}' if gpu else f'{case.device.type}, interpreter',
        'versions': f'triton {triton.__version__}, torch {torch.__version__}',
        'case': f'{case.dtype} {case.kernel_size} {case.stride} {case.num_heads} {case.head_dim}',
        'source': _source_hash(),
    }


@functools.cache
def _source_hash() -> str:
    here = Path(__file__)
    return hashlib.sha256(here.read_bytes() + here.with_name('kernels.py').read_bytes()).hexdigest()


def _cache_file(case: Case) -> Path:
    name = hashlib.sha256(json.dumps(_key(case)).encode()).hexdigest()
    return cache_folder() / f'{name[:32]}.json'


def _read(case: Case) -> Verdict | None:
    """The stored result of ``case``; None if there is none, or if the file is damaged."""
    with contextlib.suppress(Exception):  # triton that cannot be imported, no home, no such file, any content
        stored = json.loads(_cache_file(case).read_bytes())
        verdict = Verdict(str(stored['problem']), float(stored['error']), float(stored['seconds']))
        if all(stored[name] == value for name, value in _key(case).items()):
            return verdict
    return None


def _write(case: Case, verdict: Verdict) -> None:
    """Store ``verdict``, unless the kernels did not run, for which the cause may pass."""
    if verdict.error is not None:
        with contextlib.suppress(UserError, OSError, RuntimeError):  # read-only or full disk, no home
            atomic_write(_cache_file(case), json.dumps(_key(case) | asdict(verdict)).encode())

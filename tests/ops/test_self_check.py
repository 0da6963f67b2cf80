"""The check of the fused kernels finds damaged kernels and accepts the right ones; its results are stored and obeyed.

Without a GPU, Triton interprets the kernels in a process that ``test_interpreted`` starts.
"""

import importlib.util
import json
import operator
import os
import threading
import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from interpreter import quick_interpreter

import volo_seg.ops.functional as functional
from volo_seg.errors import UserError
from volo_seg.ops import explain, outlook_attention
from volo_seg.ops.triton import self_check
from volo_seg.ops.triton.self_check import TOLERANCES, Case, Verdict, check, compare, import_kernels, why_not_fused

HAS_TRITON = importlib.util.find_spec('triton') is not None
INTERPRETED = HAS_TRITON and os.environ.get('TRITON_INTERPRET') == '1'
SOURCE = Path(self_check.__file__).with_name('kernels.py')
CPU = torch.device('cpu')
ONE_HEAD, TWO_HEADS = (Case(CPU, torch.float32, 3, 2, heads, 3) for heads in (1, 2))
ARGUMENTS = (CPU, torch.float32, 3, 2, 2, 3)

interpreted = pytest.mark.skipif(not INTERPRETED, reason='runs in the process that test_interpreted starts')

# function, text, replacement; each replaces every occurrence in that function
MUTANTS = [
    ('_tile', '(tile // across) * TILE_H', '(tile % across) * TILE_H'),
    ('_tile', '* TILE_H + cell // TILE_W', '* TILE_H + cell % TILE_W'),
    ('_tile', 'tl.cdiv(COLS, TILE_W)', 'tl.cdiv(ROWS, TILE_H)'),
    ('_pixels', 'image * H + y', 'image * W + y'),
    ('_pixels', '(image * H + y) * W + x', '(image * W + x) * H + y'),
    ('_pixels', '(x < W)', '(x <= W)'),
    ('_pixels', '(y >= 0) & ', ''),
    ('_pixels', '+ head * D', '+ head'),
    ('_mix', '+ a * K + b', '+ b * K + a'),
    ('_mix', 'range((r + PAD) % S, K, S)', 'range((r + PAD) % S, K - 1, S)'),
    ('_mix', '(r + PAD - a) // S', '(r + PAD - a) // S + 1'),
    ('_mix', 'tl.exp(logit * scale - high)', 'tl.exp(logit - high)'),
    ('_mix', ' & (j < COLS)', ''),
    ('_mix', '* S - PAD + n % K', '* S - PAD + n // K'),
    ('_mix', 'mixed / weight_sum[:, None]', 'mixed'),
    ('_mix', 'high + tl.log(weight_sum)', 'tl.log(weight_sum)'),
    ('_mix', 'channel < D', 'channel < D // 2'),
    ('_mix', 'channel < D', 'channel < D_P'),
    ('_mix', 'static_range(K * K)', 'static_range(K * K - 1)'),
    ('_mix', 'total += ', 'total = '),
    ('_mix_back', '(outs + n) * (K * K) + a * K + b', '(outs + a * K + b) * (K * K) + n'),
    ('_mix_back', 'there = there & covered', 'covered = covered'),
    ('_mix_back', 'logit * scale - row_sum', 'logit - row_sum'),
    ('_mix_back', 'sums_ptr + outs + n', 'sums_ptr + outs'),
    ('_mix_back', 'i * S - PAD + n // K', 'i * S - PAD + 1 + n // K'),
    ('_mix_back', 'static_range(K * K)', 'static_range(1, K * K)'),
    ('_mix_back', 'channel < D', 'channel < D // 2'),
    ('_logit_gradients', 'scale * weight *', 'weight *'),
    ('_logit_gradients', ' - tl.sum(weight * products, axis=1)[:, None]', ''),
    ('_logit_gradients', 'top = row * S - PAD', 'top = row * S'),
    ('_logit_gradients', 'left + n % K', 'left + n // K'),
    ('_logit_gradients', 'offset[None, :] == n', 'offset[None, :] == n + 1'),
    ('_logit_gradients', 'sums_ptr + outs + o', 'sums_ptr + outs'),
    ('_logit_gradients', 'channel < D', 'channel < D // 2'),
    ('_logit_gradients', '(row < ROWS) & (col < COLS)', '(row < ROWS)'),
    ('_logit_gradients', 'mask=owned[:, None] &', 'mask=there[:, None] &'),
]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No result is known, and results are stored in a folder of the test."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setattr(self_check, '_verdicts', {})


@pytest.fixture(scope='module')
def quick() -> Iterator[None]:
    with quick_interpreter():
        yield


def load_kernels(path: Path, source: str):
    """The module of the kernels with this source, with tiles of two rows of eight cells."""
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.TILE_VALUES = 64
    return module


@interpreted
@pytest.mark.parametrize(
    'case',
    [TWO_HEADS, Case(CPU, torch.bfloat16, 3, 1, 1, 4), Case(CPU, torch.float16, 3, 2, 1, 1)],
    ids=str,
)
def test_right_kernels_pass(case: Case, quick: None, tmp_path: Path) -> None:
    errors = dict(compare(load_kernels(tmp_path / 'right.py', SOURCE.read_text()), case))
    assert len(errors) == 4 and max(errors.values()) < TOLERANCES[case.dtype] / 2


OUTPUTS: dict[torch.Size, tuple[torch.Tensor, torch.Tensor]] = {}


def remembered_forward(v, logits, result, sums, window) -> None:
    """The right forward kernel, which runs once for each size; the check always has the same inputs."""
    if v.shape not in OUTPUTS:
        import_kernels().forward(v, logits, result, sums, window)
        OUTPUTS[v.shape] = result.clone(), sums.clone()
    for output, value in zip((result, sums), OUTPUTS[v.shape], strict=True):
        output.copy_(value)


@interpreted
@pytest.mark.parametrize('mutant', MUTANTS, ids=lambda m: f'{m[0]}: {m[1]}')
def test_damaged_kernels_fail(mutant: tuple[str, str, str], quick: None, tmp_path: Path) -> None:
    function, text, replacement = mutant
    before, start, rest = SOURCE.read_text().partition(f'def {function}(')
    body, end, after = rest.partition('@triton.jit')
    assert start and text in body
    damaged = load_kernels(tmp_path / 'damaged.py', before + start + body.replace(text, replacement) + end + after)
    if function in ('_mix_back', '_logit_gradients'):  # the forward kernel is not damaged
        damaged.forward = remembered_forward
    if function == '_mix_back':  # its gradient is compared first
        damaged._logit_gradients = defaultdict(lambda: lambda *_, **__: None)
    case = TWO_HEADS if '+ head' in text else ONE_HEAD
    for _, error in compare(damaged, case):
        if not error <= TOLERANCES[torch.float32]:
            return
    pytest.fail('the check accepts it')


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[Verdict]:
    """The check gives these results instead of running; the key needs no triton."""
    results: list[Verdict] = []
    monkeypatch.setattr(self_check, 'check', lambda case: results.pop(0))
    monkeypatch.setattr(self_check, '_key', lambda case: {'case': str(case)})
    return results


PASSED = Verdict('', 1e-7, 0.1)
OFF = Verdict('the result: error 5.0e-01, allowed 1e-05', 0.5, 0.1)


def stored() -> list[Path]:
    return list(self_check.cache_folder().iterdir()) if self_check.cache_folder().exists() else []


def test_a_failure_gives_one_warning_with_numbers_for_its_case_alone(answers: list[Verdict]) -> None:
    answers += [OFF, PASSED]
    with pytest.warns(
        RuntimeWarning, match=r'cpu, float32, kernel_size=3, .*: the result: error 5.0e-01.*eager'
    ) as seen:
        assert why_not_fused(*ARGUMENTS) == why_not_fused(*ARGUMENTS) == OFF.problem
    assert len(seen) == 1
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert why_not_fused(CPU, torch.bfloat16, *ARGUMENTS[2:]) == ''
    assert not answers


@pytest.mark.parametrize('verdict', [PASSED, OFF])
@pytest.mark.filterwarnings('ignore:the fused kernels')
def test_the_next_process_reads_the_result(answers: list[Verdict], verdict: Verdict) -> None:
    answers.append(verdict)
    why_not_fused(*ARGUMENTS)
    self_check._verdicts.clear()
    assert why_not_fused(*ARGUMENTS) == verdict.problem and not answers


@pytest.mark.parametrize(
    'content', [b'', b'\xff', b'[]', b'{"problem": "", "error": null}', b'{"problem": ""', 'other']
)
def test_a_damaged_or_foreign_file_is_ignored(answers: list[Verdict], content: bytes | str) -> None:
    answers += [PASSED, PASSED]
    why_not_fused(*ARGUMENTS)
    (path,) = stored()
    if content == 'other':
        content = json.dumps(json.loads(path.read_bytes()) | {'case': 'another one'}).encode()
    path.write_bytes(content)
    self_check._verdicts.clear()
    assert why_not_fused(*ARGUMENTS) == '' and not answers
    assert json.loads(path.read_bytes())['case'] == str(TWO_HEADS)


@pytest.mark.filterwarnings('ignore:the fused kernels')
def test_kernels_that_do_not_run_are_tried_again_by_the_next_process(answers: list[Verdict]) -> None:
    answers.append(Verdict('they do not run (OutOfMemoryError: 1 GiB)', None, 0.1))
    assert 'OutOfMemoryError' in why_not_fused(*ARGUMENTS) and 'OutOfMemoryError' in why_not_fused(*ARGUMENTS)
    assert not stored()


def test_a_folder_that_cannot_be_written(answers: list[Verdict], monkeypatch, tmp_path: Path) -> None:
    (tmp_path / 'file').touch()
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    answers.append(PASSED)
    assert why_not_fused(*ARGUMENTS) == why_not_fused(*ARGUMENTS) == ''


def test_no_check_during_capture(answers: list[Verdict], monkeypatch: pytest.MonkeyPatch) -> None:
    """What was checked before is used; anything else is not, and it is checked after the capture."""
    gpu = torch.device('cuda', 0), *ARGUMENTS[1:]
    monkeypatch.setattr(torch.cuda, 'is_current_stream_capturing', lambda: True)
    assert 'a CUDA graph is being captured' in why_not_fused(*gpu)
    monkeypatch.setattr(torch.cuda, 'is_current_stream_capturing', lambda: False)
    answers.append(PASSED)
    assert why_not_fused(*gpu) == ''
    monkeypatch.setattr(torch.cuda, 'is_current_stream_capturing', lambda: True)
    assert why_not_fused(*gpu) == '' and not answers


def test_threads_check_once(answers: list[Verdict]) -> None:
    answers.append(PASSED)
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(why_not_fused(*ARGUMENTS))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [''] * 8


@pytest.mark.parametrize('dynamic', [False, True])
@pytest.mark.parametrize('verdict', [PASSED, OFF])
@pytest.mark.filterwarnings('ignore:the fused kernels')
def test_compile_decides_without_a_graph_break(answers: list[Verdict], verdict: Verdict, dynamic: bool) -> None:
    answers.append(verdict)

    def call(v: torch.Tensor) -> torch.Tensor:
        problem = why_not_fused(v.device, v.dtype, 3, 2, 2, operator.index(v.shape[-1] // 2))
        return v + 1 if problem else v * 2

    torch._dynamo.reset()
    v = torch.ones(1, 2, 2, 6)
    compiled = torch.compile(call, fullgraph=True, backend='eager', dynamic=dynamic)
    with torch.inference_mode():
        assert torch.equal(compiled(v), v + 1 if verdict.problem else v * 2)
    assert not answers


@interpreted
def test_the_state_of_the_caller_does_not_matter(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inference mode, autocast, hooks on saved tensors, fake tensors and the random state are those of the caller."""
    from torch._subclasses import FakeTensorMode

    monkeypatch.setattr(import_kernels(), 'TILE_VALUES', 64)
    packed: list[torch.Tensor] = []
    state = torch.get_rng_state()
    hooks = torch.autograd.graph.saved_tensors_hooks(packed.append, lambda x: x)
    with torch.inference_mode(), torch.autocast('cpu', torch.bfloat16), hooks, FakeTensorMode():
        verdict = check(ONE_HEAD)
    assert verdict.problem == '' and verdict.error is not None and verdict.error < 1e-6
    assert not packed and torch.equal(torch.get_rng_state(), state)


@interpreted
def test_kernels_that_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError('ptxas: no such\ninstruction')

    monkeypatch.setattr(import_kernels(), 'backward', fail)
    monkeypatch.setattr(import_kernels(), 'forward', fail)
    verdict = check(TWO_HEADS)
    assert verdict.problem == 'they do not run (RuntimeError: ptxas: no such instruction)' and verdict.error is None


@interpreted
def test_an_old_triton_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import triton

    monkeypatch.setattr(triton, '__version__', '3.1.0')
    assert 'triton 3.1.0 is older than 3.2; install a newer torch' in check(TWO_HEADS).problem
    v, logits = torch.zeros(1, 2, 2, 6), torch.zeros(1, 1, 1, 162)
    with pytest.raises(UserError, match='triton 3.1.0 is older'):
        outlook_attention(v, logits, 2, stride=2, implementation='fused')


def test_the_environment_variable_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    v = torch.zeros(1, 4, 4, 6)
    for value, expected in (('auto', 'eager'), ('eager', 'eager'), ('torch', 'torch_impl')):
        monkeypatch.setenv('VOLO_SEG_OUTLOOK', value)
        assert explain(v, 2)[0] == expected
    assert explain(v, 2) == ('torch_impl', 'VOLO_SEG_OUTLOOK requests it')
    assert explain(v, 2, implementation='eager')[0] == 'eager'
    monkeypatch.setenv('VOLO_SEG_OUTLOOK', 'eager')
    assert explain(v, 2, dropout_p=0.1)[0] == 'torch_impl'
    logits = torch.zeros(1, 2, 2, 162)
    compiled = torch.compile(lambda v: outlook_attention(v, logits, 2, stride=2), fullgraph=True, backend='eager')
    assert compiled(v).shape == v.shape
    monkeypatch.setenv('VOLO_SEG_OUTLOOK', 'fast')
    with pytest.raises(UserError, match=r"VOLO_SEG_OUTLOOK='fast' is not one of auto, fused, eager, torch; unset it"):
        explain(v, 2)
    monkeypatch.setenv('VOLO_SEG_OUTLOOK', 'fused')
    with pytest.raises(
        UserError, match='VOLO_SEG_OUTLOOK=fused cannot run here: torch.float64 is not|are not on a GPU'
    ):
        explain(v.double(), 2)


def test_a_refused_kernel_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the reason is given; under torch.compile, torch operations take the place."""
    monkeypatch.setattr(functional, 'why_plain', lambda v: '')
    monkeypatch.setattr(functional, '_fused_unsupported', lambda *_: '')
    v = torch.zeros(1, 4, 4, 6, device='meta')  # any device but a CPU
    for problem, expected in (('', 'fused'), ('the result is wrong', 'eager')):
        monkeypatch.setattr(functional, 'why_not_fused', lambda *_, problem=problem: problem)
        name, reason = explain(v, 2)
        assert name == expected and problem in reason
    monkeypatch.setattr(torch.compiler, 'is_compiling', lambda: True)
    assert explain(v, 2)[0] == 'torch_impl'


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', list(TOLERANCES), ids=str)
def test_the_kernels_pass_on_this_gpu(dtype: torch.dtype) -> None:
    pytest.importorskip('triton')
    case = Case(torch.device('cuda', torch.cuda.current_device()), dtype, 3, 2, 6, 32)
    check(case)  # compiles
    verdict = check(case)
    assert verdict.problem == '' and verdict.seconds < 1

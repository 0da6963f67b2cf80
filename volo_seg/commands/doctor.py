"""Print versions, device, broken packages and a check of outlook attention on this machine, for bug reports."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata as metadata
import importlib.util
import os
import platform
import sys
import time
from collections.abc import Sequence

from volo_seg.commands.flags import make_parser

REQUIRED = ('torch', 'onedl-mmengine', 'onedl-mmcv', 'onedl-mmsegmentation', 'numpy', 'opencv-python', 'safetensors')
OPTIONAL = {
    'cityscapesscripts': 'preparing Cityscapes: pip install "volo-seg[cityscapes]"',
    'triton': 'the fused kernel, on a GPU only (comes with CUDA builds of torch)',
    'tensorboard': 'the TensorBoard backend',
}
MODULES = ('torch', 'mmengine', 'mmcv', 'mmseg', 'cv2', 'numpy', 'safetensors')
OPTIONAL_MODULES = ('torchvision', 'timm')
"""MMEngine and MMSegmentation import them if they are installed; the commands hide them if they are broken."""
# both packages of a pair install the same files, so that the later installation overwrites the other
RIVALS = {'onedl-mmengine': 'mmengine', 'onedl-mmcv': 'mmcv', 'onedl-mmsegmentation': 'mmsegmentation'}


def build_parser() -> argparse.ArgumentParser:
    """``volo-seg doctor`` has no flags of its own."""
    return make_parser('doctor', __doc__)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report; the exit status is 1 if a required package is missing, broken or in conflict."""
    build_parser().parse_args(argv)
    problems = find_problems()
    rows = [*describe_machine(), *describe_packages()]
    if not problems:
        rows += describe_attention()
    print('\n'.join(f'{name:<22}{value}' for name, value in rows))
    print('\n'.join(f'PROBLEM: {problem}' for problem in problems) or 'no problem found')
    return 1 if problems else 0


def version_of(name: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def describe_machine() -> list[tuple[str, str]]:
    """Rows about the machine: system, Python, cores, GPU."""
    from volo_seg import __version__

    rows = [
        ('volo-seg', __version__),
        ('python', f'{platform.python_version()} ({sys.executable})'),
        ('system', f'{platform.platform()}, {os.cpu_count()} cores'),
        ('OMP_NUM_THREADS', os.environ.get('OMP_NUM_THREADS', 'not set')),
    ]
    if version_of('torch'):
        import torch

        device = torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU only'
        rows += [
            ('device', f'{device}, {torch.get_num_threads()} CPU threads'),
            ('CUDA of torch', str(torch.version.cuda)),
        ]
    return rows


def describe_packages() -> list[tuple[str, str]]:
    """Rows with the versions of required and optional packages, and whether mmcv has compiled operators."""
    rows = [(name, version_of(name) or 'MISSING') for name in REQUIRED]
    rows += [(name, version_of(name) or f'not installed; {use}') for name, use in OPTIONAL.items()]
    compiled = importlib.util.find_spec('mmcv') is not None and importlib.util.find_spec('mmcv._ext') is not None
    broken = {name: why_broken(name) for name in OPTIONAL_MODULES if importlib.util.find_spec(name) is not None}
    rows += [(name, f'broken, and ignored by all commands: {why}') for name, why in broken.items() if why]
    return [*rows, ('mmcv compiled ops', 'yes' if compiled else 'no (not needed)')]


def why_broken(module: str) -> str:
    """The error of importing ``module``, in one line; empty if there is none."""
    try:
        importlib.import_module(module)
    except Exception as error:  # whatever a package raises that was built for another version
        return ' '.join(f'{type(error).__name__}: {error}'.split())[:200]
    return ''


def describe_attention() -> list[tuple[str, str]]:
    """Rows with the largest error and the time of each implementation of outlook attention on this machine."""
    import torch

    from volo_seg.checkpoints import VARIANTS
    from volo_seg.ops.triton.fused import HAS_TRITON
    from volo_seg.ops.triton.self_check import TOLERANCES, Case, check

    rows = [(f'outlook {name}', check_on_cpu(name)) for name in ('eager', 'torch_impl')]
    if not (torch.cuda.is_available() and HAS_TRITON):
        return [*rows, ('outlook fused', 'not checked: it needs a GPU and triton')]
    device = torch.device('cuda', torch.cuda.current_device())
    for variant, arch in VARIANTS.items():
        heads = arch.num_heads[0]
        for dtype in TOLERANCES:
            verdict = check(Case(device, dtype, 3, 2, heads, arch.embed_dims[0] // heads))
            error = '' if verdict.error is None else f'error {verdict.error:.1e}, '
            outcome = f'not used: {verdict.problem}; ' if verdict.problem else f'passed, {error}'
            kind = str(dtype).removeprefix('torch.')
            rows.append((f'outlook fused {variant}', f'{kind}: {outcome}{verdict.seconds:.1f} s with compilation'))
    return rows


def check_on_cpu(implementation: str) -> str:
    """Compare ``implementation`` with the reference in float64, gradients too, on a map of odd sides."""
    import torch

    from volo_seg.ops import outlook_attention

    generator = torch.Generator().manual_seed(0)
    v, grad = (torch.randn(1, 15, 13, 24, generator=generator) for _ in range(2))
    logits = torch.randn(1, 8, 7, 2 * 81, generator=generator)

    def run(name: str, dtype: torch.dtype) -> list[torch.Tensor]:
        x, weights = (tensor.to(dtype).requires_grad_() for tensor in (v, logits))
        result = outlook_attention(x, weights, 2, kernel_size=3, stride=2, padding=1, scale=0.5, implementation=name)
        return [result.detach(), *torch.autograd.grad(result, (x, weights), grad.to(dtype))]

    expected = run('reference', torch.float64)
    start = time.perf_counter()
    values = run(implementation, torch.float32)
    seconds = time.perf_counter() - start
    error = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(values, expected, strict=True))
    return f'float32: {"passed" if error < 1e-5 else "WRONG"}, error {error:.1e}, {1e3 * seconds:.0f} ms'


def find_problems() -> list[str]:
    """A sentence for each package that is missing or in conflict."""
    problems = [f'{name} is missing: pip install {name}' for name in missing()]
    problems += [
        f'{theirs} and {ours} are both installed and have the same files: '
        f'pip uninstall {theirs} {ours}, then pip install {ours}'
        for ours, theirs in RIVALS.items()
        if version_of(ours) and version_of(theirs)
    ]
    modules = {module: why_broken(module) for module in MODULES if importlib.util.find_spec(module) is not None}
    problems += [f'import {module} fails: {why}; reinstall it' for module, why in modules.items() if why]
    if not (3, 10) <= sys.version_info[:2] <= (3, 13):
        problems.append(f'Python {platform.python_version()} is not supported by the packages; use 3.10 to 3.13')
    return problems


def missing() -> list[str]:
    """Required packages that are not installed, also not under the alternative name of OpenMMLab or OpenCV."""
    stand_ins = {**RIVALS, 'opencv-python': 'opencv-python-headless'}
    return [
        name for name in REQUIRED if not version_of(name) and not (name in stand_ins and version_of(stand_ins[name]))
    ]

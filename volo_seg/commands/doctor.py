"""Print versions, device, and packages that are missing or in conflict, for bug reports."""

from __future__ import annotations

import argparse
import importlib.metadata as metadata
import os
import platform
import sys
from collections.abc import Sequence

from volo_seg.commands.flags import make_parser

REQUIRED = ('torch', 'onedl-mmengine', 'onedl-mmcv', 'onedl-mmsegmentation', 'numpy', 'opencv-python', 'safetensors')
OPTIONAL = {
    'cityscapesscripts': 'preparing Cityscapes: pip install "volo-seg[cityscapes]"',
    'triton': 'the fused kernel, on a GPU only (comes with CUDA builds of torch)',
    'tensorboard': 'the TensorBoard backend',
}
# both packages of a pair install the same files, so that the later installation overwrites the other
RIVALS = {'onedl-mmengine': 'mmengine', 'onedl-mmcv': 'mmcv', 'onedl-mmsegmentation': 'mmsegmentation'}


def build_parser() -> argparse.ArgumentParser:
    """``volo-seg doctor`` has no flags of its own."""
    return make_parser('doctor', __doc__)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report; the exit status is 1 if a required package is missing or in conflict."""
    build_parser().parse_args(argv)
    problems = find_problems()
    lines = [f'{name:<22}{value}' for name, value in (*describe_machine(), *describe_packages())]
    print('\n'.join(lines))
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
    from importlib.util import find_spec

    compiled = find_spec('mmcv') is not None and find_spec('mmcv._ext') is not None
    return [*rows, ('mmcv compiled ops', 'yes' if compiled else 'no (not needed)')]


def find_problems() -> list[str]:
    """A sentence for each package that is missing or in conflict."""
    problems = [f'{name} is missing: pip install {name}' for name in missing()]
    problems += [
        f'{theirs} and {ours} are both installed and have the same files: '
        f'pip uninstall {theirs} {ours}, then pip install {ours}'
        for ours, theirs in RIVALS.items()
        if version_of(ours) and version_of(theirs)
    ]
    if not (3, 10) <= sys.version_info[:2] <= (3, 13):
        problems.append(f'Python {platform.python_version()} is not supported by the packages; use 3.10 to 3.13')
    return problems


def missing() -> list[str]:
    """Required packages that are not installed, also not under the alternative name of OpenMMLab or OpenCV."""
    stand_ins = {**RIVALS, 'opencv-python': 'opencv-python-headless'}
    return [
        name for name in REQUIRED if not version_of(name) and not (name in stand_ins and version_of(stand_ins[name]))
    ]

"""``run.json``: what was run, on what data, by which versions, on which machine, and how it ended."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

import torch

from volo_seg import __version__
from volo_seg.io import WriteError, atomic_write

NAME = 'run.json'
PACKAGES = (
    *('torch', 'triton', 'numpy', 'opencv-python', 'opencv-python-headless'),
    *('onedl-mmengine', 'onedl-mmcv', 'onedl-mmsegmentation', 'mmengine', 'mmcv', 'mmcv-lite', 'mmsegmentation'),
)
ENVIRONMENT = ('OMP_NUM_THREADS', 'CUDA_VISIBLE_DEVICES', 'CUBLAS_WORKSPACE_CONFIG')


class RunRecord:
    """The record of one run, in its log folder and, of the last training, in its work dir; rank 0 writes it.

    What cannot be written is left out: a record never ends a run.
    """

    def __init__(self, runner: Any, *, kind: str) -> None:
        self._runner, self._start = runner, time.time()
        self._content: dict[str, Any] = {
            'kind': kind,
            'status': 'running',
            'started': _now(),
            'command': sys.argv,
            'folder': os.getcwd(),
            'config': Path(runner.cfg.filename).name if runner.cfg.filename else None,
            'resolved_config': _resolved_config(runner),
            'seed': runner.seed,
            'deterministic': runner.deterministic,
            'processes': runner.world_size,
            'resumed_from': str(runner._load_from) if runner._resume else None,
            'weights_from': None if runner._resume or not runner._load_from else str(runner._load_from),
            'versions': versions(),
            'code': commit_of(Path(__file__).parent),
            'hardware': hardware(),
            'environment': {key: os.environ[key] for key in ENVIRONMENT if key in os.environ},
        }

    def write(self, **more: Any) -> None:
        """Add ``more`` and write."""
        self._content.update(more)
        if self._runner.rank != 0:
            return
        text = json.dumps(self._content, indent=2, default=str) + '\n'
        try:
            atomic_write(Path(self._runner.log_dir, NAME), text.encode())
            if self._content['kind'] == 'train':
                atomic_write(Path(self._runner.work_dir, NAME), text.encode())
        except WriteError as error:
            self._runner.logger.warning(str(error))

    def finish(self, status: str, *, reason: str | None = None) -> None:
        """Write how the run ended: ``finished``, ``interrupted`` or ``failed``."""
        hub = self._runner.message_hub.runtime_info
        best = {key: value for key, value in hub.items() if key.startswith('best_')}
        loop = self._runner._train_loop if self._content['kind'] == 'train' else None
        self.write(
            status=status,
            reason=reason,
            ended=_now(),
            seconds=round(time.time() - self._start, 1),
            iterations=getattr(loop, 'iter', None),
            last_checkpoint=hub.get('last_ckpt'),
            **best,
        )


def _resolved_config(runner: Any) -> str | None:
    """Where the config stands with all its bases and flags, below the work dir: this run's copy if there is one."""
    places = [Path(runner.timestamp, 'vis_data', 'config.py'), Path(Path(runner.cfg.filename or 'config.py').name)]
    return next((str(place) for place in places if Path(runner.work_dir, place).is_file()), None)


def versions() -> dict[str, str]:
    """Python and the packages that results depend on, those that are installed."""
    found = {name: version(name) for name in PACKAGES if any(distributions(name=name))}
    return {'python': platform.python_version(), 'volo-seg': __version__, **found}


def commit_of(folder: Path) -> dict[str, Any] | None:
    """Commit of the checkout that ``folder`` is tracked in, and whether files differ from it; None outside of one."""

    def git(*words: str) -> str:
        command = ['git', '-C', str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()

    try:
        # an installed package may lie inside a checkout of something else
        git('ls-files', '--error-unmatch', '__init__.py')
        changed = git('status', '--porcelain', '--untracked-files=no', '--', ':/')
        return {'commit': git('rev-parse', 'HEAD'), 'changed_files': len(changed.splitlines())}
    except (OSError, subprocess.SubprocessError):
        return None


def hardware() -> dict[str, Any]:
    """The machine: CPU, cores, memory in GiB, GPUs."""
    pages = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') if hasattr(os, 'sysconf') else 0
    return {
        'system': platform.platform(),
        'cpu': _cpu_name(),
        'cores': os.cpu_count(),
        'threads': torch.get_num_threads(),
        'memory_GiB': round(pages / 2**30, 1),
        'gpus': [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        'cuda': torch.version.cuda if torch.cuda.is_available() else None,
    }


def _cpu_name() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')), platform.machine())


def _now() -> str:
    return time.strftime('%Y-%m-%dT%H:%M:%S%z')

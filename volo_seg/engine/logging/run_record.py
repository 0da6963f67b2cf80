"""``run.json``: command, config, data, versions and machine of a run, and how it ended."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any, TypeVar

import torch

from volo_seg import __version__
from volo_seg.engine.data_files import unreadable_file
from volo_seg.errors import PeerLost, message_of
from volo_seg.io import WriteError, atomic_write

NAME = 'run.json'
PACKAGES = (
    *('torch', 'triton', 'numpy', 'opencv-python', 'opencv-python-headless'),
    *('onedl-mmengine', 'onedl-mmcv', 'onedl-mmsegmentation', 'mmengine', 'mmcv', 'mmcv-lite', 'mmsegmentation'),
)
ENVIRONMENT = ('OMP_NUM_THREADS', 'CUDA_VISIBLE_DEVICES', 'CUBLAS_WORKSPACE_CONFIG')

PEER_ERRORS = ('gloo', 'NCCL', 'Connection closed by peer', 'Connection reset by peer', 'Broken pipe')
"""Parts of torch's error messages when another process of the group has ended."""

Result = TypeVar('Result')


class RunRecord:
    """Record of a run, written by rank 0 into the log folder and, for training, also into the work dir.

    A failed write is logged and does not end the run.
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
        """Add ``more`` to the record and write it."""
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
        """Write the final ``status``: ``finished``, ``interrupted`` or ``failed``."""
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


def run_recorded(runner: Any, kind: str, work: Callable[[], Result]) -> Result:
    """Call ``work`` and record in ``run.json`` how it ended; the runner records that it finished.

    Raises:
        PeerLost: Another process of the job ended.
        UserError: A data file cannot be read.
    """
    runner.record = RunRecord(runner, kind=kind)
    runner.record.write()
    try:
        result = work()
    except KeyboardInterrupt as error:
        runner.record.finish('interrupted', reason=str(error) or 'interrupted')
        raise
    except BaseException as error:
        loops = (runner._train_loop, runner._val_loop, runner._test_loop)
        explained = unreadable_file(error, [loop.dataloader.dataset for loop in loops if hasattr(loop, 'dataloader')])
        if explained is None and runner.world_size > 1 and lost_peer(error):
            explained = PeerLost('another process of this job ended; see its message')
        reported = explained or error
        runner.record.finish('failed', reason=f'{type(reported).__name__}: {message_of(reported)}'.strip()[:2000])
        if explained is not None:
            raise explained from error
        raise
    finally:
        runner.stop_listening()
    return result


def lost_peer(error: BaseException) -> bool:
    """Return whether ``error`` is torch's error about a process of the group that has ended."""
    return isinstance(error, RuntimeError) and any(word in str(error) for word in PEER_ERRORS)


def _resolved_config(runner: Any) -> str | None:
    """Return the path of the resolved config below the work dir, preferably this run's own copy."""
    paths = [Path(runner.timestamp, 'vis_data', 'config.py'), Path(Path(runner.cfg.filename or 'config.py').name)]
    return next((str(path) for path in paths if Path(runner.work_dir, path).is_file()), None)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that results depend on."""
    found = {name: version(name) for name in PACKAGES if any(distributions(name=name))}
    return {'python': platform.python_version(), 'volo-seg': __version__, **found}


def commit_of(folder: Path) -> dict[str, Any] | None:
    """Return commit and number of changed files of the git checkout that tracks ``folder``; None if there is none."""

    def git(*words: str) -> str:
        command = ['git', '-C', str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()

    try:
        # an installed package can be inside the checkout of another project
        git('ls-files', '--error-unmatch', '__init__.py')
        changed = git('status', '--porcelain', '--untracked-files=no', '--', ':/')
        return {'commit': git('rev-parse', 'HEAD'), 'changed_files': len(changed.splitlines())}
    except (OSError, subprocess.SubprocessError):
        return None


def hardware() -> dict[str, Any]:
    """Return system, CPU, cores, threads, memory in GiB and GPUs of this machine."""
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

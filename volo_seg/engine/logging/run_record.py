"""``run.json``: what was run, on what data, by which versions, on which machine, and how it ended."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook

from volo_seg import __version__
from volo_seg.io import WriteError, atomic_write, check_regular

NAME = 'run.json'
PACKAGES = (
    *('torch', 'triton', 'numpy', 'opencv-python', 'opencv-python-headless'),
    *('onedl-mmengine', 'onedl-mmcv', 'onedl-mmsegmentation', 'mmengine', 'mmcv', 'mmcv-lite', 'mmsegmentation'),
)
ENVIRONMENT = ('OMP_NUM_THREADS', 'CUDA_VISIBLE_DEVICES', 'CUBLAS_WORKSPACE_CONFIG')
STATED, READ, READ_BYTES = 2000, 16, 2**20
"""Files whose size is looked at, files whose content is read, and how much of each, for a split's fingerprint."""


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


class DataRecordHook(Hook):
    """Add the fingerprints of the data to the record, once the loaders are built."""

    priority = 'LOWEST'

    def before_train(self, runner: Any) -> None:
        """Look at the files of training and validation."""
        record = runner.record
        if record is None or runner.rank != 0:
            return
        loops = {'train': runner.train_loop, 'val': runner.val_loop}
        record.write(data={name: fingerprint(loop.dataloader.dataset) for name, loop in loops.items() if loop})

    def before_test(self, runner: Any) -> None:
        """Look at the files of the test split."""
        if runner.record is not None and runner.rank == 0:
            runner.record.write(data={'test': fingerprint(runner.test_loop.dataloader.dataset)})


def fingerprint(dataset: Any) -> dict[str, Any]:
    """Number, names, sizes and some contents of the files of ``dataset``, as two hashes that change with them.

    ``names`` is a hash over all names (relative to the data root) and up to 2,000 evenly spread sizes; ``content``
    over the first MiB of 16 evenly spread files.
    """
    files = sorted(set(_files(dataset)))
    names, content = hashlib.sha256(), hashlib.sha256()
    size = 0
    measured = set(_evenly(files, STATED))
    for name, path in files:
        length = _size(path) if (name, path) in measured else -1
        size += max(length, 0)
        names.update(f'{name}\0{length}\n'.encode())
    for name, path in _evenly(files, READ):
        if _size(path) >= 0:
            with open(path, 'rb') as file:
                content.update(name.encode() + file.read(READ_BYTES))
    told = {'samples': len(dataset), 'files': len(files), 'names': names.hexdigest(), 'content': content.hexdigest()}
    return {**told, 'bytes' if len(measured) == len(files) else 'bytes_of_some': size}


def _files(dataset: Any) -> Iterator[tuple[str, str]]:
    """Name and path of each image and label file, through data sets that wrap others."""
    inner = getattr(dataset, 'datasets', None)
    if inner is None and not hasattr(dataset, 'get_data_info') and hasattr(dataset, 'dataset'):
        inner = [dataset.dataset]
    if inner is not None:
        for one in inner:
            yield from _files(one)
        return
    root = getattr(dataset, 'data_root', None) or '.'
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        for path in (info.get('img_path'), info.get('seg_map_path')):
            if path:
                yield os.path.relpath(path, root), path


def _size(path: str) -> int:
    """Bytes of a regular file, -1 if there is none."""
    try:
        return check_regular(path).st_size
    except OSError:
        return -1


def _evenly(items: Sequence[Any], count: int) -> list[Any]:
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


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

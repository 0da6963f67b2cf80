"""Fingerprints of the data that a run reads, for ``run.json``."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

from mmengine.hooks import Hook
from mmseg.registry import HOOKS

from volo_seg.engine.data_files import check_files, data_files
from volo_seg.io import check_regular

STATED, READ, READ_BYTES = 2000, 16, 2**20
"""Limits of a fingerprint: files whose size is read, files whose content is read, and bytes read of each."""


@HOOKS.register_module()
class DataRecordHook(Hook):
    """Adds fingerprints of the data to ``run.json``; refuses images and labels that are not regular files."""

    priority = 'LOWEST'

    def before_train(self, runner: Any) -> None:
        """Check and record the files of training and validation."""
        self._record(runner, train=runner.train_loop, val=runner.val_loop)

    def before_test(self, runner: Any) -> None:
        """Check and record the files of the test split."""
        self._record(runner, test=runner.test_loop)

    def _record(self, runner: Any, **loops: Any) -> None:
        datasets = {name: loop.dataloader.dataset for name, loop in loops.items() if loop}
        for dataset in datasets.values():
            check_files(dataset)
        if getattr(runner, 'record', None) is not None and runner.rank == 0:
            runner.record.write(data={name: fingerprint(dataset) for name, dataset in datasets.items()})


def fingerprint(dataset: Any) -> dict[str, Any]:
    """Return the number and size of the files of ``dataset``, and two hashes.

    ``names`` is the hash of all names (relative to the data root) and of up to 2,000 evenly spread sizes, ``content``
    that of the first MiB of 16 evenly spread files.
    """
    files = sorted({(os.path.relpath(path, root), path) for root, path in data_files(dataset)})
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
    counts = {'samples': len(dataset), 'files': len(files), 'names': names.hexdigest(), 'content': content.hexdigest()}
    return {**counts, 'bytes' if len(measured) == len(files) else 'bytes_of_some': size}


def _size(path: str) -> int:
    """Return the size of a regular file in bytes, -1 if there is none."""
    try:
        return check_regular(path).st_size
    except OSError:
        return -1


def _evenly(items: Sequence[Any], count: int) -> list[Any]:
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]

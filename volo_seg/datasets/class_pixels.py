"""Pixels of each class in each sample of a training data set, counted once and cached."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from mmengine.logging import print_log

from volo_seg.datasets.inspection.observation import InspectionOptions
from volo_seg.datasets.inspection.processes import inspect_pairs
from volo_seg.datasets.masks import label_lookup
from volo_seg.errors import UserError
from volo_seg.io import atomic_write, file_lock
from volo_seg.progress import Progress

Counts = npt.NDArray[np.int64]


def class_pixels(dataset: Any) -> Counts:
    """The pixels (N, C) of the C classes in the N samples of ``dataset``, which may wrap others; ignored ones left out.

    All label images are read once, in as many processes as this one has processors, and the result is stored in
    :func:`cache_folder` under a hash of the names, sizes and times of the files and of how their labels are read. Of
    several processes that ask for it, one counts and the others wait. Where nothing can be stored, each counts.

    Raises:
        UserError: A sample has no label image, or one cannot be read.
    """
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    classes = len(dataset.metainfo['classes'])
    unlabelled = next((info for info in infos if not info.get('seg_map_path')), None)
    if unlabelled is not None:
        raise UserError(
            f'image {unlabelled.get("img_path")!r} has no label image, so its classes cannot be counted; add one, or '
            'leave out the sampling of rare classes and copy-paste'
        )
    names = [json.dumps([info['seg_map_path'], *_rules(info)]) for info in infos]
    unique = dict(zip(names, infos, strict=True))
    stats = [_state(info['seg_map_path']) for info in unique.values()]
    key = hashlib.sha256(json.dumps([classes, list(unique), stats]).encode()).hexdigest()
    path = cache_folder() / f'{key[:32]}.npy'
    with _locked(path):
        counts = _read(path, (len(unique), classes))
        if counts is None:
            counts = _count(list(unique.values()), classes)
            with contextlib.suppress(UserError, OSError):  # a full or read-only disk
                content = io.BytesIO()
                np.save(content, counts, allow_pickle=False)
                atomic_write(path, content.getvalue())
    places = {name: place for place, name in enumerate(unique)}
    return counts[[places[name] for name in names]]


def cache_folder() -> Path:
    """The folder of the stored counts: ``volo-seg/class-pixels`` in ``XDG_CACHE_HOME`` or in ``~/.cache``."""
    return Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser() / 'volo-seg' / 'class-pixels'


def _rules(info: Mapping[str, Any]) -> tuple[Any, ...]:
    """How the labels of a sample are read, as JSON knows it."""
    table = info.get('colour_table')
    label_map = sorted((info.get('label_map') or {}).items())
    return bool(info.get('reduce_zero_label')), label_map, None if table is None else astuple(table)


def _state(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return -1, -1  # reading it gives the error
    return found.st_size, found.st_mtime_ns


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, RuntimeError):  # a read-only disk, no home
            stack.enter_context(file_lock(path.with_suffix('.lock')))
        yield


def _read(path: Path, shape: tuple[int, int]) -> Counts | None:
    """The stored counts; None if there are none, or if the file is damaged."""
    with contextlib.suppress(OSError, ValueError, EOFError):
        counts = np.load(path, allow_pickle=False)
        if counts.shape == shape and counts.dtype == np.int64 and (counts >= 0).all():
            return counts
    return None


def _count(infos: list[Any], classes: int) -> Counts:
    counts = np.zeros((len(infos), classes), np.int64)
    groups: dict[Any, list[int]] = {}
    for index, info in enumerate(infos):
        groups.setdefault(info.get('colour_table'), []).append(index)
    print_log(f'the classes of {len(infos)} label images are counted', 'current')
    processes = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    with Progress(len(infos), unit='label images') as progress:
        for table, members in groups.items():
            pairs = [(infos[index].get('img_path', ''), infos[index]['seg_map_path']) for index in members]
            options = InspectionOptions(images=False, table=table)
            for index, seen in zip(members, inspect_pairs(pairs, options, processes=processes), strict=True):
                if not seen.values:
                    raise UserError(seen.problems[0][2])
                info = infos[index]
                lookup = label_lookup(
                    reduce_zero_label=bool(info.get('reduce_zero_label')), label_map=info.get('label_map')
                )
                for value, count in seen.values.items():
                    if lookup[value] < classes:
                        counts[index, lookup[value]] += count
                progress.advance()
    return counts

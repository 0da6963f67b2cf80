"""Inspect files in worker processes, which import NumPy, Pillow and OpenCV only."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from volo_seg.datasets.inspection.observation import InspectionOptions, Observation, inspect_pair
from volo_seg.errors import UserError

Item = TypeVar('Item')
Found = TypeVar('Found')


def inspect_pairs(
    pairs: Sequence[tuple[str, str | None]], options: InspectionOptions, *, processes: int
) -> Iterator[Observation]:
    """Inspect ``pairs`` with ``processes`` processes, and yield the observations in their order.

    Raises:
        UserError: A process was killed.
    """
    work = functools.partial(inspect_pair, options=options)
    return map_in_processes(work, pairs, processes=1 if len(pairs) < 64 else processes, chunk=32)


def map_in_processes(
    work: Callable[[Item], Found], items: Sequence[Item], *, processes: int, chunk: int = 8
) -> Iterator[Found]:
    """Yield ``work(item)`` for all ``items`` in their order; a process gets at most ``chunk`` items at a time.

    Raises:
        UserError: A process was killed.
    """
    if processes == 1 or len(items) < 2:
        yield from map(work, items)
        return
    # a fork would copy held locks of the threads of OpenCV and torch
    context = multiprocessing.get_context('spawn')
    pool = ProcessPoolExecutor(min(processes, len(items)), mp_context=context, initializer=_start_worker)
    try:
        with _ctrl_c_blocked():
            results = pool.map(work, items, chunksize=max(1, min(chunk, len(items) // (4 * processes))))
        yield from results
    except BrokenProcessPool as error:
        raise UserError('a worker process was killed (memory may be full); try again with --nproc 1') from error
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _ctrl_c_blocked() -> Iterator[None]:
    """Block SIGINT, which processes started in the block inherit; this process receives it after the block."""
    if not hasattr(signal, 'pthread_sigmask'):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    """Ignore SIGINT, which the parent process handles, and use one thread."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ['OMP_NUM_THREADS'] = '1'
    import cv2

    cv2.setNumThreads(1)

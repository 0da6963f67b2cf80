"""Work in many processes, each of which loads NumPy, Pillow and OpenCV, and nothing else."""

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

from volo_seg.datasets.inspection.observation import Look, Observation, inspect_pair
from volo_seg.errors import UserError

Item = TypeVar('Item')
Found = TypeVar('Found')


def inspect_pairs(pairs: Sequence[tuple[str, str | None]], look: Look, *, processes: int) -> Iterator[Observation]:
    """Inspect ``pairs`` in order, in ``processes`` processes.

    Raises:
        UserError: A process was killed.
    """
    work = functools.partial(inspect_pair, look=look)
    return map_in_processes(work, pairs, processes=1 if len(pairs) < 64 else processes, chunk=32)


def map_in_processes(
    work: Callable[[Item], Found], items: Sequence[Item], *, processes: int, chunk: int = 8
) -> Iterator[Found]:
    """The results of ``work`` for all ``items``, in their order; ``processes`` get ``chunk`` items at a time at most.

    Raises:
        UserError: A process was killed.
    """
    if processes == 1 or len(items) < 2:
        yield from map(work, items)
        return
    # spawned, not forked: this process may have threads (OpenCV, torch), whose locks a fork would copy
    context = multiprocessing.get_context('spawn')
    pool = ProcessPoolExecutor(min(processes, len(items)), mp_context=context, initializer=_start_worker)
    try:
        with _ctrl_c_blocked():
            results = pool.map(work, items, chunksize=max(1, min(chunk, len(items) // (4 * processes))))
        yield from results
    except BrokenProcessPool as error:
        raise UserError('a process was killed, perhaps for memory; try again with --nproc 1') from error
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _ctrl_c_blocked() -> Iterator[None]:
    """Start processes that never see Ctrl-C, not even while they import; this one gets it after the block."""
    if not hasattr(signal, 'pthread_sigmask'):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and one thread to each process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ['OMP_NUM_THREADS'] = '1'
    import cv2

    cv2.setNumThreads(1)

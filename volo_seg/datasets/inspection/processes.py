"""Inspecting many pairs in many processes; each of them loads NumPy, Pillow and OpenCV, and nothing else."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from volo_seg.datasets.inspection.observation import Look, Observation, inspect_pair
from volo_seg.errors import UserError


def inspect_pairs(pairs: Sequence[tuple[str, str | None]], look: Look, *, processes: int) -> Iterator[Observation]:
    """Inspect ``pairs`` in order, in ``processes`` processes.

    Raises:
        UserError: A process was killed.
    """
    work = functools.partial(inspect_pair, look=look)
    if processes == 1 or len(pairs) < 64:
        yield from map(work, pairs)
        return
    # spawned, not forked: this process may have threads (OpenCV, torch), whose locks a fork would copy
    context = multiprocessing.get_context('spawn')
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker)
    try:
        yield from pool.map(work, pairs, chunksize=max(1, min(32, len(pairs) // (4 * processes))))
    except BrokenProcessPool as error:
        raise UserError('a process of the check was killed, perhaps for memory; try again with --nproc 1') from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and one thread to each process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ['OMP_NUM_THREADS'] = '1'
    import cv2

    cv2.setNumThreads(1)

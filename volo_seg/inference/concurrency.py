"""Threads that read ahead of the network and write behind it, both with a bounded number of items in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

T = TypeVar('T')
R = TypeVar('R')


def prefetch(function: Callable[[T], R], items: Iterable[T], *, threads: int, depth: int) -> Generator[R, None, None]:
    """Yield ``function(item)`` of each item, in order, computed in threads for up to ``depth`` items ahead.

    ``items`` is iterated in the calling thread. When the generator is closed, waiting items are dropped, and running
    calls are awaited.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix='volo-seg-read')
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class WriterPool:
    """Runs functions in threads; with one thread, in the order in which they are submitted.

    As a context manager, it waits for all functions at the end of the block. After an exception in the block it drops
    those that have not started and waits for the others.

    Args:
        threads: Number of threads.
        depth: Largest number of functions that wait or run; :meth:`submit` blocks beyond it.
    """

    def __init__(self, *, threads: int, depth: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix='volo-seg-write')
        self._depth = depth
        self._pending: deque[Future[None]] = deque()

    def submit(self, function: Callable[[], None]) -> None:
        """Run ``function`` in a thread. An exception of an earlier function is raised here."""
        while self._pending and (len(self._pending) >= self._depth or self._pending[0].done()):
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(function))

    def wait(self) -> None:
        """Wait for all functions, and raise the first exception of one."""
        while self._pending:
            self._pending.popleft().result()

    def __enter__(self) -> WriterPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)

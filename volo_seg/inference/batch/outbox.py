"""Work that goes on in threads while the network is at the next image."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

T = TypeVar('T')


class Outbox:
    """Runs what is put into it in threads, in order with one thread; an error comes back at one of the next calls.

    As a context: a clean end waits for everything; an exception drops what has not begun, and waits for the rest.

    Args:
        threads: How many.
        depth: How much may be on its way; then :meth:`put` waits too.
    """

    def __init__(self, *, threads: int, depth: int) -> None:
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix='volo-seg-write')
        self.depth = depth
        self.pending: deque[Future[None]] = deque()

    def put(self, work: Callable[[], None]) -> None:
        """Run ``work`` later. What an earlier one raised is raised here."""
        while self.pending and (len(self.pending) >= self.depth or self.pending[0].done()):
            self.pending.popleft().result()
        self.pending.append(self.pool.submit(work))

    def wait(self) -> None:
        """Wait until everything is done."""
        while self.pending:
            self.pending.popleft().result()

    def __enter__(self) -> Outbox:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self.pool.shutdown(wait=True, cancel_futures=True)


def ahead(items: Iterable[T], *, depth: int) -> Iterator[T]:
    """The same items, up to ``depth`` of them taken ahead by a thread."""
    source = iter(items)
    end = object()
    pool = ThreadPoolExecutor(1, thread_name_prefix='volo-seg-read')
    coming: deque[Future[T | object]] = deque()
    try:
        while True:
            while len(coming) < depth:
                coming.append(pool.submit(next, source, end))
            item = coming.popleft().result()
            if item is end:
                return
            yield item  # type: ignore[misc]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)

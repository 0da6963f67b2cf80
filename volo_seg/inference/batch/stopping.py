"""SIGTERM and Ctrl-C end a command the same way: whatever is half done is cleared away, and one line says so."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

from volo_seg.errors import Interrupted


@contextlib.contextmanager
def stopped_orderly(message: str) -> Iterator[None]:
    """End on SIGTERM (of torchrun, of a scheduler) as on Ctrl-C, with ``message``.

    Raises:
        Interrupted: One of the two came.
    """

    def stop(number: int, frame: object) -> None:
        raise Interrupted('', number)

    listens = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if listens else None
    try:
        yield
    except KeyboardInterrupt as error:
        number = getattr(error, 'status', 128 + signal.SIGINT) - 128
        raise Interrupted(message, number) from error
    finally:
        if listens:
            signal.signal(signal.SIGTERM, before)

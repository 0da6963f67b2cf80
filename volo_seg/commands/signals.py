"""Ctrl-C and SIGTERM end a command with one line and its own exit status, whatever it does at that moment."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from types import FrameType, TracebackType

from volo_seg.errors import Interrupted

NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """Turn SIGINT and SIGTERM into :class:`Interrupted` within a ``with`` block of the main thread.

    Args:
        last: The process ends after the block: from then on a signal ends it at once.

    Attributes:
        asked: Number of the signal that came, also if a library caught the exception and raised another, or none.
    """

    def __init__(self, *, last: bool = False) -> None:
        self.asked: int | None = None
        self._last = last
        self._process = os.getpid()
        self._listens = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Signals:
        if self._listens:
            # None: not set by Python; ignored (by nohup, or in the background): stays so
            self._before = {number: signal.getsignal(number) for number in NUMBERS}
            self._before = {number: old for number, old in self._before.items() if old not in (None, signal.SIG_IGN)}
            for number in self._before:
                signal.signal(number, self._raise)
            self._hook, sys.unraisablehook = sys.unraisablehook, self._repeat
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._listens:
            for number, old in self._before.items():
                signal.signal(number, leave if self._last else old)
            sys.unraisablehook = self._hook
            if self._last:  # Python gives signals back to the system before it is through
                atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)

    def check(self) -> None:
        """Raise again what a library has swallowed.

        Raises:
            Interrupted: A signal came.
        """
        if self.asked is not None:
            raise Interrupted('', self.asked)

    def meant(self, error: BaseException) -> BaseException:
        """The signal, if a library turned that into ``error``, else ``error``; more signals end the process at once."""
        if self._listens and self._last:
            for number in self._before:
                signal.signal(number, leave)
        if self.asked is None or isinstance(error, KeyboardInterrupt):
            return error
        return Interrupted('', self.asked)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # forked, and not yet with handlers of its own
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        self.asked = number
        raise Interrupted('', number)

    def _repeat(self, unraisable: sys.UnraisableHookArgs) -> None:
        """Send the signal again where Python could not raise the exception: in a callback, or while freeing objects."""
        if isinstance(unraisable.exc_value, Interrupted) and self.asked is not None:
            threading.Timer(0.01, self._send, [self.asked]).start()
        else:
            self._hook(unraisable)

    def _send(self, number: int) -> None:
        """Send ``number`` to the main thread after it has left ``_repeat``, where the exception would be lost again."""
        main = threading.main_thread().ident
        assert main is not None
        frame = sys._current_frames().get(main)
        while frame is not None:
            if frame.f_code is Signals._repeat.__code__:
                time.sleep(0.01)
                frame = sys._current_frames().get(main)
            else:
                frame = frame.f_back
        signal.pthread_kill(main, number)


def leave(number: int, frame: FrameType | None) -> None:
    """End the process at once: its work is done, and the interpreter is being shut down."""
    os.write(2, b'\ninterrupted\n')
    os._exit(128 + number)

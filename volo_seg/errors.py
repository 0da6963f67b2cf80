"""The exceptions whose message a command prints without a traceback."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


class UserError(ValueError):
    """An error in the input of the user; its message is one sentence that gives the value, the place and the fix.

    Commands print the message only and exit with status 2. Other exceptions are bugs and keep their traceback.
    """


def message_of(error: BaseException) -> str:
    """The message of ``error``, without the traceback that a process that loads data puts before it."""
    return str(error).strip().rsplit(f'{type(error).__name__}: ', 1)[-1]


@contextlib.contextmanager
def prefixed(place: str) -> Iterator[None]:
    """Prefix the message of a UserError raised in the block with ``place``, a key of a config."""
    try:
        yield
    except UserError as error:
        raise UserError(f'{place}: {error}') from error


class Interrupted(KeyboardInterrupt):
    """A signal stopped the command. The message says what is saved; ``status`` is the exit status of the process."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.status = 128 + number


class PeerLost(UserError):
    """Another process of the job has ended; its own message gives the reason."""


@contextlib.contextmanager
def exit_on_signal(message: str | Callable[[], str]) -> Iterator[None]:
    """Give the :class:`Interrupted` that ends a command a ``message``, which states what its files contain."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted(message() if callable(message) else message, getattr(error, 'status', 130) - 128) from error

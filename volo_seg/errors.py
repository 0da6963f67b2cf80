"""The exceptions whose message a command prints without a traceback."""

from __future__ import annotations

import contextlib
import shutil
import sys
import textwrap
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


def print_message(text: str) -> None:
    """Print ``text`` to stderr; in a terminal, its lines are broken between words to fit (longer words stay whole)."""
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns
        lines = text.splitlines()
        text = '\n'.join(textwrap.fill(x, width, break_long_words=False, break_on_hyphens=False) for x in lines)
    print(text, file=sys.stderr, flush=True)


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

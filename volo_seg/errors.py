"""The exceptions that a command answers with one sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class UserError(ValueError):
    """A mistake in what the user gave us; its one-sentence message names the value, the place and the fix.

    Commands print the message alone and exit with status 2; everything else is a bug and keeps its traceback.
    """


@contextlib.contextmanager
def prefixed(place: str) -> Iterator[None]:
    """Put ``place``, a key of a config, in front of the message of a UserError raised inside."""
    try:
        yield
    except UserError as error:
        raise UserError(f'{place}: {error}') from error


class Interrupted(KeyboardInterrupt):
    """A signal ended the work; the message says what is saved, and ``status`` is what the process exits with."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.status = 128 + number


class PeerLost(UserError):
    """Another process of the job is gone, and it knows why."""


@contextlib.contextmanager
def exit_on_signal(message: str) -> Iterator[None]:
    """Give the :class:`Interrupted` that ends a command a ``message``, which states what its files contain."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted(message, getattr(error, 'status', 130) - 128) from error

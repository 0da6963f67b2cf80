"""The exceptions that a command answers with one sentence."""


class UserError(ValueError):
    """A mistake in what the user gave us; its one-sentence message names the value, the place and the fix.

    Commands print the message alone and exit with status 2; everything else is a bug and keeps its traceback.
    """


class Interrupted(KeyboardInterrupt):
    """A signal ended the work; the message says what is saved, and ``status`` is what the process exits with."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.status = 128 + number


class PeerLost(UserError):
    """Another process of the job is gone, and it knows why."""

"""The one exception that means "the user can mend this"."""


class UserError(ValueError):
    """A mistake in what the user gave us; its one-sentence message names the value, the place and the fix.

    Commands print the message alone and exit with status 2; everything else is a bug and keeps its traceback.
    """

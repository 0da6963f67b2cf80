"""Writing files whole or not at all; free of everything heavy, for every room."""

from __future__ import annotations

import os
from pathlib import Path

from volo_seg.errors import UserError


def write_whole(path: str | Path, content: bytes) -> None:
    """Write ``content`` to ``path`` in one step, so that nobody ever sees half a file; folders are made.

    Raises:
        UserError: The folder or the file cannot be written.
    """
    path = Path(path)
    part = path.with_name(f'.{path.name[-200:]}.{os.getpid()}.part')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(content)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f'{str(path)!r} cannot be written ({error.strerror}); name another place') from error

"""Files that this room writes: whole or not at all, and nobody else's replaced."""

from __future__ import annotations

import os
from pathlib import Path

from volo_seg.errors import UserError


def write_whole(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` in one step; folders are made.

    Raises:
        UserError: the folder or the file cannot be written.
    """
    part = path.with_name(f'.{path.name}.{os.getpid()}.part')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as error:
        raise UserError(f'{str(path)!r} cannot be written ({error.strerror}); name another place') from error
    finally:
        if part.exists():
            part.unlink()

"""Writing files whole or not at all, one process at a time; free of everything heavy, for every room."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
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


@contextlib.contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Hold ``lock`` against other processes, where the system knows such locks (not on Windows)."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with lock.open('w') as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # whoever held it before has removed the file: then this lock is nobody's, and the new file is to be held
            if not _is_still_there(lock, file.fileno()):
                continue
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


def _is_still_there(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False

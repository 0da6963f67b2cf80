"""Atomic file writes, file locks, and checks of the files that are read. Standard library only."""

from __future__ import annotations

import codecs
import contextlib
import errno
import json
import os
import shutil
import socket
import stat
import tempfile
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from volo_seg.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FOLDER_LOCK = '.volo-seg.lock'
PART = '.part'
_locked_folders: set[Path] = set()


class WriteError(UserError):
    """A file cannot be written: full disk, no permission, or no such folder. What was there before is unchanged."""

    def __init__(self, path: str | Path, reason: object, *, fix: str = 'free some space or name another place') -> None:
        super().__init__(f'{str(path)!r} cannot be written ({reason}); {fix}')
        self.reason = str(reason)


def atomic_write(path: str | Path, content: bytes) -> None:
    """Write ``content`` to ``path`` in one step; see :func:`atomic_path`.

    Raises:
        WriteError: The folder or the file cannot be written.
    """
    with atomic_path(path) as part:
        part.write_bytes(content)


@contextlib.contextmanager
def atomic_path(path: str | Path, *, suffix: str = '') -> Iterator[Path]:
    """Yield the path of a new file or folder beside ``path``, which replaces ``path`` when the block ends.

    A reader never sees half a file. After an exception the temporary file is removed, and what was at ``path`` stays.
    Its name is unique, so that processes on any machine may write to one ``path``; the last one wins. Folders above
    ``path`` are created.

    Args:
        path: The file, or an empty or new folder.
        suffix: End of the temporary name, for writers that choose a format by it.

    Raises:
        WriteError: An ``OSError`` in the block, or ``path`` cannot be replaced.
    """
    path = Path(path)
    part = part_path(path, suffix=suffix)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    except OSError as error:
        raise WriteError(path, error.strerror or error) from error
    finally:
        with contextlib.suppress(OSError):
            if part.is_dir():
                shutil.rmtree(part)
            else:
                part.unlink(missing_ok=True)


def part_path(path: Path, *, suffix: str = '') -> Path:
    """A unique hidden name beside ``path`` of at most 255 bytes, which ends in ``PART`` and ``suffix``."""
    return path.with_name(f'.{path.name[:50]}.{uuid.uuid4().hex[:16]}{PART}{suffix}')


def safe_join(folder: str | Path, name: str | Path) -> Path:
    """The path of ``name`` (relative, subfolders allowed) in ``folder``, with symbolic links resolved.

    Raises:
        WriteError: ``name`` is empty or absolute, or leads out of ``folder`` by ``..`` or by a symbolic link.
    """
    text, root = str(name), Path(folder).resolve()
    fix = f'give a relative path that stays in {str(folder)!r}'
    if text in ('', '.') or '\0' in text or Path(text).is_absolute():
        raise WriteError(text, 'the name is empty or absolute', fix=fix)
    try:
        path = (root / text).resolve()
    except (OSError, RuntimeError) as error:  # a cycle of links, or a name that is too long
        raise WriteError(text, error, fix=fix) from error
    if path == root or not path.is_relative_to(root):
        raise WriteError(text, f'it leads out of {str(folder)!r} to {str(path)!r}', fix=fix)
    return path


def check_writable(folder: str | Path, *, what: str = '', fix: str = 'name another place', size: int = 1) -> None:
    """Write ``size`` bytes into ``folder``, or into the nearest folder above it that exists, and remove them again.

    Commands call this before the work whose results go there.

    Args:
        folder: Need not exist; it is not created.
        what: Kind of the folder, for the message.
        fix: End of the message.
        size: Bytes.

    Raises:
        UserError: It is a file, or nothing can be written there.
    """
    path = Path(folder)
    try:
        existing = next((place for place in (path, *path.absolute().parents) if os.path.lexists(place)), path)
        if not existing.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b'\0' * size)
            file.flush()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(f'{f"{what} " if what else ""}{str(folder)!r} cannot be written ({reason}); {fix}') from error


def write_failure(error: Exception, folder: Path) -> str:
    """The system's message for a failed write. The writers of torch and safetensors replace it by their own."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    try:
        check_writable(folder, size=2**20)
    except UserError as probe:
        return write_failure(probe, folder)
    return str(error).splitlines()[0][:160]


def check_regular(path: str | Path) -> os.stat_result:
    """Check, before it is opened, that ``path`` is a regular file, with links followed; return its status.

    Opening a pipe waits for a writer, and a device such as /dev/zero has no end.

    Raises:
        OSError: It is a folder, pipe, socket or device, does not exist, or may not be looked at.
    """
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, 'it is a folder, not a file', str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, 'it is a pipe, socket or device, not a file', str(path))
    return status


def read_regular(path: str | Path) -> bytes:
    """The content of a regular file; see :func:`check_regular`."""
    check_regular(path)
    return Path(path).read_bytes()


def read_lines(path: str | Path, *, most_bytes: int = 2**20) -> list[str]:
    """The non-empty lines of a regular file of UTF-8, or of UTF-16 with a byte order mark, stripped of white space.

    Raises:
        OSError: See :func:`check_regular`; or the file is larger than ``most_bytes``.
        UnicodeDecodeError: It is not such text.
    """
    size = check_regular(path).st_size
    if size > most_bytes:
        raise OSError(errno.EFBIG, f'it has {size:,} bytes, more than {most_bytes:,}', str(path))
    content = Path(path).read_bytes()
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    lines = content.decode('utf-16' if wide else 'utf-8-sig').splitlines()
    return [line for line in map(str.strip, lines) if line]


def find_files(
    folder: str | Path, *, suffixes: Sequence[str], any_case: bool = True, skip: Collection[Path] = ()
) -> list[Path]:
    """The files below ``folder`` whose names end with one of ``suffixes``, sorted by path; empty if it does not exist.

    Hidden files and folders are left out. Links to folders are followed, but a folder is not searched again below
    itself. Broken links, pipes and devices are listed, so that the reader of the file reports them.

    Args:
        folder: Start of the search.
        suffixes: Ends of file names; they need not start with a dot.
        any_case: Whether ``suffixes`` match in upper and lower case.
        skip: Folders below ``folder``, resolved, that are left out.

    Raises:
        UserError: A folder cannot be searched, or the name of such a file is not UTF-8.
    """

    def refuse(error: OSError) -> None:
        raise UserError(
            f'folder {error.filename!r} cannot be searched ({error.strerror}); change its permissions or leave it out'
        )

    ends = tuple(suffix.lower() if any_case else suffix for suffix in suffixes)
    found: list[str] = []
    folders_above: dict[str, tuple[tuple[int, int], ...]] = {}
    root = str(folder)
    for place, folders, files in os.walk(root, followlinks=True, onerror=refuse if os.path.isdir(root) else None):
        status, above = os.stat(place), folders_above.pop(place, ())
        identity = status.st_dev, status.st_ino
        if identity in above or (skip and place != root and Path(place).resolve() in skip):
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith('.')]
        folders_above.update((os.path.join(place, name), (*above, identity)) for name in folders)
        names = (name for name in files if not name.startswith('.'))
        found += [os.path.join(place, n) for n in names if (n.lower() if any_case else n).endswith(ends)]
    for path in found:
        check_utf8(path)
    return sorted(map(Path, found), key=Path.as_posix)


def check_utf8(path: str | Path) -> None:
    """Check that ``path`` can be printed and written to text files.

    Raises:
        UserError: It has bytes that are not text in the encoding of the file system.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise UserError(f'the path {os.fsencode(path)!r} is not UTF-8 text; rename the file or folder') from error


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file ``path``, which is removed afterwards; wait for another process or thread.

    Where the system has no such locks (Windows), nothing is locked.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_locked(path, wait=True):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_lock(folder: str | Path, *, what: str, fix: str) -> Iterator[None]:
    """Hold an exclusive lock on ``folder``, which is created; the threads of this process share it.

    After a crash the next process takes over the lock, unless a process on another machine holds it: not all shared
    file systems have locks across machines, so that the user has to decide.

    Args:
        folder: Holds the file ``FOLDER_LOCK`` as long as the lock is held.
        what: Kind of the folder, for the messages.
        fix: How to take another one, for the messages.

    Raises:
        UserError: Another process has it, or the folder cannot be written.
    """
    path, locks = Path(folder).resolve() / FOLDER_LOCK, True
    if path in _locked_folders:
        yield
        return
    check_writable(folder, what=what, fix=fix)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            opened = open_locked(path, wait=False)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            opened, locks = path.open('a', encoding='utf-8'), False
    except BlockingIOError as error:
        raise UserError(_in_use(path, _holder(path), what, fix)) from error
    except OSError as error:
        raise WriteError(folder, error.strerror or error) from error
    with opened as file:
        holder, here = _holder(path), _this_process()
        same_machine = here['host'] == holder.get('host') or here['boot'] == holder.get('boot')
        if holder and (not same_machine or not (locks or _is_gone(holder['pid']))):
            raise UserError(_in_use(path, holder, what, fix))
        file.truncate(0)
        file.write(json.dumps(here))
        file.flush()
        _locked_folders.add(path)
        try:
            yield
        finally:
            _locked_folders.discard(path)
            path.unlink(missing_ok=True)


def open_locked(path: Path, *, wait: bool) -> TextIOWrapper:
    """The file ``path``, open for appending and locked until it is closed; BlockingIOError if another has it.

    Where the system has no such locks (Windows), it is not locked.
    """
    while True:
        file = path.open('a', encoding='utf-8')
        try:
            if fcntl is None:
                return file
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # the previous holder may have removed the file: then the new file has to be locked
            if os.path.samestat(os.stat(path), os.fstat(file.fileno())):
                if not wait:  # data-loading processes, which may outlive this one, must not keep a long-held lock
                    os.register_at_fork(after_in_child=file.close)
                return file
        except FileNotFoundError:
            pass
        except BaseException:
            file.close()
            raise
        file.close()


def _this_process() -> dict[str, Any]:
    try:  # equal in all containers of a machine
        boot = Path('/proc/sys/kernel/random/boot_id').read_text(encoding='ascii').strip()
    except OSError:
        boot = socket.gethostname()
    since = time.strftime('%Y-%m-%d %H:%M:%S')
    return {'pid': os.getpid(), 'host': socket.gethostname(), 'boot': boot, 'since': since}


def _is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _holder(lock: Path) -> dict[str, Any]:
    """The result of :func:`_this_process` that the holder wrote; empty if it cannot be read."""
    try:
        found = json.loads(lock.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get('pid'), int) else {}


def _in_use(lock: Path, holder: Mapping[str, Any], what: str, fix: str) -> str:
    who = 'another process'
    if holder:
        who = f'process {holder["pid"]} on {holder.get("host")} since {holder.get("since")}'
    return (
        f'{what} {str(lock.parent)!r} is in use by {who}; wait for its end or {fix}; if that process is gone, delete '
        f'{str(lock)!r}'
    )

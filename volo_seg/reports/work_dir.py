"""Reading the files of a work dir that may come from somebody else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from volo_seg.io import check_regular

MAX_NUMBER = 1e30
"""Numbers beyond this are treated as missing: they are no score, loss or rate, and plots overflow."""
_MAX_JSON_BYTES = 16 * 2**20
_MAX_TEXT, _MAX_ENTRIES = 300, 200


class WorkDir:
    """Read access to the regular files below a folder.

    Files outside of the folder (by ``..`` or by a symbolic link), fifos, devices and files above a size limit are not
    read. Each file that exists and cannot be used adds a sentence to ``notes``.
    """

    def __init__(self, path: Path) -> None:
        self.root = path.resolve()
        self.notes: list[str] = []

    def find(self, *patterns: str) -> list[Path]:
        """The existing files that match one of the glob ``patterns`` below the folder, oldest first."""
        found = {path for pattern in patterns for path in self.root.glob(pattern)}
        return sorted(found, key=lambda path: (_modified(path), path))

    def read(self, path: Path, *, limit: int = _MAX_JSON_BYTES, magic: bytes = b'') -> bytes | None:
        """The content of a file below the folder; None if the file is missing or left out.

        Args:
            path: The file.
            limit: Largest size in bytes.
            magic: What the content has to start with.
        """
        try:
            real = path.resolve(strict=True)
            if not real.is_relative_to(self.root):
                raise ValueError('lies outside of the work dir')
            if check_regular(real).st_size > limit:
                raise ValueError(f'has more than {limit // 2**20} MiB')
            with open(real, 'rb') as file:
                content = file.read(limit)
        except FileNotFoundError:
            return None
        except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a link to itself, before Python 3.13
            reason = 'it links to itself' if isinstance(error, RuntimeError) else getattr(error, 'strerror', None)
            self.note(path, f'{f"cannot be read ({reason})" if reason else error} and is left out.')
            return None
        if not content.startswith(magic):
            self.note(path, 'is not an image of the expected format and is left out.')
            return None
        return content

    def read_json(self, path: Path) -> dict[str, Any] | None:
        """The object in a JSON file; None if the file is missing or left out."""
        content = self.read(path)
        if content is None:
            return None
        try:
            value = json.loads(content)
        except (ValueError, RecursionError):
            self.note(path, 'is not valid JSON and is left out.')
            return None
        if not isinstance(value, dict):
            self.note(path, 'does not hold a JSON object and is left out.')
            return None
        return value

    def note(self, path: Path, problem: str) -> None:
        """Add the sentence that ``problem`` holds for ``path``."""
        try:
            name = path.relative_to(self.root)
        except ValueError:
            name = path
        self.notes.append(f'{text(str(name))} {problem}')


def _modified(path: Path) -> int:
    """Time of the last change in nanoseconds, 0 if it is unknown."""
    try:
        return path.stat().st_mtime_ns
    except (OSError, RuntimeError):  # removed in the meantime, a link to nothing or to itself
        return 0


def number(value: Any) -> float | None:
    """``value`` if it is a finite number of at most 1e30, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -MAX_NUMBER <= value <= MAX_NUMBER:
        return None
    return float(value)


def count(value: Any) -> int | None:
    """``value`` if it is a number of pixels or images, else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63 else None


def text(value: Any) -> str:
    """``value`` as text of at most 300 characters; control characters are replaced, containers are shown as "…"."""
    if isinstance(value, (dict, list)):
        return '…'
    try:
        words = str(value)
    except ValueError:  # an integer of more than 4300 digits
        return '…'
    words = words if len(words) <= _MAX_TEXT else words[: _MAX_TEXT - 1] + '…'
    return ''.join(letter if letter.isprintable() else '\ufffd' for letter in words)


def tree(value: Any, *, depth: int = 3) -> Any:
    """Text, or dicts of text up to ``depth`` levels, of a JSON value; empty entries are left out, lists are joined."""
    if isinstance(value, dict) and depth:
        entries = [(key, item) for key, item in value.items() if item not in (None, '', [], {})]
        return {text(key): tree(item, depth=depth - 1) for key, item in entries[:_MAX_ENTRIES]}
    if isinstance(value, list):
        return ' '.join(text(item) for item in value[:_MAX_ENTRIES])
    return text(value)

"""Paths of output files that stay inside their folder."""

from __future__ import annotations

from pathlib import Path

from volo_seg.errors import UserError


def inside(folder: str | Path, name: str | Path) -> Path:
    """The path of ``name`` (relative, subfolders allowed) in ``folder``, with symbolic links followed.

    Raises:
        UserError: ``name`` is empty or absolute, or leads out of ``folder`` by ``..`` or by a symbolic link.
    """
    text = str(name)
    if text in ('', '.') or '\0' in text or Path(text).is_absolute():
        raise UserError(f'name {text!r} is empty or absolute; give one that is relative to {str(folder)!r}')
    root = Path(folder).resolve()
    try:
        path = (root / text).resolve()
    except (OSError, RuntimeError) as error:  # links in a circle, a name that is too long
        raise UserError(f'name {text!r} cannot be followed in {str(folder)!r}: {error}') from error
    if path == root or not path.is_relative_to(root):
        raise UserError(f'name {text!r} leads out of {str(folder)!r} (to {str(path)!r}), and nothing is written there')
    return path

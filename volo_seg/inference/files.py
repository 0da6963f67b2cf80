"""Writing files: whole or not at all, and nowhere but where we were asked to."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from volo_seg.errors import UserError
from volo_seg.io import write_whole


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


def write_image(path: str | Path, image: np.ndarray) -> None:
    """Write ``image`` (BGR or one channel) in the format of the suffix of ``path``, whole or not at all.

    Raises:
        UserError: The format is unknown or cannot hold the image, or ``path`` cannot be written.
    """
    path = Path(path)
    try:
        done, data = cv2.imencode(path.suffix, image)
    except cv2.error as error:
        raise UserError(f'image {str(path)!r} cannot be encoded ({error.err}); end its name in .png') from error
    if not done:
        raise UserError(f'image {str(path)!r} of {image.shape} does not fit into this format; end its name in .png')
    write_whole(path, data.tobytes())

"""Published folders: what is in one, and where it is.

A folder holds ``config.json`` (the config as plain values, with ``classes`` and ``palette``), ``model.safetensors`` and
a ``README.md``. Reading one executes nothing of it: see :mod:`volo_seg.config.untrusted`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volo_seg.errors import UserError

CONFIG, WEIGHTS, METRICS, CARD = 'config.json', 'model.safetensors', 'metrics.json', 'README.md'
LARGEST_CONFIG = 8 * 2**20
"""Bytes; a config of more is none."""


@dataclass(frozen=True)
class Pretrained:
    """A published folder: its config as plain values, its weights file, classes, and colours (RGB, 0 to 255)."""

    folder: Path
    config: dict[str, Any]
    weights: Path
    classes: tuple[str, ...]
    palette: list[list[int]]


def find_pretrained(text: str | Path, *, revision: str | None = None) -> Path:
    """The folder that ``text`` means: itself, or the hub's ``OWNER/NAME``, fetched once.

    Raises:
        UserError: It is neither, or the hub does not give it.
    """
    path = Path(text).expanduser()
    if path.is_dir():
        return path
    if not re.fullmatch(r'[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*', str(text)) or '..' in str(text):
        raise UserError(f'{str(text)!r} is neither a folder nor a hub id (OWNER/NAME)')
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise UserError(
            f"{str(text)!r} is no folder here, and fetching it needs huggingface_hub: pip install 'volo-seg[hub]'"
        ) from error
    try:
        return Path(snapshot_download(str(text), revision=revision, allow_patterns=[CONFIG, WEIGHTS, METRICS, CARD]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f'{str(text)!r} is no folder here, and the hub does not give it: {reason}') from error


def read_pretrained(folder: Path) -> Pretrained:
    """Read a published folder, all but its weights.

    Raises:
        UserError: A file is missing, or ``config.json`` is not what :func:`volo_seg.export.publish` writes.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f'{str(folder)!r} holds no {name}: give a folder that `volo-seg publish` wrote')
    path = folder / CONFIG
    if path.stat().st_size > LARGEST_CONFIG:
        raise UserError(f'{str(path)!r} has {path.stat().st_size} bytes, more than any config')
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f'{str(path)!r} is not readable JSON: {error}') from error
    classes: Any = content.get('classes') if isinstance(content, dict) else None
    palette: Any = content.get('palette') if isinstance(content, dict) else None
    if not _are_names(classes) or not _are_colours(palette, count=len(classes)):
        raise UserError(f'{str(path)!r} names no classes with a colour each: publish the model again')
    return Pretrained(folder, content, folder / WEIGHTS, tuple(classes), palette)


def _are_names(classes: Any) -> bool:
    return isinstance(classes, list) and len(classes) > 0 and all(isinstance(name, str) for name in classes)


def _are_colours(palette: Any, *, count: int) -> bool:
    return (
        isinstance(palette, list)
        and len(palette) == count
        and all(isinstance(c, list) and len(c) == 3 for c in palette)
        and all(isinstance(v, int) and 0 <= v <= 255 for c in palette for v in c)
    )

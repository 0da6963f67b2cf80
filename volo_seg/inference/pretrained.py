"""Published model folders, local or on the hub.

A folder contains ``config.json`` (the config as plain values, with ``classes`` and ``palette``), ``model.safetensors``
and ``README.md``. Nothing in it is executed: see :mod:`volo_seg.config.untrusted`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volo_seg.errors import UserError
from volo_seg.weights import did_you_mean

CONFIG, WEIGHTS, METRICS, CARD = 'config.json', 'model.safetensors', 'metrics.json', 'README.md'
LARGEST_CONFIG = 8 * 2**20
"""Largest accepted size of ``config.json`` in bytes."""


@dataclass(frozen=True)
class Pretrained:
    """The content of a published folder: config as plain values, weights file, classes and palette (RGB, 0 to 255)."""

    folder: Path
    config: dict[str, Any]
    weights: Path
    classes: tuple[str, ...]
    palette: list[list[int]]


def find_pretrained(text: str | Path, *, revision: str | None = None) -> Path:
    """The local folder ``text``, or the folder of the hub id ``OWNER/NAME``, downloaded into the hub cache.

    Raises:
        UserError: It is neither, or the download fails.
    """
    path = Path(text).expanduser()
    if path.is_dir():
        return path
    if not re.fullmatch(r'[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*', str(text)) or '..' in str(text):
        raise UserError(
            f'{str(text)!r} is neither a folder nor a hub id{did_you_mean(str(text))}; give a folder or OWNER/NAME'
        )
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise UserError(
            f"{str(text)!r} is not a local folder, and a download needs huggingface_hub: pip install 'volo-seg[hub]'"
        ) from error
    try:
        return Path(snapshot_download(str(text), revision=revision, allow_patterns=[CONFIG, WEIGHTS, METRICS, CARD]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f'{str(text)!r} is not a local folder, and its download failed ({reason}); check the hub id and the network'
        ) from error


def read_pretrained(folder: Path) -> Pretrained:
    """Read a published folder, except for its weights.

    Raises:
        UserError: A file is missing, or ``config.json`` was not written by :func:`volo_seg.export.publish`.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f'{str(folder)!r} holds no {name}: give a folder that volo-seg publish wrote')
    path = folder / CONFIG
    if path.stat().st_size > LARGEST_CONFIG:
        raise UserError(
            f'{str(path)!r} has {path.stat().st_size} bytes, more than {LARGEST_CONFIG}: publish the model again'
        )
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f'{str(path)!r} is not readable JSON ({error}): publish the model again') from error
    classes: Any = content.get('classes') if isinstance(content, dict) else None
    palette: Any = content.get('palette') if isinstance(content, dict) else None
    valid = isinstance(classes, list) and classes and all(isinstance(name, str) for name in classes)
    if not valid or not _are_colours(palette, count=len(classes)):
        raise UserError(f'{str(path)!r} names no classes with a colour each: publish the model again')
    return Pretrained(folder, content, folder / WEIGHTS, tuple(classes), palette)


def _are_colours(palette: Any, *, count: int) -> bool:
    return (
        isinstance(palette, list)
        and len(palette) == count
        and all(isinstance(c, list) and len(c) == 3 for c in palette)
        and all(isinstance(v, int) and 0 <= v <= 255 for c in palette for v in c)
    )

"""Reading weights files, safely or not at all."""

from __future__ import annotations

import os
import re
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from volo_seg.checkpoints.allowlist import HISTORY, allowed_globals, history_globals
from volo_seg.checkpoints.fetching import download, locate
from volo_seg.errors import UserError

Device = str | torch.device
MOST_UNPACKED = 20
"""Times its own size that a zip of weights may unpack to."""


def load_file(source: str | os.PathLike[str], *, map_location: Device = 'cpu') -> dict[str, Any]:
    """Read the weights file ``source``: a path, an http(s) or file address, or a short name.

    Addresses and short names (``volo_d1_224``) are downloaded once, into torch.hub's folder. A safetensors
    file gives its tensors by name, or ``dict(meta=..., state_dict=...)`` if it has metadata of its own;
    anything else is read by ``torch.load`` with ``weights_only=True`` and the few classes of
    :mod:`.allowlist`. There is no unsafe way around a refusal.

    Raises:
        UserError: Missing, damaged, refused, or no weights file at all.
    """
    place = locate(source)
    if place.url is None:
        return read_weights(place.path, name=str(place.path), map_location=map_location)
    if not place.path.is_file():
        return download(place, read=partial(read_weights, name=place.url, map_location=map_location))
    advice = f'delete it to have {place.url} downloaded again'
    return read_weights(place.path, name=str(place.path), map_location=map_location, advice=advice)


def read_weights(
    path: Path, *, name: str, map_location: Device, advice: str = 'download or copy it again'
) -> dict[str, Any]:
    """Read the local file ``path``, called ``name`` in messages; ``advice`` is how to mend a damaged one."""
    head = _head(path, name=name)
    _refuse_other_files(path, head, name=name, advice=advice)
    try:
        if head[8:9] == b'{' or (path.suffix == '.safetensors' and not head.startswith(b'PK')):
            content = _read_safetensors(path, map_location)
        else:
            content = _read_torch(path, map_location)
    except Exception as error:
        raise UserError(_explain(error, name=name, advice=advice)) from error
    if not isinstance(content, dict):
        raise UserError(f'{name} holds a {type(content).__name__}, not a dict of weights: save a state_dict() instead')
    return content


def _head(path: Path, *, name: str) -> bytes:
    if path.is_dir():
        raise UserError(f'{name} is a folder: give the weights file itself')
    if not path.is_file():
        raise UserError(f'{name} is no regular file: copy its content into one')
    try:
        with open(path, 'rb') as file:
            return file.read(1024)
    except OSError as error:
        raise UserError(f'{name} cannot be read ({error.strerror}): mend the path or its permissions') from error


def _refuse_other_files(path: Path, head: bytes, *, name: str, advice: str) -> None:
    """Refuse what is surely no weights file, by its first bytes."""
    if not head.strip(b'\0'):
        raise UserError(f'{name} is empty: {advice}')
    if head.lstrip().lower().startswith((b'<!doctype', b'<html', b'<?xml', b'<head')):
        raise UserError(f'{name} is a web page, not weights: use the address of the file itself')
    if head.startswith(b'version https://git-lfs'):
        raise UserError(f'{name} is only a Git LFS pointer: run "git lfs pull" where it comes from')
    # torch before 2.6 unpickled old tar checkpoints unsafely even when asked not to (CVE-2025-32434)
    if tarfile.is_tarfile(path):
        raise UserError(f'{name} is a tar archive, which no weights file is, ".pth.tar" or not: {advice}')
    if head.startswith(b'PK'):
        _refuse_odd_archive(path, name=name, advice=advice)


def _refuse_odd_archive(path: Path, *, name: str, advice: str) -> None:
    """Refuse a zip that would fill the memory, or that readers could read in two ways; torch.save packs nothing."""
    try:
        with zipfile.ZipFile(path) as file:
            members = file.infolist()
    except Exception as error:  # of many classes
        told = ' '.join(str(error).split())[:160] or type(error).__name__
        raise UserError(f'{name} is damaged, incomplete or no weights file ({told}): {advice}') from error
    size, unpacked = path.stat().st_size, sum(member.file_size for member in members)
    if unpacked > MOST_UNPACKED * size + 2**20:
        raise UserError(f'{name} unpacks from {size:,} to {unpacked:,} bytes, which no weights file does: {advice}')
    twice = [member for member, count in Counter(member.filename for member in members).items() if count > 1]
    if twice:
        raise UserError(f'{name} is damaged or forged, it holds {twice[0][:80]!r} twice: {advice}')


def _read_safetensors(path: Path, map_location: Device) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(str(path), framework='pt', device=str(map_location)) as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        meta = {key: value for key, value in (file.metadata() or {}).items() if key != 'format'}
    return {'meta': meta, 'state_dict': tensors} if meta else tensors


def _read_torch(path: Path, map_location: Device) -> Any:
    allowed = allowed_globals()
    try:
        return _load(path, map_location, allowed)
    except Exception as error:
        if _refused_global(error) != HISTORY:
            raise
    # a checkpoint of a training run; only these pay for importing mmengine
    return _load(path, map_location, allowed + history_globals())


def _load(path: Path, map_location: Device, allowed: list[Any]) -> Any:
    # an open file, as torch would go by the suffix of a path
    with open(path, 'rb') as file, _only(allowed):
        return torch.load(file, map_location=map_location, weights_only=True)


@contextmanager
def _only(allowed: list[Any]) -> Iterator[None]:
    """Let torch build ``allowed`` and nothing that others have allowed in this process."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(allowed)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _refused_global(error: Exception) -> str | None:
    found = re.search(r'GLOBAL (\S+) ', str(error))
    return found[1][:120] if found else None


def _explain(error: Exception, *, name: str, advice: str) -> str:
    if isinstance(error, ImportError):
        return f'{name} holds the log of a training run, which only mmengine reads: install onedl-mmengine'
    refused = _refused_global(error)
    if refused:
        return (
            f'{name} asks for {refused} on loading, which is more than weights and is refused: '
            'take the file from those you trust, and have it saved as a plain state_dict() or as .safetensors'
        )
    if 'TorchScript' in str(error):
        return f'{name} is a TorchScript program: save its state_dict() and give that file'
    if 'persistent' in str(error):
        return f'{name} is one piece of an unpacked torch file: give the whole file, which is not to be unpacked'
    # torch opens with advice to load unsafely and puts what was wrong behind it
    told = str(error).rpartition('WeightsUnpickler error:')[2].strip() or type(error).__name__
    detail = ''.join(c if c.isprintable() else ' ' for c in told.splitlines()[0]).rstrip('. ')[:160]
    return f'{name} is damaged, incomplete or no weights file ({detail}): {advice}'

"""Read weights files without running code from them.

``torch.load(weights_only=True)`` builds tensors, plain Python values and the globals listed here, and refuses
everything else. Calling a listed global with any arguments builds a value and has no other effect.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from volo_seg.checkpoints.locate import download, locate
from volo_seg.errors import UserError

Device = str | torch.device
MAX_UNPACK_RATIO = 20
"""Largest accepted ratio of the unpacked size of a zip file to its size."""
HISTORY = 'mmengine.logging.history_buffer.HistoryBuffer'
DATASET_META = 'dataset_meta'
"""Key of the class names and colours in the metadata of a file; a safetensors file has them as JSON."""
_STATISTICS = ('min', 'max', 'current', 'mean')
_DTYPES = ('float16', 'float32', 'float64', 'int32', 'int64', 'uint8', 'uint32', 'bool')


def allowed_globals() -> list[Any]:
    """The classes and functions allowed in any file: numpy arrays and scalars, slices, and ``argparse.Namespace``.

    Training scripts pickle their arguments as a ``Namespace``, which has attributes and no behaviour.
    """
    try:
        import numpy as np
    except ImportError:  # tensors need torch only
        return [slice, argparse.Namespace]
    core = import_module('numpy._core.multiarray')
    dtypes = [type(np.dtype(name)) for name in _DTYPES]
    # numpy 1 writes numpy.core, numpy 2 writes numpy._core
    builders = [
        (getattr(core, name), f'numpy.{package}.multiarray.{name}')
        for name in ('_reconstruct', 'scalar')
        for package in ('core', '_core')
    ]
    return [slice, argparse.Namespace, np.ndarray, np.dtype, *dtypes, *builders]


def history_globals() -> list[Any]:
    """The additional globals in checkpoints of training runs: MMEngine's HistoryBuffer and its four statistics.

    A buffer is pickled with its statistics methods as ``getattr(HistoryBuffer, 'mean')``. The builtin ``getattr``
    would give a file access to any function; the replacement accepts these four calls only.

    Raises:
        ImportError: mmengine is not installed.
    """
    from mmengine.logging import HistoryBuffer

    def statistic(owner: object, name: str) -> Callable[..., Any]:
        if owner is not HistoryBuffer or name not in _STATISTICS:
            raise UnpicklingError(f'GLOBAL builtins.getattr was called with {name!r}')
        return HistoryBuffer.__dict__[name]

    return [(HistoryBuffer, HISTORY), (statistic, 'builtins.getattr')]


def load_file(source: str | os.PathLike[str], *, map_location: Device = 'cpu') -> dict[str, Any]:
    """Read the weights file ``source``: a path, an http(s) or file URL, or a name of the table of weights.

    URLs and names (``volo_d1_224``) are downloaded once, into torch.hub's folder. A safetensors file gives its tensors
    by name, or ``dict(meta=..., state_dict=...)`` if it has metadata. Other files are read by
    ``torch.load(weights_only=True)`` with the globals listed in this module. A refused file cannot be read unsafely.

    Raises:
        UserError: The file is missing, damaged, refused, or not a weights file.
    """
    path, url = locate(source)
    if url is None:
        return read_weights(path, name=str(path), map_location=map_location)
    if not path.is_file():
        return download(url, path, read=partial(read_weights, name=url, map_location=map_location))
    advice = f'delete it to download {url} again'
    return read_weights(path, name=str(path), map_location=map_location, advice=advice)


def read_weights(
    path: Path, *, name: str, map_location: Device, advice: str = 'download or copy it again'
) -> dict[str, Any]:
    """Read the local file ``path``; messages call it ``name`` and end with ``advice`` if the file is damaged."""
    if path.is_dir():
        raise UserError(f'{name} is a folder: give the path of the weights file')
    if not path.is_file():
        raise UserError(f'{name} is not a regular file: copy its content into one')
    try:
        with open(path, 'rb') as file:
            head = file.read(1024)
    except OSError as error:
        raise UserError(f'{name} cannot be read ({error.strerror}): correct the path or its permissions') from error
    _refuse_other_files(path, head, name=name, advice=advice)
    try:
        if head[8:9] == b'{' or (path.suffix == '.safetensors' and not head.startswith(b'PK')):
            content = _read_safetensors(path, map_location)
        else:
            content = _read_torch(path, map_location)
    except Exception as error:
        raise UserError(_explain(error, name=name, advice=advice)) from error
    if not isinstance(content, dict):
        raise UserError(f'{name} contains a {type(content).__name__}, not a dict of weights: save a state_dict()')
    return content


def _refuse_other_files(path: Path, head: bytes, *, name: str, advice: str) -> None:
    """Raise UserError for files that are not weights, by their first bytes, and for tar archives and unusual zips."""
    if not head.strip(b'\0'):
        raise UserError(f'{name} is empty: {advice}')
    if head.lstrip().lower().startswith((b'<!doctype', b'<html', b'<?xml', b'<head')):
        raise UserError(f'{name} is a web page, not weights: use the URL of the file itself')
    if head.startswith(b'version https://git-lfs'):
        raise UserError(f'{name} is a Git LFS pointer: run "git lfs pull" in its repository')
    # torch < 2.6 unpickles tar checkpoints unsafely even with weights_only=True (CVE-2025-32434)
    if tarfile.is_tarfile(path):
        raise UserError(f'{name} is a tar archive, not a weights file, whatever its name: {advice}')
    if head.startswith(b'PK'):
        _refuse_odd_archive(path, name=name, advice=advice)


def _refuse_odd_archive(path: Path, *, name: str, advice: str) -> None:
    """Raise UserError for a zip bomb and for a zip with duplicate names. ``torch.save`` does not compress."""
    try:
        with zipfile.ZipFile(path) as file:
            members = file.infolist()
    except Exception as error:  # zipfile raises many classes
        reason = ' '.join(str(error).split())[:160] or type(error).__name__
        raise UserError(f'{name} is damaged, incomplete or not a weights file ({reason}): {advice}') from error
    size, unpacked = path.stat().st_size, sum(member.file_size for member in members)
    if unpacked > MAX_UNPACK_RATIO * size + 2**20:
        raise UserError(f'{name} unpacks from {size:,} to {unpacked:,} bytes, more than a weights file does: {advice}')
    duplicates = [member for member, count in Counter(member.filename for member in members).items() if count > 1]
    if duplicates:
        raise UserError(f'{name} is damaged or forged, it contains {duplicates[0][:80]!r} twice: {advice}')


def _read_safetensors(path: Path, map_location: Device) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(str(path), framework='pt', device=str(map_location)) as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        meta: dict[str, Any] = {key: value for key, value in (file.metadata() or {}).items() if key != 'format'}
    if isinstance(meta.get(DATASET_META), str):
        meta[DATASET_META] = json.loads(meta[DATASET_META])
    return {'meta': meta, 'state_dict': tensors} if meta else tensors


def _read_torch(path: Path, map_location: Device) -> Any:
    allowed = allowed_globals()
    try:
        return _load(path, map_location, allowed)
    except Exception as error:
        if _refused_global(error) != HISTORY:
            raise
    # only checkpoints of training runs need mmengine
    return _load(path, map_location, allowed + history_globals())


def _load(path: Path, map_location: Device, allowed: list[Any]) -> Any:
    # torch chooses the format of a path by its suffix, that of an open file by its content
    with open(path, 'rb') as file, _only(allowed):
        return torch.load(file, map_location=map_location, weights_only=True)


@contextmanager
def _only(allowed: list[Any]) -> Iterator[None]:
    """Let torch build the globals in ``allowed`` only, without those that other code has added in this process."""
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
        return f'{name} contains the log of a training run, which needs mmengine: install onedl-mmengine'
    refused = _refused_global(error)
    if refused:
        return (
            f'{name} needs {refused} to load, which is refused because it is more than weights: '
            'use a trusted source, and a file that is saved as a plain state_dict() or as .safetensors'
        )
    if 'TorchScript' in str(error):
        return f'{name} is a TorchScript program: save its state_dict() and use that file'
    if 'persistent' in str(error):
        return f'{name} is a part of an unpacked torch file: give the original file'
    # torch's message starts with advice to load unsafely, and the reason stands after it
    reason = str(error).rpartition('WeightsUnpickler error:')[2].strip() or type(error).__name__
    detail = ''.join(c if c.isprintable() else ' ' for c in reason.splitlines()[0]).rstrip('. ')[:160]
    return f'{name} is damaged, incomplete or not a weights file ({detail}): {advice}'

"""Write weights files atomically."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from volo_seg.errors import UserError
from volo_seg.io import WriteError, atomic_path, check_writable, write_failure

SUFFIXES = ('.pth', '.safetensors')


def save_file(
    state_dict: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write ``state_dict`` to ``path``: ``.safetensors``, or ``.pth`` as ``dict(meta=..., state_dict=...)``.

    Missing folders are created. An existing file is replaced when the new one is complete, and is unchanged after a
    failure.

    Raises:
        UserError: The suffix is another one, the file exists and ``overwrite`` is false, or the file cannot be written.
    """
    path = check_destination(path, overwrite=overwrite)
    # torch.save writes the whole storage of a view
    state = {
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in state_dict.items()
    }
    from safetensors import SafetensorError
    from safetensors.torch import save_file as save

    try:
        with atomic_path(path) as part:
            if path.suffix == '.safetensors':
                save(state, str(part), metadata={'format': 'pt', **(metadata or {})})
                _sort_metadata(part)
            else:
                with open(part, 'wb') as file:
                    torch.save({'meta': dict(metadata or {}), 'state_dict': state}, file)
    except (WriteError, RuntimeError, SafetensorError) as error:
        raise WriteError(path, write_failure(error, path.parent)) from error


def _sort_metadata(path: Path) -> None:
    """Sort the metadata of a safetensors file, which are in random order, so that equal contents are equal bytes."""
    with open(path, 'r+b') as file:
        size = int.from_bytes(file.read(8), 'little')
        header = json.loads(file.read(size))
        header['__metadata__'] = dict(sorted(header['__metadata__'].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(',', ':')).encode().ljust(size)
        assert len(text) == size, 'the header of a safetensors file has changed in size'
        file.seek(8)
        file.write(text)


def check_destination(path: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """Check that ``path`` can be written, before the work whose result it is; return it as a Path.

    Raises:
        UserError: It does not end in ``.pth`` or ``.safetensors``, is a folder, or exists and ``overwrite`` is false.
    """
    path = Path(path).expanduser()
    if path.suffix not in SUFFIXES:
        raise UserError(f'{path} ends in {path.suffix or "nothing"!r}: use {" or ".join(SUFFIXES)}')
    if path.is_dir():
        raise UserError(f'{path} is a folder: give the path of a file')
    if path.exists() and not overwrite:
        raise UserError(f'{path} exists: give another name or allow overwriting')
    check_writable(path.parent)
    return path

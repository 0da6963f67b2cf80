"""Writing weights files, whole or not at all."""

from __future__ import annotations

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

    Missing folders are made. The file appears when it is complete; until then, and after any failure, what
    was there stays.

    Raises:
        UserError: Another suffix, the file exists and ``overwrite`` is false, or the disk refuses it.
    """
    path = check_destination(path, overwrite=overwrite)
    # a view must not drag its whole storage into the file
    state = {
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in state_dict.items()
    }
    from safetensors import SafetensorError
    from safetensors.torch import save_file as save

    try:
        with atomic_path(path) as part:
            if path.suffix == '.safetensors':
                save(state, str(part), metadata={'format': 'pt', **(metadata or {})})
            else:
                with open(part, 'wb') as file:
                    torch.save({'meta': dict(metadata or {}), 'state_dict': state}, file)
    except (WriteError, RuntimeError, SafetensorError) as error:
        raise WriteError(path, write_failure(error, path.parent)) from error


def check_destination(path: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """Check that ``path`` may be written, before the work that leads there.

    Raises:
        UserError: Neither ``.pth`` nor ``.safetensors``, a folder, or an existing file without ``overwrite``.
    """
    path = Path(path).expanduser()
    if path.suffix not in SUFFIXES:
        raise UserError(f'{path} ends in {path.suffix or "nothing"!r}: weights go to {" or ".join(SUFFIXES)}')
    if path.is_dir():
        raise UserError(f'{path} is a folder: give the name of a file')
    if path.exists() and not overwrite:
        raise UserError(f'{path} exists: give another name, or say that it may be overwritten')
    check_writable(path.parent)
    return path

"""Writing weights files, whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from volo_seg.errors import UserError

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
    part = path.with_name(f'.{path.stem}.{uuid.uuid4().hex}{path.suffix}')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == '.safetensors':
            _write_safetensors(state, part, metadata or {})
        else:
            torch.save({'meta': dict(metadata or {}), 'state_dict': state}, part)
        os.replace(part, path)
    except (OSError, RuntimeError) as error:
        raise UserError(f'cannot write {path} ({error}): mend the folder or give another') from error
    finally:
        if part.exists():
            part.unlink()


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
    return path


def _write_safetensors(state: dict[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    from safetensors.torch import save_file as save

    save(state, str(path), metadata={'format': 'pt', **metadata})

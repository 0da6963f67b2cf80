"""``infer.json``: the checkpoint and the options that the results of an output folder are of."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from volo_seg import __version__
from volo_seg.errors import UserError
from volo_seg.inference.output_formats import OUTPUT_FORMATS
from volo_seg.inference.pretrained import CONFIG, WEIGHTS
from volo_seg.inference.remote import Location, list_url, read_url, write_file
from volo_seg.io import atomic_path, file_lock, read_regular, safe_join
from volo_seg.weights import FOLDER, named

Key = Mapping[str, tuple[object, str]]
"""What results depend on, by name: a JSON value to compare, and how messages show it."""
KEY_FILE = 'infer.json'


def model_key(checkpoint: str, *, config: str | None = None, cfg_options: Sequence[str] = ()) -> Key:
    """The key of a model, which is not loaded: version of volo-seg, digest of its files, digest of its config.

    A checkpoint that is not on this machine counts by its name, and the config inside one as part of it.
    """
    row = named(checkpoint)
    path = FOLDER / row.file if row else Path(checkpoint).expanduser()
    files = [path] if path.is_file() else [path / CONFIG, path / WEIGHTS]
    if path.suffix == '.xml':  # OpenVINO keeps weights in a file of their own
        files.append(path.with_suffix('.bin'))
    weights: object = checkpoint
    with contextlib.suppress(OSError):  # loading the model will tell
        weights = [_file_digest(file) for file in files]
    digest, shown = '', 'that of the checkpoint'
    if config is not None:
        from volo_seg.config.load import load_config

        loaded = load_config(config, cfg_options)
        dataset = (loaded.get('test_dataloader') or {}).get('dataset') or {}
        used = loaded.get('model'), [dataset.get(name) for name in ('type', 'metainfo', 'pipeline')]
        digest, shown = hashlib.sha256(repr(used).encode()).hexdigest(), ' '.join([config, *cfg_options])
    return {'version': (__version__, __version__), 'checkpoint': (weights, checkpoint), 'config': (digest, shown)}


def model_digest(key: Key) -> str:
    """16 hexadecimal digits of the digest of the weights and the config of ``key``."""
    return hashlib.sha256(json.dumps([key[name][0] for name in ('checkpoint', 'config')]).encode()).hexdigest()[:16]


def claim_folder(folder: Location, key: Key, *, replace: bool, found: Mapping[str, int]) -> int:
    """Write ``key`` into ``folder``; return the time (ns) up to which the results in it are of another key, or 0.

    Names that only one of the stored and the new key has are not compared. If ``replace`` changes the key, the
    files for all images are renamed, as to ``shares.previous.csv``, because the times of their entries are not known.

    Args:
        folder: The output folder, a path or URL.
        key: The key of this run.
        replace: Whether results of another key are replaced.
        found: The files below a URL; see :func:`.list_url`.

    Raises:
        UserError: The results are of another key, and ``replace`` is false; or the file is damaged.
        WriteError: The file cannot be written.
    """
    if isinstance(folder, str):
        return _claim_url(folder, key, replace=replace, found=found)
    path = safe_join(folder, KEY_FILE)
    with file_lock(path.with_name(f'.{KEY_FILE}.lock')):
        has_results = any(not file.name.startswith('.') and file.name != KEY_FILE for file in folder.iterdir())
        stored, since = _read(path) if has_results else ({}, 0)  # a run that failed left its key alone
        merged, is_other = _merge(folder, stored, key, replace=replace)
        is_other = is_other or (replace and has_results and not stored)
        if merged == stored:
            return since
        with atomic_path(path) as part:
            part.touch()
            if is_other:
                since = part.stat().st_mtime_ns  # the clock of the file system
                for file in (folder / kind.folder for kind in OUTPUT_FORMATS.values() if not kind.suffix):
                    if file.is_file():
                        os.replace(file, file.with_suffix(f'.previous{file.suffix}'))
                for rows in folder.glob('.shares.*.csv'):
                    rows.unlink(missing_ok=True)
            part.write_bytes(_content(merged, since))
    return since


def _claim_url(folder: str, key: Key, *, replace: bool, found: Mapping[str, int]) -> int:
    path = f'{folder}/{KEY_FILE}'
    has_results = any(not name.startswith('.') and name != KEY_FILE for name in found)
    stored, since = _read(path) if has_results and KEY_FILE in found else ({}, 0)
    merged, is_other = _merge(folder, stored, key, replace=replace)
    if merged == stored:
        return since
    if is_other or (replace and has_results and not stored):
        write_file(path, _content(stored, since))
        since = list_url(path)['']  # the clock of the store
    write_file(path, _content(merged, since))
    return since


def _merge(folder: Location, stored: dict[str, list], key: Key, *, replace: bool) -> tuple[dict[str, list], bool]:
    """The key to store, and whether it differs from ``stored``; see :func:`claim_folder`."""
    given = json.loads(json.dumps(key))
    different = [name for name in given if name in stored and stored[name][0] != given[name][0]]
    if different and not replace:
        found = ' and '.join(f'{name} ({_difference(stored[name][1], given[name][1])})' for name in different)
        raise UserError(f'{str(folder)!r} has results of another {found}; name another --out-dir or add --overwrite')
    return ({**stored, **given} if different else {**given, **stored}), bool(different)


def _content(key: Mapping[str, list], since: int) -> bytes:
    return json.dumps({'key': key, 'since': since}, indent=1).encode()


def _read(path: Location) -> tuple[dict[str, list], int]:
    if isinstance(path, Path) and not path.exists():
        return {}, 0
    try:
        content = json.loads(read_url(path) if isinstance(path, str) else read_regular(path))
        key = {str(name): [value, str(shown)] for name, (value, shown) in content['key'].items()}
        return key, int(content['since'])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f'{str(path)!r} is not a record of volo-seg infer ({error}); name another --out-dir, or move it away'
        ) from error


def _difference(before: str, now: str) -> str:
    return f'{before!r}, not {now!r}' if before != now else f'{now!r} has changed'


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()

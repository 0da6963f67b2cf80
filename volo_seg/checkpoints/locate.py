"""Find and download weights files: the one place that says which file a path, a URL or a name means."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import urlparse
from urllib.request import Request, url2pathname, urlopen

import torch

from volo_seg.errors import UserError
from volo_seg.io import WriteError, atomic_path, file_lock
from volo_seg.progress import Progress
from volo_seg.weights import FOLDER, WEIGHTS, Weights, did_you_mean

T = TypeVar('T')
_SILENCE = 60
"""Seconds without a byte after which a download has failed."""


class Location(NamedTuple):
    """The path of a weights file on this machine, and the URL it is downloaded from (None for a local file)."""

    path: Path
    url: str | None


def locate(source: str | os.PathLike[str]) -> Location:
    """Return the location of ``source``: a path, an http(s) or file URL, or a name of :data:`volo_seg.weights.WEIGHTS`.

    An existing file with the name ``source`` has priority over a name of the table. Nothing is downloaded.

    Raises:
        UserError: There is no such file or name, or the URL has another scheme.
    """
    text = os.fspath(source)
    match = re.match(r'([A-Za-z][A-Za-z0-9+.-]+)://', text)
    scheme = match[1].lower() if match else ''
    if scheme in ('http', 'https'):
        return Location(cache_path(text), text)
    if scheme == 'file':
        path = Path(url2pathname(urlparse(text).path))
        if not path.exists():
            raise UserError(f'no weights file {str(path)!r} at the URL {text}: correct the URL')
        return Location(path, None)
    if scheme:
        raise UserError(f'{text} is neither an http(s) nor a file URL: download the file and give its path')
    path = Path(text).expanduser()
    row = WEIGHTS.get(text)
    if path.exists() and not (row and path.is_dir()):
        return Location(path, None)
    if row is None:
        known = ', '.join(WEIGHTS)
        raise UserError(f'no weights file {text!r}{did_you_mean(text)}: give a path, an http(s) URL, or one of {known}')
    return locate_row(row)


def locate_row(row: Weights) -> Location:
    """The location of the file of a row of the table."""
    return Location(FOLDER / row.file, None) if row.url is None else Location(cache_path(row.url), row.url)


def cache_path(url: str) -> Path:
    """The path in torch.hub's folder (which ``TORCH_HOME`` moves) where the file of ``url`` is stored.

    A file of the table keeps its name. The names of other files start with a hash of the URL, because files on hubs
    often share one name.
    """
    name = Path(urlparse(url).path).name or 'weights'
    if url not in {row.url for row in WEIGHTS.values()}:
        name = f'{hashlib.sha256(url.encode()).hexdigest()[:8]}-{name}'
    return Path(torch.hub.get_dir()) / 'checkpoints' / name


def download(url: str, path: Path, *, read: Callable[[Path], T]) -> T:
    """Download ``url`` to ``path`` unless it exists, and return ``read(path)``. A file that cannot be read is removed.

    Processes that need the same file at the same time wait for the first one.

    Raises:
        UserError: The download fails or has another hash than in the table, the folder is not writable, or ``read``
            raises it.
    """
    expected = next((row.sha256 for row in WEIGHTS.values() if row.url == url), None)
    try:
        with file_lock(path.with_name(f'.{path.name}.lock')):
            if path.is_file():
                return read(path)
            with atomic_path(path) as part:
                found = _fetch(url, part)
                if expected not in (None, found):
                    raise UserError(f'{url} has the SHA-256 {found}, not {expected}: it was changed, use another copy')
                return read(part)
    except (OSError, http.client.HTTPException, WriteError) as error:
        reason = error.reason if isinstance(error, WriteError) else error
        raise UserError(
            f'cannot download {url} to {path} ({reason}): '
            'check the URL and the connection, or download the file elsewhere and copy it there'
        ) from error


def _fetch(url: str, path: Path) -> str:
    """Write the file at ``url`` to ``path`` with rate and time left on stderr; return its SHA-256."""
    digest, size = hashlib.sha256(), 0
    with urlopen(Request(url, headers={'User-Agent': 'volo-seg'}), timeout=_SILENCE) as response:
        promised = int(response.headers.get('Content-Length') or 0)
        with open(path, 'wb') as file, Progress(promised // 10**6, unit='MB') as progress:
            while block := response.read(2**20):
                file.write(block)
                digest.update(block)
                size += len(block)
                progress.update(size // 10**6, promised // 10**6)
    if size < promised:
        raise ConnectionError(f'it ended after {size} of {promised} bytes')
    return digest.hexdigest()

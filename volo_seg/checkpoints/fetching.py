"""From what a user names (path, address, short name) to a file on this machine."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import urlparse
from urllib.request import url2pathname

import torch

from volo_seg.checkpoints.official import OFFICIAL
from volo_seg.errors import UserError
from volo_seg.io import WriteError, atomic_path, file_lock

T = TypeVar('T')


class Place(NamedTuple):
    """Where weights lie on this machine, and the address they come from (None for the user's own file)."""

    path: Path
    url: str | None


def locate(source: str | os.PathLike[str]) -> Place:
    """Find the place of ``source``: a path, an http(s) or file address, or a short name of ``OFFICIAL``.

    A file of that very name goes before a short name. Nothing is downloaded here.

    Raises:
        UserError: No such file or short name, or an address of another kind.
    """
    text = os.fspath(source)
    scheme = re.match(r'([A-Za-z][A-Za-z0-9+.-]+)://', text)
    if scheme:
        return _locate_address(text, scheme[1].lower())
    path = Path(text).expanduser()
    if path.exists() and not (text in OFFICIAL and path.is_dir()):
        return Place(path, None)
    if text in OFFICIAL:
        url = OFFICIAL[text].url
        return Place(cache_path(url), url)
    raise UserError(f'no weights file {text!r}: give a path, an http(s) address, or one of {", ".join(OFFICIAL)}')


def _locate_address(url: str, scheme: str) -> Place:
    if scheme in ('http', 'https'):
        return Place(cache_path(url), url)
    if scheme != 'file':
        raise UserError(f'{url} is neither an http(s) nor a file address: download it and give its path')
    path = Path(url2pathname(urlparse(url).path))
    if not path.exists():
        raise UserError(f'no weights file {str(path)!r}, which {url} names: mend the address')
    return Place(path, None)


def cache_path(url: str) -> Path:
    """Where the file of ``url`` is kept: torch.hub's folder, under its own name if it is an official file.

    Other files get a hash of their address in front, as most weights on hubs have one and the same name.
    """
    name = Path(urlparse(url).path).name or 'weights'
    if url not in {file.url for file in OFFICIAL.values()}:
        name = f'{hashlib.sha256(url.encode()).hexdigest()[:8]}-{name}'
    return Path(torch.hub.get_dir()) / 'checkpoints' / name


def download(place: Place, *, read: Callable[[Path], T]) -> T:
    """Download ``place`` once, and return what ``read`` makes of it; only a file that could be read is kept.

    Processes that want the same file at the same time wait for the first.

    Raises:
        UserError: The file cannot be had, the folder cannot be written, or whatever ``read`` raises.
    """
    assert place.url is not None
    try:
        with file_lock(place.path.with_name(f'.{place.path.name}.lock')):
            if place.path.is_file():
                return read(place.path)
            with atomic_path(place.path) as part:
                torch.hub.download_url_to_file(place.url, str(part), progress=sys.stderr.isatty())
                return read(part)
    except (OSError, http.client.HTTPException, WriteError) as error:
        reason = error.reason if isinstance(error, WriteError) else error
        raise UserError(
            f'cannot download {place.url} to {place.path} ({reason}): '
            'mend the address or the connection, or fetch the file elsewhere and put it there'
        ) from error

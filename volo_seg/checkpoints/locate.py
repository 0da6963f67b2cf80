"""Find and download weights files: paths, URLs and the short names of the official files."""

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

from volo_seg.errors import UserError
from volo_seg.io import WriteError, atomic_path, file_lock

T = TypeVar('T')

_RELEASE = 'https://github.com/sail-sg/volo/releases/download/volo_1/'
# VARIANT_RESOLUTION_ACCURACY, as the authors named them. Source: github.com/sail-sg/volo, release volo_1.
_FILES = (
    'd1_224_84.2',
    'd1_384_85.2',
    'd2_224_85.2',
    'd2_384_86.0',
    'd3_224_85.4',
    'd3_448_86.3',
    'd4_224_85.7',
    'd4_448_86.79',
    'd5_224_86.10',
    'd5_448_87.0',
    'd5_512_87.07',
)


class OfficialFile(NamedTuple):
    """A released file: URL, variant (``'d1'``), side of the training images in pixels, name in timm's hub."""

    url: str
    variant: str
    resolution: int
    timm: str


def _official_file(file: str) -> OfficialFile:
    variant, resolution, _ = file.split('_')
    timm = f'timm/volo_{variant}_{resolution}.sail_in1k'
    return OfficialFile(f'{_RELEASE}{file}.pth.tar', variant, int(resolution), timm)


OFFICIAL = {f'volo_{file.rpartition("_")[0]}': _official_file(file) for file in _FILES}
"""The released ImageNet weights by short name (``volo_d1_224``)."""


class Location(NamedTuple):
    """The path of a weights file on this machine, and the URL it is downloaded from (None for a local file)."""

    path: Path
    url: str | None


def locate(source: str | os.PathLike[str]) -> Location:
    """Return the location of ``source``: a path, an http(s) or file URL, or a short name of ``OFFICIAL``.

    An existing file with the name ``source`` has priority over a short name. Nothing is downloaded.

    Raises:
        UserError: There is no such file or short name, or the URL has another scheme.
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
    if path.exists() and not (text in OFFICIAL and path.is_dir()):
        return Location(path, None)
    if text in OFFICIAL:
        return Location(cache_path(OFFICIAL[text].url), OFFICIAL[text].url)
    raise UserError(f'no weights file {text!r}: give a path, an http(s) URL, or one of {", ".join(OFFICIAL)}')


def cache_path(url: str) -> Path:
    """The path in torch.hub's folder where the file of ``url`` is stored.

    An official file keeps its name. The names of other files start with a hash of the URL, because files on hubs often
    share one name.
    """
    name = Path(urlparse(url).path).name or 'weights'
    if url not in {file.url for file in OFFICIAL.values()}:
        name = f'{hashlib.sha256(url.encode()).hexdigest()[:8]}-{name}'
    return Path(torch.hub.get_dir()) / 'checkpoints' / name


def download(url: str, path: Path, *, read: Callable[[Path], T]) -> T:
    """Download ``url`` to ``path`` unless it exists, and return ``read(path)``. A file that cannot be read is removed.

    Processes that need the same file at the same time wait for the first one.

    Raises:
        UserError: The download fails, the folder is not writable, or ``read`` raises it.
    """
    try:
        with file_lock(path.with_name(f'.{path.name}.lock')):
            if path.is_file():
                return read(path)
            with atomic_path(path) as part:
                torch.hub.download_url_to_file(url, str(part), progress=sys.stderr.isatty())
                return read(part)
    except (OSError, http.client.HTTPException, WriteError) as error:
        reason = error.reason if isinstance(error, WriteError) else error
        raise UserError(
            f'cannot download {url} to {path} ({reason}): '
            'check the URL and the connection, or download the file elsewhere and copy it there'
        ) from error

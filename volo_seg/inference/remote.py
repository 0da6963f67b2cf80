"""Files behind URLs, such as ``s3://bucket/key``, through fsspec. Object stores replace a file in one step."""

from __future__ import annotations

import contextlib
import logging
import re
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from volo_seg.errors import UserError
from volo_seg.io import WriteError, atomic_write, safe_join

Location = Path | str
"""A local path, or a URL."""
PACKAGES = {'s3': 's3fs', 'gs': 'gcsfs', 'gcs': 'gcsfs', 'az': 'adlfs', 'abfs': 'adlfs', 'abfss': 'adlfs', 'memory': ''}
"""The schemes, and the packages by which fsspec opens them."""
_TIMES = ('LastModified', 'last_modified', 'mtime', 'created')  # of s3fs, adlfs, gcsfs, and fsspec's memory


def is_url(place: object) -> bool:
    """Whether ``place`` is a text with a scheme, such as ``s3://``."""
    return isinstance(place, str) and re.match(r'[A-Za-z][A-Za-z0-9+.-]*://', place) is not None


def locate(place: str | Path) -> Location:
    """The path that ``place`` or its ``file://`` URL names, or a URL without slashes at its end.

    Raises:
        UserError: The scheme is unknown, a ``file://`` URL is of another host, or a URL names no bucket.
    """
    if isinstance(place, Path) or not is_url(place):
        return Path(place)
    parts = urlsplit(place, allow_fragments=False)
    if parts.scheme == 'file' and parts.netloc in ('', 'localhost'):
        return Path(urllib.request.url2pathname(parts.path))
    if parts.scheme not in PACKAGES or not parts.netloc:
        raise UserError(f'{place!r} is not a URL that can be opened; give s3://BUCKET/..., gs://, az:// or file:///...')
    return place.rstrip('/')


def read_url(url: str) -> bytes:
    """The content of a file; raises UserError if it cannot be read."""
    with _explained(url):
        system, path = open_url(url)
        return system.cat_file(path)


def list_url(url: str) -> dict[str, int]:
    """The files below ``url``: by relative name, the times (ns) at which they were written; one file has the name ''.

    Raises:
        UserError: The bucket does not exist or cannot be listed.
    """
    with _explained(url):
        system, root = open_url(url)
        found = system.find(root, detail=True)
    return {path[len(root) :].lstrip('/'): _time_ns(info) for path, info in found.items()}


def glob_url(pattern: str, *, root: str) -> list[str]:
    """The files that match, relative to the URL ``root``; raises UserError if the bucket cannot be listed."""
    with _explained(pattern):
        system, path = open_url(pattern)
        found, start = system.glob(path, detail=True), open_url(root)[1]
    return [path[len(start) :].lstrip('/') for path, info in found.items() if info['type'] == 'file']


def target_file(folder: str | Path, name: str | Path) -> Location:
    """The file ``name`` (relative, subfolders allowed) in ``folder``, a path or URL; see :func:`.safe_join`.

    Raises:
        WriteError: ``name`` is empty or absolute, or leads out of ``folder``.
    """
    if not is_url(folder):
        return safe_join(folder, name)
    path = PurePosixPath(name)
    if path.is_absolute() or not path.parts or '..' in path.parts:
        raise WriteError(str(name), f'it leads out of {str(folder)!r}', fix='give a relative path that stays in it')
    return f'{folder}/{path}'


def write_file(place: Location, content: bytes) -> None:
    """Write a file in one step; folders above it are created.

    Raises:
        WriteError: It cannot be written.
    """
    if isinstance(place, Path):
        atomic_write(place, content)
        return
    with _explained(place, writes=True):
        system, path = open_url(place)
        system.pipe_file(path, content)


def open_url(url: Location) -> tuple[Any, str]:
    """The file system of fsspec, and the path in it; ``url`` may be a local path."""
    import fsspec

    if isinstance(url, Path):
        return fsspec.filesystem('file'), str(url.absolute())
    logging.getLogger('gcsfs').setLevel(logging.CRITICAL)  # it logs the tracebacks of what it raises
    return fsspec.core.url_to_fs(url, use_listings_cache=False)


@contextlib.contextmanager
def _explained(url: str, *, writes: bool = False) -> Iterator[None]:
    """Turn the exceptions of a service into one sentence."""
    try:
        yield
    except ImportError as error:
        package = PACKAGES[urlsplit(url).scheme]
        raise UserError(f"{url!r} needs the package {package}; pip install 'volo-seg[remote]'") from error
    except Exception as error:  # each service has its own
        if isinstance(error, FileNotFoundError) and not writes:
            reason = 'the bucket or the file does not exist'
        else:
            reason = ' '.join(str(error).split())[:200].rstrip('.') or type(error).__name__
        fix = 'check the URL and the credentials of this machine'
        if writes:
            raise WriteError(url, reason, fix=fix) from error
        raise UserError(f'{url!r} cannot be read ({reason}); {fix}') from error


def _time_ns(info: Mapping[str, Any]) -> int:
    time = next((info[key] for key in _TIMES if info.get(key)), 0)
    return int(1e9 * (time if isinstance(time, (int, float)) else time.timestamp()))

"""Find the images and videos that inputs name, and choose the names of their results."""

from __future__ import annotations

import glob
import itertools
import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from urllib.parse import urlsplit

from volo_seg.errors import UserError
from volo_seg.image_files import SUFFIXES
from volo_seg.inference.output_formats import OUTPUT_FORMATS
from volo_seg.inference.remote import Location, glob_url, is_url, list_url, locate
from volo_seg.io import check_utf8, find_files, read_lines

VIDEOS = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg', '.wmv')
LISTS = ('.txt',)
MOST_BYTES = 2**28
"""Largest accepted size of a list of images."""


@dataclass(frozen=True)
class Task:
    """A file to segment.

    Attributes:
        source: The image, a path or URL, or the video.
        name: Name of its results, without suffix; may contain subfolders.
    """

    source: Location
    name: str

    @property
    def is_video(self) -> bool:
        """Whether the file is a video, by its suffix."""
        return PurePath(self.source).suffix.lower() in VIDEOS

    @property
    def file_name(self) -> str:
        """The name with the suffix of the file."""
        return f'{self.name}{PurePath(self.source).suffix}'


def find_tasks(inputs: Sequence[str], *, out_dir: str | Path | None = None) -> list[Task]:
    """Find the files that ``inputs`` name, each once; the order depends on the inputs and the file names only.

    An input is an image, a video, a folder (searched recursively, without hidden files and without the results below
    ``out_dir``), a glob, or a text file with one path per line (relative to the current folder, or else to that of the
    text file; empty lines and those that start with # are skipped). A URL names an image, a folder or a glob; it may
    stand in a text file. A named file that does not exist is a task too: it is reported as one that cannot be read.

    The name of a task is its path without suffix, relative to the input: to the folder, to the part of the glob before
    the first wildcard, or as it stands in the text file. Files given by name or by an absolute path in a text file keep
    their file name only. URLs in a text file keep their path in the bucket.

    Raises:
        UserError: An input names no file, or a video behind a URL, or two files would have the same results.
    """
    target = None if out_dir is None else locate(out_dir)
    places = [f'{target}/{kind.folder}' for kind in OUTPUT_FORMATS.values()] if target else []
    results = [place if isinstance(target, str) else Path(place).resolve() for place in places]
    tasks: dict[str, Task] = {}
    for text in inputs:
        found = [Task(path, os.path.splitext(name.as_posix())[0]) for path, name in _find(text, results)]
        if not found:
            raise UserError(f'input {text!r} is not an image, a folder with images, or a glob that matches one')
        for task in found:
            if isinstance(task.source, str) and task.is_video:
                raise UserError(f'{task.source!r} is a video, and only local videos are read; copy it to this machine')
            tasks.setdefault(task.source if isinstance(task.source, str) else os.path.abspath(task.source), task)
    check_collisions(list(tasks.values()))
    return list(tasks.values())


def check_collisions(tasks: Sequence[Task]) -> None:
    """Check that no two tasks write to the same file, and that none needs a folder where another writes a file.

    Names that differ in case or Unicode normalization only count as equal, as they are on some file systems.

    Raises:
        UserError: Two tasks collide.
    """
    suffixes = ['.mp4', *(place.suffix for place in OUTPUT_FORMATS.values() if place.suffix)]
    by_name: dict[str, Task] = {}
    by_folder: dict[str, Task] = {}
    for task in tasks:
        name = unicodedata.normalize('NFC', unicodedata.normalize('NFC', task.name).casefold())
        if name in by_name:
            _refuse(by_name[name], task)
        by_name[name] = task
        for folder in PurePath(name).parents:
            by_folder.setdefault(str(folder), task)
    for name, task in by_name.items():
        # the frames of a video are in a folder of its name
        for used in [*([name] if task.is_video else []), *(name + suffix for suffix in suffixes)]:
            if used in by_folder:
                _refuse(task, by_folder[used])


def _refuse(one: Task, other: Task) -> None:
    raise UserError(
        f'inputs {str(one.source)!r} and {str(other.source)!r} would both write to {one.name!r} below the output '
        'folder; rename one, give the folder above both as the input, or write to two output folders'
    )


def _find(text: str, results: Sequence[Location]) -> Iterator[tuple[Location, PurePath]]:
    """Yield the path and the relative path of each file that one input names; ``results`` are not searched."""
    path, folders = locate(text), [folder for folder in results if isinstance(folder, Path)]
    if isinstance(path, str):
        yield from _find_urls(path, results)
    elif path.is_dir():
        for file in find_files(path, suffixes=SUFFIXES + VIDEOS, skip=folders):
            yield file, file.relative_to(path)
    elif path.is_file() and path.suffix.lower() in LISTS:
        yield from read_list(path)
    elif path.is_file():
        yield path, PurePath(path.name)
    elif glob.has_magic(text):
        parts = path.parts
        root = Path(*parts[: next(index for index, part in enumerate(parts) if glob.has_magic(part))])
        for match in sorted(Path(match) for match in glob.glob(str(path), recursive=True)):
            if not match.is_dir() and not any(match.resolve().is_relative_to(folder) for folder in folders):
                check_utf8(match)
                yield match, match.relative_to(root)
    elif os.path.lexists(path):  # a pipe or a broken link: reported when it is read
        yield path, PurePath(path.name)


def _find_urls(url: str, results: Sequence[Location]) -> Iterator[tuple[str, PurePath]]:
    root = '/'.join(itertools.takewhile(lambda part: not glob.has_magic(part), url.split('/')))
    for name in sorted(list_url(url) if root == url else glob_url(url, root=root)):
        if not name:
            yield url, PurePath(url.rpartition('/')[2])
        elif (root != url or name.lower().endswith(SUFFIXES)) and '/.' not in f'/{name}':
            file = f'{root}/{name}'
            if not any(file.startswith(f'{folder}/') for folder in results):
                yield file, PurePath(name)


def read_list(path: Path) -> Iterator[tuple[Location, PurePath]]:
    """Yield the path and the relative path of each file that a text file names.

    Raises:
        UserError: The file is not text.
    """
    try:
        lines = read_lines(path, most_bytes=MOST_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'list {str(path)!r} cannot be read as text, one path a line ({error})') from error
    for line in lines:
        if is_url(line):
            yield locate(line), PurePath(urlsplit(line, allow_fragments=False).path.lstrip('/'))
        elif not line.startswith('#'):
            file = Path(line)
            if not file.exists() and (path.parent / file).exists():
                file = path.parent / file
            keeps_folders = not Path(line).is_absolute() and '..' not in Path(line).parts
            yield file, PurePath(line) if keeps_folders else PurePath(file.name)

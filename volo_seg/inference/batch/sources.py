"""Which images and videos are meant, and what their results are called: no two alike, and always the same."""

from __future__ import annotations

import glob
import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from volo_seg.errors import UserError
from volo_seg.imageio import SUFFIXES
from volo_seg.inference.output_formats import KINDS
from volo_seg.io import read_lines

VIDEOS = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg', '.wmv')
LISTS = ('.txt',)
MOST_BYTES = 2**28
"""Of a list of images."""


@dataclass(frozen=True)
class Found:
    """A file that is meant.

    Attributes:
        path: Where it is.
        relative: Its name with the subfolders that are kept.
        above: Name of the folder over ``relative``; empty if there is none.
    """

    path: Path
    relative: PurePath
    above: str = ''


@dataclass(frozen=True)
class Task:
    """A file and the name of its results, without suffix."""

    source: Path
    name: str

    @property
    def is_video(self) -> bool:
        """Whether the file is a video, by its suffix."""
        return is_video(self.source)


def is_video(path: PurePath) -> bool:
    """Whether a file is a video, by its suffix."""
    return path.suffix.lower() in VIDEOS


def find_tasks(inputs: Sequence[str], *, out_dir: str | Path | None = None) -> list[Task]:
    """What the ``inputs`` mean, each file once; the order and the names depend on nothing but the files found.

    An input is an image, a video, a folder (searched through; hidden files are left out, and so are the results
    below ``out_dir``), a glob, or a text file with one path a line (relative to the current folder, or else to the
    text file's own; empty lines and those that start with # are skipped). A file that is named but not there is a
    task too: opening it will say so.

    Names keep the subfolders below a folder, below the part of a glob without wildcards, and those of a relative
    line in a text file. See :func:`distinct_names` for those that would be alike.

    Raises:
        UserError: An input that means no file.
    """
    results = () if out_dir is None else tuple(Path(out_dir, kind.folder).resolve() for kind in KINDS.values())
    seen: dict[str, Found] = {}
    for text in inputs:
        found = list(look_up(text, results))
        if not found:
            raise UserError(f'input {text!r} is no image file, no folder with images, and no glob that matches one')
        for file in found:
            seen.setdefault(os.path.abspath(file.path), file)
    files = list(seen.values())
    return [Task(file.path, name) for file, name in zip(files, distinct_names(files), strict=True)]


def look_up(text: str, results: Sequence[Path] = ()) -> Iterator[Found]:
    """The files that one input means; folders in ``results`` are not entered."""
    path = Path(text)
    if path.is_dir():
        yield from search(path, results)
    elif path.is_file():
        yield from read_list(path) if path.suffix.lower() in LISTS else [Found(path, PurePath(path.name), _above(path))]
    elif glob.has_magic(text):
        root = fixed_part(text)
        for match in sorted(Path(match) for match in glob.glob(text, recursive=True)):
            if not match.is_dir() and not any(match.resolve().is_relative_to(folder) for folder in results):
                yield Found(match, match.relative_to(root), _above(root / 'x'))
    elif os.path.lexists(path):  # a pipe, or a link to nothing: reading it will say so
        yield Found(path, PurePath(path.name), _above(path))


def search(folder: Path, results: Sequence[Path] = ()) -> Iterator[Found]:
    """The images and videos below ``folder``, sorted by their path; links to folders are followed, once each."""
    entered = set()
    found = []
    for place, subfolders, files in os.walk(folder, followlinks=True, onerror=_refuse):
        real = Path(place).resolve()
        if real in entered or (real in results and Path(place) != folder):
            subfolders.clear()
            continue
        entered.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith('.'))
        found += [Path(place, name) for name in files if not name.startswith('.')]
    for path in sorted(found):
        if path.suffix.lower() in SUFFIXES + VIDEOS:
            yield Found(path, path.relative_to(folder), folder.resolve().name)


def _refuse(error: OSError) -> None:
    raise UserError(f'folder {error.filename!r} cannot be searched ({error.strerror}); mend that, or leave it out')


def read_list(path: Path) -> Iterator[Found]:
    """The files that a text file names.

    Raises:
        UserError: It is no text.
    """
    try:
        lines = read_lines(path, most_bytes=MOST_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'list {str(path)!r} cannot be read as text, one path a line ({error})') from error
    for line in lines:
        if not line.startswith('#'):
            file = Path(line)
            if not file.exists() and (path.parent / file).exists():
                file = path.parent / file
            keeps = not Path(line).is_absolute() and '..' not in Path(line).parts
            yield Found(file, PurePath(line) if keeps else PurePath(file.name), _above(file))


def fixed_part(pattern: str) -> Path:
    """The folder of a glob up to its first wildcard: ``data/2*/x.jpg`` gives ``data``."""
    parts = Path(pattern).parts
    count = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:count])


def _above(path: Path) -> str:
    return Path(os.path.abspath(path)).parent.name


def distinct_names(files: Sequence[Found]) -> list[str]:
    """A name for the results of each file: short if no other file wants it, and longer for all who do otherwise.

    The ways to name a file, tried in turn: without its suffix (``a/one``), with it (``a/one.jpg``), below its
    folder (``photos/a/one.jpg``), and with a hash of its absolute path (``photos/a/one.jpg-0f3c…``). Names that
    differ in case alone, or in the way an accent is coded, count as alike, as they do on some file systems. So a
    name never depends on the order of the files, and the file that a name belonged to never makes room for another.
    """
    ways = [ways_to_name(file) for file in files]
    level = [0] * len(files)
    while True:
        names = [way[index] for way, index in zip(ways, level, strict=True)]
        clashing = clashes(names, [is_video(file.path) for file in files])
        if not clashing:
            return names
        if all(level[index] == 3 for index in clashing):
            raise UserError(f'{str(files[clashing[0]].path)!r} finds no name that is free; rename it')
        for index in clashing:
            level[index] = min(level[index] + 1, 3)


def ways_to_name(file: Found) -> tuple[str, str, str, str]:
    """The names of :func:`distinct_names`, the shortest first."""
    relative = file.relative.as_posix()
    longest = f'{file.above}/{relative}' if file.above else relative
    digest = hashlib.sha256(os.path.abspath(file.path).encode(errors='surrogateescape')).hexdigest()[:12]
    return file.relative.with_suffix('').as_posix(), relative, longest, f'{longest}-{digest}'


def clashes(names: Sequence[str], videos: Sequence[bool]) -> list[int]:
    """The indices of names that others want too, and of those whose file would stand where others need a folder."""
    alike = [unicodedata.normalize('NFC', unicodedata.normalize('NFC', name).casefold()) for name in names]
    count = Counter(alike)
    folders = {str(parent) for name in alike for parent in PurePath(name).parents}
    suffixes = ['.mp4', *(kind.suffix for kind in KINDS.values() if kind.suffix)]
    return [
        index
        for index, (name, video) in enumerate(zip(alike, videos, strict=True))
        # the frames of a video lie in a folder of its name
        if count[name] > 1 or (video and name in folders) or any(name + suffix in folders for suffix in suffixes)
    ]

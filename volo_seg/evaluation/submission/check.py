"""Check an archive of predictions against the requirements of a test server."""

from __future__ import annotations

import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from volo_seg.evaluation.submission.archive import ServerRule, frame_of
from volo_seg.image_files import ImageError, open_image
from volo_seg.io import check_regular
from volo_seg.label_png import Labels, labels_of, load_label_image, ranges

_MAX_PNG_BYTES = 200 * 1000**2
_JUNK = ('__MACOSX', '.DS_Store', 'Thumbs.db')


@dataclass(frozen=True)
class Problem:
    """A problem of an archive; ``level`` is ``'error'`` (the server refuses or mis-scores it) or ``'warning'``."""

    level: str
    where: str
    text: str

    def __str__(self) -> str:
        return f'{self.level}: {_printable(self.where, 200)}: {_printable(self.text, 400)}'


def _printable(text: str, limit: int) -> str:
    """``text`` with unprintable characters replaced and at most ``limit`` characters."""
    short = text if len(text) <= limit else f'{text[: limit - 1]}…'
    return ''.join(c if c.isprintable() else '?' for c in short)


def check_submission(
    archive: Path,
    rule: ServerRule,
    *,
    images: Mapping[str, Path] | None = None,
    progress: Callable[[Sequence[zipfile.ZipInfo]], Iterable[zipfile.ZipInfo]] = iter,
) -> list[Problem]:
    """All problems of the zip file ``archive``; an empty list if the server accepts it. Nothing is unpacked to disk.

    Args:
        archive: The zip file.
        rule: Requirements of the server.
        images: The test images by frame.
        progress: Wraps the iteration over the files of the archive.
    """
    if not archive.is_file():
        return [Problem('error', str(archive), 'there is no such file; check the path')]
    try:
        file = zipfile.ZipFile(archive)
    except Exception as error:  # zipfile has several classes for damage
        return [Problem('error', str(archive), f'not a readable zip archive ({error}); write it again')]
    with file:
        members = [info for info in file.infolist() if not info.is_dir()]
        problems = list(_check_archive(archive, members, rule))
        frames: dict[str, list[str]] = defaultdict(list)
        seen: set[int] = set()
        for info in progress(members):
            problems += _check_member(file, info, rule, images, frames, seen)
    return [*problems, *_check_names(frames, rule, images), *_check_all_values(seen, rule)]


def _check_archive(archive: Path, members: list[zipfile.ZipInfo], rule: ServerRule) -> Iterator[Problem]:
    size = archive.stat().st_size
    if rule.max_bytes is not None and size > rule.max_bytes:
        text = f'{size / 1e6:.0f} MB, but the server accepts at most {rule.max_bytes // 1000**2} MB'
        yield Problem('error', str(archive), f'{text}; compress the PNGs more')
    if not members:
        yield Problem('error', str(archive), 'the archive is empty; write it again')
    for name, times in Counter(info.filename for info in members).items():
        if times > 1:
            yield Problem('error', name, f'the archive holds this name {times} times; keep one')
    nested = [info.filename for info in members if '/' in info.filename]
    if nested:
        text = f'{len(nested)} files lie in folders; put all files at the top of the archive'
        yield Problem('warning', nested[0], text)


def _check_member(
    file: zipfile.ZipFile,
    info: zipfile.ZipInfo,
    rule: ServerRule,
    images: Mapping[str, Path] | None,
    frames: dict[str, list[str]],
    seen: set[int],
) -> Iterator[Problem]:
    name = PurePosixPath(info.filename)
    if any(part in _JUNK for part in name.parts) or name.name.startswith('.'):
        yield Problem('warning', info.filename, 'not a prediction; leave it out')
        return
    frame = frame_of(name.name, rule)
    if frame is None or name.suffix != '.png':
        yield Problem('error', info.filename, f'the server expects names like {rule.pattern}; rename it')
        return
    frames[frame].append(info.filename)
    labels, problem = _read_member(file, info)
    if labels is None:
        yield Problem('error', info.filename, problem)
        return
    yield from _check_size(info.filename, labels, rule, (images or {}).get(frame))
    values = {int(value) for value in np.unique(labels)}
    seen |= values
    if values - rule.allowed:
        text = f'holds {ranges(values - rule.allowed)}, but values are {ranges(rule.allowed)}; {rule.hint}'
        yield Problem('error', info.filename, text)


def _read_member(file: zipfile.ZipFile, info: zipfile.ZipInfo) -> tuple[Labels | None, str]:
    if info.file_size > _MAX_PNG_BYTES:
        return None, f'{info.file_size / 1e6:.0f} MB is not a label map; write an 8-bit PNG'
    try:
        content = file.read(info)
    except Exception as error:  # zipfile and its decompressors raise many kinds of exceptions on a damaged archive
        return None, f'cannot be unpacked ({error or type(error).__name__}); write the archive again'
    try:
        image = load_label_image(content, name=info.filename)
    except ImageError as error:
        return None, f'cannot be read as an image ({error.reason}); write it again'
    if image.format != 'PNG' or image.mode not in ('L', 'P'):
        return None, f'a {image.format} of mode {image.mode}; write an 8-bit PNG with one channel (mode L)'
    return labels_of(image, name=info.filename), ''


def _check_size(name: str, labels: Labels, rule: ServerRule, image: Path | None) -> Iterator[Problem]:
    wanted = rule.size
    if image is not None:
        try:
            check_regular(image)
            with image.open('rb') as file:
                width, height = open_image(file, name=f'image {str(image)!r}').size
        except (OSError, ImageError) as error:
            yield Problem('error', str(image), f'the test image cannot be read ({error}); copy it again')
            return
        wanted = (height, width)
    if wanted is not None and labels.shape != wanted:
        text = f'{labels.shape[1]}x{labels.shape[0]} pixels, but the image has {wanted[1]}x{wanted[0]}'
        yield Problem('error', name, f'{text}; predict at full size')


def _check_names(
    frames: Mapping[str, list[str]], rule: ServerRule, images: Mapping[str, Path] | None
) -> Iterator[Problem]:
    for frame, names in frames.items():
        different = sorted(set(names))
        if len(different) > 1:
            yield Problem('error', different[1], f'{frame} already has the prediction {different[0]}; keep one')
    if images is None:
        if rule.count is not None and len(frames) != rule.count:
            text = f'predictions for {len(frames)} images, but the test set of {rule.name} has {rule.count}'
            yield Problem('warning', 'archive', text)
        return
    yield from (Problem('error', name, 'no prediction for this image') for name in sorted(set(images) - set(frames)))
    yield from (Problem('error', name, 'there is no such image') for name in sorted(set(frames) - set(images)))


def _check_all_values(seen: set[int], rule: ServerRule) -> Iterator[Problem]:
    """Yield a problem if allowed values show together that the numbering is wrong."""
    unscored = (seen & rule.allowed) - rule.scored
    if not unscored:
        return
    if max(seen) < len(rule.scored):
        yield Problem('error', 'archive', f'holds {ranges(seen)} only, as training ids do; {rule.hint}')
    else:
        yield Problem('warning', 'archive', f'holds {ranges(unscored)}, which are never correct; {rule.hint}')

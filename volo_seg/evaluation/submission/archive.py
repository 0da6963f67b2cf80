"""Write archives for the test servers of Cityscapes and ADE20K."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from volo_seg.errors import UserError
from volo_seg.evaluation.folders import CITYSCAPES_FRAME, label_files, map_labels
from volo_seg.io import atomic_path, check_writable, find_files
from volo_seg.label_png import encode_labels, read_labels

_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class ServerRule:
    """The requirements of a test server.

    Attributes:
        name: The data set.
        frame: Matches the start of a file name; its first group is the name of the image.
        pattern: File names, for messages.
        allowed: Values that the server accepts.
        scored: Values that can be correct; the others in ``allowed`` always count as misses.
        size: (height, width) in pixels, None if images differ.
        count: Number of test images, None if unknown.
        max_bytes: Size limit of the archive, None if there is none.
        hint: How to correct the values, for messages.
    """

    name: str
    frame: re.Pattern[str]
    pattern: str
    allowed: frozenset[int]
    scored: frozenset[int]
    size: tuple[int, int] | None
    count: int | None
    max_bytes: int | None
    hint: str


def cityscapes_rule(label_ids: Iterable[int], scored_ids: Iterable[int]) -> ServerRule:
    """Cityscapes pixel-level labelling: an 8-bit PNG of label ids per test image, at most 100 MB.

    Source: cityscapesScripts 2.3.0, ``evalPixelLevelSemanticLabeling`` (names, sizes and ids), and the
    submission page of the benchmark (archive).
    """
    return ServerRule(
        name='Cityscapes',
        frame=CITYSCAPES_FRAME,
        pattern='<city>_<6 digits>_<6 digits>*.png',
        allowed=frozenset(i for i in label_ids if i >= 0),
        scored=frozenset(scored_ids),
        size=(1024, 2048),
        count=1525,
        max_bytes=100 * 1000**2,
        hint='write label ids (road is 7), not training ids (road is 0)',
    )


def ade20k_rule() -> ServerRule:
    """ADE20K scene parsing: PNGs with the names of the test images and values 1..150.

    Source: github.com/CSAILVision/sceneparsing, README.md and evaluationCode at 07a8e27f8b34.
    """
    return ServerRule(
        name='ADE20K',
        frame=re.compile(r'^(ADE_[a-z]+_\d{8})'),
        pattern='ADE_test_<8 digits>.png',
        allowed=frozenset(range(151)),
        scored=frozenset(range(1, 151)),
        size=None,
        count=None,
        max_bytes=None,
        hint='write 1..150 (wall is 1), not training ids 0..149 (wall is 0)',
    )


def write_submission(
    prediction_dir: Path,
    archive: Path,
    rule: ServerRule,
    *,
    table: Mapping[int, int],
    suffix: str = '.png',
    frames: Iterable[str] | None = None,
    progress: Callable[[Sequence[str]], Iterable[str]] = iter,
) -> int:
    """Write the predictions as ``<frame>.png`` into a new zip file, and return their number.

    Args:
        prediction_dir: Folder of label PNGs.
        archive: The zip file.
        rule: Requirements of the server.
        table: Maps the values of the predictions to those of the server.
        suffix: End of the names of the predictions.
        frames: The images that need a prediction; None for those in ``prediction_dir``.
        progress: Wraps the iteration over the frames.

    Raises:
        UserError: ``archive`` exists; a prediction has an unknown name, exists twice or is missing, has another size
        than
            the server accepts, or a value that is not in ``table``.
    """
    if archive.exists():
        raise UserError(f'{archive} exists and is not overwritten; name another archive')
    check_writable(archive.parent)
    files = _by_frame(label_files(prediction_dir, suffix=suffix), rule)
    _check_frames(set(files), None if frames is None else set(frames), prediction_dir)
    with atomic_path(archive) as part, zipfile.ZipFile(part, 'x', zipfile.ZIP_STORED) as file:
        for frame in progress(sorted(files)):
            file.writestr(zipfile.ZipInfo(f'{frame}.png', _EPOCH), _server_png(files[frame], rule, table))
    return len(files)


def frame_of(name: str, rule: ServerRule) -> str | None:
    """The name of the image to which a file name belongs; None if it does not match ``rule``."""
    match = rule.frame.match(name)
    return match[1] if match else None


def image_frames(folder: Path, rule: ServerRule) -> dict[str, Path]:
    """The test images below ``folder`` by frame.

    Raises:
        UserError: there is none.
    """
    if not folder.is_dir():
        raise UserError(f'{folder} is not a folder; name the folder of the test images')
    images = find_files(folder, suffixes=('.png', '.jpg', '.jpeg'))
    found = {frame: path for path in images if (frame := frame_of(path.name, rule))}
    if not found:
        raise UserError(f'{folder} holds no image of {rule.name} ({rule.pattern}); name its test images')
    return found


def _by_frame(paths: Iterable[Path], rule: ServerRule) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in paths:
        frame = frame_of(path.name, rule)
        if frame is None:
            raise UserError(f'{path} is not named as {rule.name} requires ({rule.pattern}); rename or remove it')
        if files.setdefault(frame, path) != path:
            raise UserError(f'{files[frame]} and {path} are both predictions of {frame}; keep one of them')
    return files


def _check_frames(found: set[str], wanted: set[str] | None, folder: Path) -> None:
    for names, problem in (
        ((wanted or found) - found, 'has no prediction for'),
        (found - (wanted or found), 'has predictions without an image:'),
    ):
        if names:
            more = f' and {len(names) - 5} more' if len(names) > 5 else ''
            raise UserError(f'{folder} {problem} {", ".join(sorted(names)[:5])}{more}; compare the two folders')


def _server_png(path: Path, rule: ServerRule, table: Mapping[int, int]) -> bytes:
    labels = read_labels(path)
    if rule.size is not None and labels.shape != rule.size:
        height, width = rule.size
        raise UserError(
            f'{path} is {labels.shape[1]}x{labels.shape[0]}, but {rule.name} requires {width}x{height} pixels; '
            'predict at full size'
        )
    return encode_labels(map_labels(labels, table, where=str(path)).astype(np.uint8))

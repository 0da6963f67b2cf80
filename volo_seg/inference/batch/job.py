"""The files of one run, the outputs to write for them, and those that exist; found before a model is loaded."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from volo_seg.errors import UserError
from volo_seg.inference.annotation_files import ANNOTATION_FILES, annotated_names
from volo_seg.inference.batch.distributed import is_torchrun, rank_and_world_size
from volo_seg.inference.batch.folder_key import Key, claim_folder, model_digest
from volo_seg.inference.batch.sources import Task, find_tasks
from volo_seg.inference.batch.video import VideoReader, count_frames
from volo_seg.inference.class_shares import SharePart, finished_names
from volo_seg.inference.output_formats import DEFAULT, OUTPUT_FORMATS, check_kinds
from volo_seg.inference.parquet import ParquetTable
from volo_seg.inference.remote import Location, list_url, locate, target_file
from volo_seg.io import WriteError, check_writable
from volo_seg.label_png import read_labels


@dataclass(frozen=True)
class OutputFolder:
    """The output folder of a run.

    Attributes:
        folder: The folder, a path or URL.
        kinds: What is written for each image. For a video, the overlay is a video, and the rest one file per frame.
        opacity: Opacity of the colours of overlays, in [0, 1].
        rows: Names of the images with a row in the table of shares.
        finished: Names of the images with a row in the table of Parquet.
        since: Results up to this time (ns) are of another key; see :func:`.claim_folder`.
        found: Of a URL, the files that existed; see :func:`.list_url`.
    """

    folder: Location
    kinds: tuple[str, ...]
    opacity: float = 0.5
    rows: set[str] = field(default_factory=set)
    finished: set[str] = field(default_factory=set)
    since: int = 0
    found: Mapping[str, int] = field(default_factory=dict)

    @property
    def frame_kinds(self) -> tuple[str, ...]:
        """What is written for each frame of a video."""
        return tuple(kind for kind in self.kinds if kind != 'overlay')

    def video(self, name: str) -> str:
        """The overlay of the video ``name``, relative to the folder."""
        return f'{OUTPUT_FORMATS["overlay"].folder}/{name}.mp4'

    def has(self, name: str, kinds: Sequence[str]) -> bool:
        """Whether all ``kinds`` of an image or frame exist."""
        tables = [rows for kind, rows in self._tables if kind in kinds]
        return all(name in rows for rows in tables) and all(map(self._has, self._files(name, kinds)))

    def is_finished(self, task: Task) -> bool:
        """Whether all results of ``task`` exist; False for a video without overlay, whose frames are not counted."""
        if not task.is_video:
            return self.has(task.name, self.kinds)
        if 'overlay' not in self.kinds or not self._has(overlay := self.video(task.name)):
            return False
        frames = count_frames(Path(self.folder, overlay))
        return frames > 0 and all(self.has(frame_name(task.name, i), self.frame_kinds) for i in range(frames))

    def existing(self, task: Task) -> str | None:
        """A result of ``task`` that exists, or None."""
        name, kinds = (frame_name(task.name, 0), self.frame_kinds) if task.is_video else (task.name, self.kinds)
        for kind, rows in self._tables:
            if kind in kinds and name in rows:
                return f'{self.folder}/{OUTPUT_FORMATS[kind].folder}'
        files = self._files(name, kinds)
        if task.is_video and 'overlay' in self.kinds:
            files.append(self.video(task.name))
        found = next((file for file in files if file in self.found or os.path.exists(f'{self.folder}/{file}')), None)
        return found and f'{self.folder}/{found}'

    @property
    def _tables(self) -> tuple[tuple[str, set[str]], ...]:
        return ('shares', self.rows), ('parquet', self.finished)

    def _has(self, file: str) -> bool:
        if isinstance(self.folder, str):
            return file in self.found and (not self.since or self.found[file] > self.since)
        path = self.folder / file
        return path.is_file() and (not self.since or path.stat().st_mtime_ns > self.since)

    def _files(self, name: str, kinds: Sequence[str]) -> list[str]:
        places = [OUTPUT_FORMATS[kind] for kind in kinds]
        return [f'{place.folder}/{name}{place.suffix}' for place in places if place.suffix]


@dataclass(frozen=True)
class Job:
    """The work of one process.

    Attributes:
        plan: All files of the run, equal in all processes.
        todo: Those that this process segments.
        skipped: Number of files of this process that were finished before.
        output: Where results go.
        resume: Whether existing results are kept.
        shares: The rows of the table of shares that this process writes; None if there is no table to write.
        rank: Number of this process.
        table: The table of Parquet; None if it is not to be written.
        annotated: File names of the images that all annotation files of the output have.
    """

    plan: list[Task]
    todo: list[Task]
    skipped: int
    output: OutputFolder
    resume: bool
    shares: SharePart | None
    rank: int
    table: ParquetTable | None = None
    annotated: frozenset[str] = frozenset()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do: no files, and no rows or annotations that a killed run did not merge."""
        missing = self.annotations and any(t.file_name not in self.annotated for t in self.plan)
        return not (self.todo or missing or (self.shares and self.shares.rows))

    def drop_old_rows(self) -> None:
        """Remove the rows of Parquet that this run replaces; raises UserError if they cannot be read."""
        if self.table is not None:
            videos = set() if self.resume else {task.name for task in self.todo if task.is_video}
            self.table.drop({task.name for task in self.todo}, videos=videos)

    @property
    def annotations(self) -> tuple[str, ...]:
        """The kinds of output that are an annotation file of all images."""
        return tuple(kind for kind in self.output.kinds if kind in ANNOTATION_FILES)

    def annotate(self, classes: Sequence[str], palette: np.ndarray) -> None:
        """Add the finished images of all processes to the annotation files.

        Raises:
            UserError: A file is of other classes, or cannot be written.
        """
        for kind in self.annotations:
            images = (
                (task.file_name, read_labels(Path(self.output.folder, 'labels', f'{task.name}.png')))
                for task in self.plan
                if self.output.has(task.name, ('labels',))
            )
            ANNOTATION_FILES[kind](Path(self.output.folder), classes, palette).add(images)

    @property
    def unit(self) -> str:
        """What :meth:`count` counts."""
        return 'frames' if any(task.is_video for task in self.todo) else 'images'

    def count(self) -> int:
        """The number of images, plus that of the frames as the videos state it."""
        total = 0
        for task in self.todo:
            if not task.is_video:
                total += 1
                continue
            with contextlib.suppress(UserError):
                total += VideoReader(Path(task.source)).frames
        return total


def plan_job(
    inputs: Sequence[str],
    out_dir: str | Path,
    *,
    kinds: Sequence[str] = DEFAULT,
    opacity: float = 0.5,
    resume: bool = False,
    overwrite: bool = False,
    key: Key | None = None,
) -> Job:
    """Find the files and choose those of this process; ``out_dir`` is created, unless it is a URL.

    Args:
        inputs: See :func:`volo_seg.inference.batch.sources.find_tasks`.
        out_dir: The output folder, a path or URL.
        kinds: Keys of :data:`volo_seg.inference.output_formats.OUTPUT_FORMATS`. Annotation files of all images are
            made from labels, which are then written too.
        opacity: Opacity of the colours of overlays, in [0, 1].
        resume: Skip finished files.
        overwrite: Replace existing results.
        key: The model; see :func:`.model_key`. It is stored in ``out_dir``, and results of another are not continued.

    Raises:
        UserError: An input names no file, two files have the same results, a kind is unknown, ``out_dir`` cannot be
            written, or without ``overwrite``, results exist (nor with ``resume``) or are of another model or opacity;
            or ``out_dir`` is a URL, and there is a video, or a kind that is one file for all images.
    """
    folder = locate(out_dir)
    annotations = [kind for kind in kinds if kind in ANNOTATION_FILES]
    kinds = check_kinds([*kinds, 'labels'] if annotations else kinds)
    if isinstance(folder, Path):
        check_writable(folder, what='output folder', fix='name another')
    for kind in kinds:
        target_file(folder, OUTPUT_FORMATS[kind].folder)
    plan = find_tasks(inputs, out_dir=folder)
    videos = [task.source for task in plan if task.is_video]
    if annotations and videos:
        raise UserError(
            f'{str(videos[0])!r} is a video, and annotations of the kind {annotations[0]} are of image files; leave '
            'the kind or the video out'
        )
    found = _list_target(folder, kinds, videos) if isinstance(folder, str) else {}
    rank, world_size = rank_and_world_size()
    # divided before finished files are left out: other processes may have begun to write
    tasks = plan[rank::world_size]
    table = ParquetTable(folder, model_digest(key) if key else '') if 'parquet' in kinds else None
    if table and world_size > 1:
        raise UserError('--kinds parquet is written by one process, and torchrun has started several; leave it out')
    rows = finished_names(Path(folder)) if 'shares' in kinds else set()
    output = OutputFolder(folder, kinds, opacity, rows, table.finished() if table else set(), found=found)
    if not (resume or overwrite):
        # torchrun's processes begin together, and all have to give the same answer
        existing = [path for path in map(output.existing, plan if is_torchrun() else tasks) if path is not None]
        if existing:
            raise UserError(
                f'{existing[0]!r} exists already ({len(existing)} such); add --resume to continue, --overwrite to '
                'replace it, or name another --out-dir'
            )
    try:
        if isinstance(folder, Path):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(folder, error.strerror) from error
    if key is not None:
        if 'overlay' in kinds:
            key = {**key, 'opacity': (opacity, str(opacity))}
        output = replace(output, since=claim_folder(folder, key, replace=overwrite, found=found))
    todo = [task for task in tasks if not output.is_finished(task)] if resume else tasks
    shares = SharePart(Path(folder), rank=rank, world_size=world_size) if 'shares' in kinds else None
    annotated = frozenset(annotated_names(Path(folder), annotations)) if annotations else frozenset[str]()
    return Job(plan, todo, len(tasks) - len(todo), output, resume, shares, rank, table, annotated)


def _list_target(url: str, kinds: Sequence[str], videos: Sequence[Location]) -> dict[str, int]:
    """The files below ``url``; raises UserError if the run has results that cannot be written there."""
    for kind in kinds:
        if not OUTPUT_FORMATS[kind].suffix and kind != 'parquet':
            raise UserError(f'--kinds {kind} is one file for all images, and {url!r} is no local folder; leave it out')
    if videos:
        raise UserError(f'{str(videos[0])!r} is a video, and {url!r} is no local folder; name a local --out-dir')
    return list_url(url)


def frame_name(name: str, index: int) -> str:
    """The name of the results of frame ``index`` (from 0) of the video ``name``."""
    return f'{name}/{index:06d}'

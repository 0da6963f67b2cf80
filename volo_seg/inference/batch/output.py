"""Where the results of many files go, and which of them are there already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from volo_seg.errors import UserError
from volo_seg.inference.batch.shares import journals, read_journal, read_table
from volo_seg.inference.batch.sources import Task
from volo_seg.inference.batch.video import count_frames
from volo_seg.inference.files import inside
from volo_seg.inference.output_formats import DEFAULT, KINDS, check_kinds


@dataclass(frozen=True)
class Output:
    """Where results go, and which.

    Args:
        folder: The output folder.
        kinds: What is written of each image. Of a video, the overlay is one video, and the rest one file a frame.
        opacity: Of the colours of overlays, in [0, 1].

    Raises:
        UserError: An unknown kind, or one whose folder is a link that leads out of the output folder.
    """

    folder: Path
    kinds: tuple[str, ...] = DEFAULT
    opacity: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, 'kinds', check_kinds(self.kinds))
        for kind in self.kinds:
            inside(self.folder, KINDS[kind].folder)

    @property
    def frame_kinds(self) -> tuple[str, ...]:
        """What is written of each frame of a video."""
        return tuple(kind for kind in self.kinds if kind != 'overlay')

    def files(self, name: str, kinds: Sequence[str]) -> list[Path]:
        """The files of one image, or of one frame; not the table."""
        places = [KINDS[kind] for kind in kinds if KINDS[kind].suffix]
        return [self.folder / place.folder / f'{name}{place.suffix}' for place in places]

    def video(self, name: str) -> str:
        """The overlay of a video, below the folder."""
        return f'{KINDS["overlay"].folder}/{name}.mp4'


@dataclass
class State:
    """What is in the output folder already.

    Attributes:
        output: The folder and the kinds.
        rows: Names of images that have a row in the table, or in the journal of a process.
    """

    output: Output
    rows: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        if 'shares' in self.output.kinds:
            folder = self.output.folder
            self.rows = {line[0] for line in read_table(folder / KINDS['shares'].folder)[1:]}
            for path in journals(folder):
                self.rows |= set(read_journal(path))

    def has(self, name: str, kinds: Sequence[str]) -> bool:
        """Whether all ``kinds`` of an image, or of a frame, are there."""
        there = all(path.is_file() for path in self.output.files(name, kinds))
        return there and ('shares' not in kinds or name in self.rows)

    def has_all(self, task: Task) -> bool:
        """Whether the results of ``task`` are finished. A video without overlay never is: its frames are looked at."""
        output = self.output
        if not task.is_video:
            return self.has(task.name, output.kinds)
        if 'overlay' not in output.kinds:
            return False
        frames = count_frames(output.folder / output.video(task.name))
        return frames > 0 and all(self.has(frame_name(task.name, i), output.frame_kinds) for i in range(frames))

    def first_file(self, task: Task) -> Path | None:
        """A result of ``task`` that is there already, finished or not."""
        output = self.output
        kinds = output.frame_kinds if task.is_video else output.kinds
        name = frame_name(task.name, 0) if task.is_video else task.name
        files = output.files(name, kinds)
        if task.is_video and 'overlay' in output.kinds:
            files.append(output.folder / output.video(task.name))
        if 'shares' in kinds and name in self.rows:
            return output.folder / KINDS['shares'].folder
        return next((path for path in files if path.exists()), None)


def frame_name(name: str, index: int) -> str:
    """Name of the results of frame ``index`` (from 0) of the video ``name``."""
    return f'{name}/{index:06d}'


def refuse_existing(tasks: Sequence[Task], state: State) -> None:
    """Check that no result is there already.

    Raises:
        UserError: One is.
    """
    there = [path for path in map(state.first_file, tasks) if path is not None]
    if there:
        advice = 'add --resume to go on, --overwrite to write them again, or name another --out-dir'
        raise UserError(f'{str(there[0])!r} ({len(there)} such) is there already; {advice}')

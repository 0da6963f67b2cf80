"""What one process has to do of a run over many files, found out before a network is loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from volo_seg.errors import UserError
from volo_seg.inference.batch.output import Output, State, refuse_existing
from volo_seg.inference.batch.shares import Journal
from volo_seg.inference.batch.sharing import Share, this_share
from volo_seg.inference.batch.sources import Task, find_tasks
from volo_seg.inference.batch.video import VideoReader
from volo_seg.inference.output_formats import DEFAULT
from volo_seg.io import check_writable


@dataclass(frozen=True)
class Job:
    """The share of one process.

    Attributes:
        plan: All files of the run, the same in all processes.
        todo: Those that this process segments.
        skipped: How many of its share were finished before.
        output: Where results go.
        state: What is there already, if the run goes on; else None.
        journal: Takes the rows of the table of shares, if there is to be one.
        share: Which process this is.
    """

    plan: list[Task]
    todo: list[Task]
    skipped: int
    output: Output
    state: State | None
    journal: Journal | None
    share: Share

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left, not even rows of a process that was killed."""
        return not self.todo and not (self.journal and self.journal.rows)

    @property
    def unit(self) -> str:
        """What is counted."""
        return 'frames' if any(task.is_video for task in self.todo) else 'images'

    def count(self) -> int:
        """How many images there are to segment, and frames as the videos state it."""
        total = 0
        for task in self.todo:
            if not task.is_video:
                total += 1
                continue
            with contextlib.suppress(UserError):
                total += VideoReader(task.source).frames
        return total


def plan_job(
    inputs: Sequence[str],
    out_dir: str | Path,
    *,
    kinds: Sequence[str] = DEFAULT,
    opacity: float = 0.5,
    resume: bool = False,
    overwrite: bool = False,
) -> Job:
    """Find the files, name their results, and take this process's share; ``out_dir`` is made.

    Args:
        inputs: See :func:`volo_seg.inference.batch.sources.find_tasks`.
        out_dir: The output folder.
        kinds: What is written, see :data:`volo_seg.inference.output_formats.KINDS`.
        opacity: Of the colours of overlays, in [0, 1].
        resume: Leave out what is finished.
        overwrite: Do everything, whatever is there.

    Raises:
        UserError: Inputs that mean no file, a folder that cannot be made, or, without ``resume`` and ``overwrite``,
            results that are there already.
    """
    output = Output(_make_folder(out_dir), tuple(kinds), opacity)
    plan = find_tasks(inputs, out_dir=output.folder)
    share = this_share()
    # shared before what is finished is left out: the other processes may have begun
    tasks, state = share.of(plan), State(output)
    if not (resume or overwrite):
        refuse_existing(tasks, state)
    todo = [task for task in tasks if not state.has_all(task)] if resume else tasks
    journal = Journal(output.folder, share) if 'shares' in output.kinds else None
    return Job(plan, todo, len(tasks) - len(todo), output, state if resume else None, journal, share)


def _make_folder(name: str | Path) -> Path:
    try:
        check_writable(name, what='output folder', fix='name another')
        Path(name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'output folder {str(name)!r} cannot be made ({error.strerror}); name another') from error
    return Path(name)

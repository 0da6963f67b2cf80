"""Run a predictor over many files: reading, network and writing overlap, and what cannot be read is set aside."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from volo_seg.errors import UserError
from volo_seg.inference.base import BasePredictor
from volo_seg.inference.batch.job import Job
from volo_seg.inference.batch.outbox import Outbox, ahead
from volo_seg.inference.batch.output import frame_name
from volo_seg.inference.batch.shares import ShareTable, share_row
from volo_seg.inference.batch.sources import Task
from volo_seg.inference.batch.video import VideoReader, VideoWriter
from volo_seg.inference.output_formats import KINDS
from volo_seg.inference.result import Failure, Result
from volo_seg.inference.writers import OutputError, write_files


class FolderRun:
    """One run of a predictor over files.

    Args:
        predictor: Segments.
        job: What is to be done, and where results go.
        batch_size: Images of one size that go through the network together; by default the predictor's choice.
        threads: How many read, and as many write.
        on_done: Called for each image or frame that is done with.
    """

    def __init__(
        self,
        predictor: BasePredictor,
        job: Job,
        *,
        batch_size: int | None = None,
        threads: int = 2,
        on_done: Callable[[], None] = lambda: None,
    ) -> None:
        self.predictor, self.job, self.output = predictor, job, job.output
        self.batch_size, self.threads, self.on_done = batch_size, threads, on_done
        self.failures: dict[Path, str] = {}

    def run(self) -> list[Failure]:
        """Segment the files; return those that could not be, in their order. The table is written in any case.

        Raises:
            UserError: The table that is there is one of other classes.
            OutputError: Nothing can be written.
        """
        if self.job.journal is not None:
            self._table().rows()
        try:
            self._segment_images([task for task in self.job.todo if not task.is_video])
            for task in self.job.todo:
                if task.is_video:
                    self._segment_video(task)
        except BaseException:
            # if this fails too, the rows stay in the journal
            with contextlib.suppress(UserError, OSError):
                self._settle()
            raise
        self._settle()
        sources = [task.source for task in self.job.todo]
        return [Failure(source, self.failures[source]) for source in sources if source in self.failures]

    def _settle(self) -> None:
        if self.job.journal is not None:
            self.job.journal.settle(self._table(), order=[task.name for task in self.job.plan])

    def _table(self) -> ShareTable:
        return ShareTable(self.output.folder, self.predictor.classes)

    def _segment_images(self, tasks: Sequence[Task]) -> None:
        results = self._stream((task.source for task in tasks), readers=self.threads)
        # what waits to be written holds its image, and maybe the probabilities of all classes
        with Outbox(threads=self.threads, depth=self.threads) as outbox:
            for task, result in zip(tasks, results, strict=True):
                if isinstance(result, Failure):
                    self.failures[task.source] = result.reason
                else:
                    outbox.put(partial(self._write, result, task.name, task.source, self.output.kinds))
                self.on_done()

    def _segment_video(self, task: Task) -> None:
        try:
            reader = VideoReader(task.source)
            if 'overlay' not in self.output.kinds:
                self._segment_frames(task, reader, None)
                return
            with VideoWriter(self.output.folder, self.output.video(task.name), rate=reader.rate) as writer:
                self._segment_frames(task, reader, writer)
        except OutputError:
            raise
        except UserError as error:
            self.failures[task.source] = str(error)

    def _segment_frames(self, task: Task, reader: VideoReader, writer: VideoWriter | None) -> None:
        """Segment the frames that are not finished; for an overlay that is all of them.

        Raises:
            UserError: The video ends early, or a frame cannot be segmented; the frames before it are written.
        """
        kinds, state = self.output.frame_kinds, self.job.state
        names: list[str] = []
        broken: list[UserError] = []

        def frames() -> Iterator[np.ndarray]:
            try:
                for index, frame in enumerate(ahead(reader, depth=2 * self.threads)):
                    name = frame_name(task.name, index)
                    if writer is None and state is not None and state.has(name, kinds):
                        self.on_done()
                        continue
                    names.append(name)
                    yield frame
            except UserError as error:  # what was read before is finished first
                broken.append(error)

        with (
            Outbox(threads=self.threads, depth=self.threads) as outbox,
            Outbox(threads=1, depth=self.threads) as film,
        ):
            for count, result in enumerate(self._stream(frames(), readers=0)):
                if isinstance(result, Failure):
                    raise UserError(f'{result.reason} (frame {count} of {str(task.source)!r})')
                if writer is not None:
                    film.put(partial(self._film, writer, result))
                outbox.put(partial(self._write, result, names[count], task.source, kinds))
                self.on_done()
        if broken:
            raise broken[0]

    def _stream(self, items: Iterator[Path] | Iterator[np.ndarray], *, readers: int) -> Iterator[Result | Failure]:
        kinds = self.output.kinds
        return self.predictor.stream(
            items,
            batch_size=self.batch_size,
            readers=readers,
            confidence=any(KINDS[kind].needs == 'confidence' for kind in kinds),
            probabilities=any(KINDS[kind].needs == 'probabilities' for kind in kinds),
            on_error='yield',
        )

    def _film(self, writer: VideoWriter, result: Result) -> None:
        writer.write(result.overlay(opacity=self.output.opacity))

    def _write(self, result: Result, name: str, source: Path, kinds: Sequence[str]) -> None:
        try:
            folder, opacity = self.output.folder, self.output.opacity
            write_files(result, folder, name=name, kinds=kinds, source=source, opacity=opacity)
            if self.job.journal is not None:
                self.job.journal.add(name, share_row(result, source))
        except OutputError:
            raise
        except UserError as error:
            self.failures[source] = str(error)
        except OSError as error:
            raise OutputError(f'{str(self.output.folder)!r} cannot be written ({error.strerror})') from error

"""Run a predictor over many files; reading, prediction and writing overlap, and unreadable files are skipped."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from volo_seg.errors import UserError
from volo_seg.inference.base import BasePredictor
from volo_seg.inference.batch.job import Job, frame_name
from volo_seg.inference.batch.sources import Task
from volo_seg.inference.batch.video import VideoReader, VideoWriter
from volo_seg.inference.class_shares import ShareTable, share_row
from volo_seg.inference.concurrency import WriterPool, prefetch
from volo_seg.inference.output_formats import OUTPUT_FORMATS
from volo_seg.inference.parquet import error_row, result_row
from volo_seg.inference.remote import Location
from volo_seg.inference.result import Failure, Result
from volo_seg.io import WriteError


class BatchRun:
    """One run of a predictor over the files of a job.

    Args:
        predictor: The predictor.
        job: The files, and where results go.
        batch_size: Largest number of images in one forward pass; by default that of the predictor.
        threads: Number of threads that read, and of threads that write.
        on_done: Called after each image or frame.
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
        self.failures: dict[Location, str] = {}

    def run(self) -> list[Failure]:
        """Segment the files, and return those that could not be segmented, in order.

        The rows of the tables are written in any case.

        Raises:
            UserError: The existing table of shares is of other classes.
            WriteError: Results cannot be written.
        """
        table = ShareTable(Path(self.output.folder), self.predictor.classes)
        if self.job.shares is not None:
            table.rows()
        try:
            self._segment_images([task for task in self.job.todo if not task.is_video])
            for task in self.job.todo:
                if task.is_video:
                    self._segment_video(task)
        except BaseException:
            with contextlib.suppress(UserError, OSError):  # the rows of shares stay in the part of this process
                self._flush(table)
            raise
        self._flush(table)
        sources = [task.source for task in self.job.todo]
        return [Failure(source, self.failures[source]) for source in sources if source in self.failures]

    def _flush(self, table: ShareTable) -> None:
        if self.job.table is not None:
            self.job.table.flush()
        if self.job.shares is not None:
            self.job.shares.flush(table, order=[task.name for task in self.job.plan])

    def _segment_images(self, tasks: Sequence[Task]) -> None:
        sources = (task.source for task in tasks)
        with (
            contextlib.closing(self._stream(sources, readers=self.threads)) as results,
            # each waiting result holds its image, and possibly the probabilities of all classes
            WriterPool(threads=self.threads, depth=self.threads) as writers,
        ):
            for task, result in zip(tasks, results, strict=True):
                if isinstance(result, Failure):
                    self._fail(result.reason, task.name, task.source)
                else:
                    writers.submit(partial(self._write, result, task.name, task.source, self.output.kinds))
                self.on_done()

    def _segment_video(self, task: Task) -> None:
        try:
            reader = VideoReader(Path(task.source))
            if 'overlay' not in self.output.kinds:
                self._segment_frames(task, reader, None)
                return
            with VideoWriter(Path(self.output.folder), self.output.video(task.name), rate=reader.rate) as video:
                self._segment_frames(task, reader, video)
        except WriteError:
            raise
        except UserError as error:
            self._fail(str(error), task.name, task.source)

    def _segment_frames(self, task: Task, reader: VideoReader, video: VideoWriter | None) -> None:
        """Segment the frames without results, and write their files; all frames if there is an overlay to write.

        Raises:
            UserError: The video is damaged, or a frame cannot be segmented; the frames before it are written.
        """
        names: list[str] = []
        errors: list[UserError] = []

        def missing_frames() -> Generator[np.ndarray, None, None]:
            frames = prefetch(lambda _: reader.read(), itertools.count(), threads=1, depth=2 * self.threads)
            try:
                with contextlib.closing(frames):
                    for index, frame in enumerate(frames):
                        if frame is None:
                            return
                        name = frame_name(task.name, index)
                        if video is None and self.job.resume and self.output.has(name, self.output.frame_kinds):
                            self.on_done()
                            continue
                        names.append(name)
                        yield frame
            except UserError as error:  # raised after the frames before it
                errors.append(error)

        with (
            contextlib.closing(missing_frames()) as frames,
            contextlib.closing(self._stream(frames, readers=0)) as results,
            WriterPool(threads=self.threads, depth=self.threads) as writers,
            WriterPool(threads=1, depth=self.threads) as video_writer,
        ):
            for count, result in enumerate(results):
                if isinstance(result, Failure):
                    raise UserError(f'{result.reason} (frame {count} of {str(task.source)!r})')
                if video is not None:
                    video_writer.submit(partial(_write_overlay, video, result, self.output.opacity))
                writers.submit(partial(self._write, result, names[count], task.source, self.output.frame_kinds))
                self.on_done()
        if errors:
            raise errors[0]

    def _fail(self, reason: str, name: str, source: Location) -> None:
        self.failures[source] = reason
        if self.job.table is not None:
            self.job.table.add(error_row(reason, name, source=source, model=self.job.table.model))

    def _stream(
        self, items: Iterator[Location] | Iterator[np.ndarray], *, readers: int
    ) -> Generator[Result | Failure, None, None]:
        needs = {OUTPUT_FORMATS[kind].needs for kind in self.output.kinds}
        return self.predictor.stream(
            items,
            batch_size=self.batch_size,
            readers=readers,
            confidence='confidence' in needs,
            probabilities='probabilities' in needs,
            on_error='yield',
        )

    def _write(self, result: Result, name: str, source: Location, kinds: Sequence[str]) -> None:
        files = [kind for kind in kinds if OUTPUT_FORMATS[kind].suffix]
        try:
            if files:
                result.save(self.output.folder, files, name=name, opacity=self.output.opacity, source=source)
        except WriteError:
            raise
        except UserError as error:
            self._fail(str(error), name, source)
            return
        if self.job.table is not None:
            model = self.job.table.model
            self.job.table.add(result_row(name, result.labels, classes=result.classes, source=source, model=model))
        if self.job.shares is not None:
            row = share_row(name, result.labels, class_count=len(result.classes), source=source)
            self.job.shares.add(row)


def _write_overlay(video: VideoWriter, result: Result, opacity: float) -> None:
    video.write(result.overlay(opacity=opacity))

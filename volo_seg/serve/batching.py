"""One thread that runs the networks: images of one size that wait for the same model go through it together."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Hashable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from volo_seg.errors import UserError
from volo_seg.inference.result import Failure, Result

from .limits import Busy
from .metrics import Metrics
from .models import Model

JOIN_SECONDS = 0.005
"""Longest wait for images that are being decoded at this moment; without any there is no wait."""


@dataclass(eq=False)
class Job:
    """An image (H, W, 3) that waits; ``future`` gets its result and the seconds of its network run."""

    model: Model
    image: np.ndarray
    confidence: bool
    future: Future[tuple[Result, float]] = field(default_factory=Future)

    @property
    def key(self) -> Hashable:
        """Jobs with equal keys may share a batch."""
        return id(self.model), self.image.shape, self.confidence


class Batcher:
    """Runs jobs in the order of their arrival, each with those of its key that wait too, in batches of the predictor.

    Args:
        queue: Places: requests that may decode, wait, segment and encode at the same time.
        metrics: Records runs and places.
    """

    def __init__(self, *, queue: int, metrics: Metrics) -> None:
        self.queue, self.metrics = queue, metrics
        self.places = self.decoding = 0
        self.waiting: deque[Job] = deque()
        self.changed = threading.Condition()
        self.closed = False
        self.thread = threading.Thread(target=self._run, name='volo-seg-network', daemon=True)
        self.thread.start()

    def check(self) -> None:
        """Raise :class:`Busy` if no place is free."""
        if self.places >= self.queue:
            raise Busy(f'{self.places} requests are in hand, as many as this server takes')

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place. Only in the thread of the event loop. Raises :class:`Busy` if none is free."""
        self.check()
        self.places += 1
        self.metrics.in_hand.set(self.places)
        try:
            yield
        finally:
            self.places -= 1
            self.metrics.in_hand.set(self.places)

    @contextmanager
    def announce(self) -> Iterator[None]:
        """Around the decoding and submitting of an image: a batch that is not full may wait for it."""
        with self.changed:
            self.decoding += 1
        try:
            yield
        finally:
            with self.changed:
                self.decoding -= 1
                self.changed.notify_all()

    def submit(self, model: Model, image: np.ndarray, *, confidence: bool) -> Job:
        """Put ``image`` into the queue."""
        job = Job(model, image, confidence)
        with self.changed:
            self.waiting.append(job)
            self.changed.notify_all()
        return job

    async def result(self, job: Job) -> tuple[Result, float]:
        """Wait for the result of ``job`` and the seconds of its network run; cancelling takes it off the queue.

        Raises:
            UserError: The model cannot segment the image.
        """
        try:
            return await asyncio.wrap_future(job.future)
        finally:
            with self.changed:
                if job in self.waiting:
                    self.waiting.remove(job)

    def close(self) -> None:
        """Finish what waits, then end the thread."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        self.thread.join()

    def _run(self) -> None:
        while (batch := self._next_batch()) is not None:
            if batch:
                _segment(batch, self.metrics)
            del batch  # the next wait may be long

    def _next_batch(self) -> list[Job] | None:
        """The next jobs of one key, perhaps none; None once everything is done."""
        with self.changed:
            self.changed.wait_for(lambda: self.waiting or self.closed)
            if not self.waiting:
                return None
            key, size = self.waiting[0].key, self.waiting[0].model.predictor.batch_size
            same = lambda: [job for job in self.waiting if job.key == key][:size]  # noqa: E731
            self.changed.wait_for(lambda: not self.decoding or len(same()) >= size, JOIN_SECONDS)
            batch = same()
            for job in batch:
                self.waiting.remove(job)
        return [job for job in batch if job.future.set_running_or_notify_cancel()]


def _segment(batch: list[Job], metrics: Metrics) -> None:
    """Run one batch and set its futures."""
    first, start = batch[0], time.perf_counter()
    try:
        outcomes = list(
            first.model.predictor.stream(
                [job.image for job in batch],
                confidence=first.confidence,
                on_error='yield',
            )
        )
    except Exception as error:
        for job in batch:
            job.future.set_exception(error)
        return
    seconds = time.perf_counter() - start
    metrics.runs.labels(first.model.name).observe(seconds)
    metrics.batches.observe(len(batch))
    for job, outcome in zip(batch, outcomes, strict=True):
        if isinstance(outcome, Failure):
            job.future.set_exception(UserError(outcome.reason))
        else:
            job.future.set_result((outcome, seconds))

"""Count one batch while the network is at the next."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from mmengine.evaluator import BaseMetric, Evaluator


class OverlappedEvaluator(Evaluator):
    """MMEngine's evaluator with the metrics in a thread of their own, one batch behind the network.

    Loading and preprocessing already run in the data loader's processes, so that all four overlap. Batches reach the
    metrics one at a time and in order; what a metric raises is raised here, at the next batch or at the end.
    """

    def __init__(self, metrics: dict | BaseMetric | Sequence) -> None:
        super().__init__(metrics)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix='metrics')
        self._pending: Future[None] | None = None

    def process(self, data_samples: Sequence[Any], data_batch: Any | None = None) -> None:
        """Hand one batch of results over; returns when the batch before it has been counted."""
        self._wait()
        self._pending = self._worker.submit(super().process, data_samples, data_batch)

    def evaluate(self, size: int) -> dict[str, Any]:
        """Scores over the ``size`` samples, once every batch has been counted."""
        self._wait()
        return super().evaluate(size)

    def _wait(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

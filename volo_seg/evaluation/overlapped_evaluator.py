"""An evaluator whose metrics run while the network processes the next batch."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from mmengine.evaluator import BaseMetric, Evaluator
from mmseg.registry import EVALUATOR


@EVALUATOR.register_module()
class OverlappedEvaluator(Evaluator):
    """MMEngine's evaluator with its metrics in one thread of their own, one batch behind the network.

    Batches reach the metrics one at a time and in order. What a metric raises is raised at the next batch or at the
    end.

    Args:
        metrics: Metric, config of a metric, or a list of them.
    """

    def __init__(self, metrics: dict | BaseMetric | Sequence) -> None:
        super().__init__(metrics)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix='metrics')
        self._pending: Future[None] | None = None

    def process(self, data_samples: Sequence[Any], data_batch: Any | None = None) -> None:
        """Pass one batch of results to the metrics; returns when they have finished the batch before it."""
        self._wait()
        self._pending = self._worker.submit(super().process, data_samples, data_batch)

    def evaluate(self, size: int) -> dict[str, Any]:
        """The scores over the ``size`` samples of the data set."""
        self._wait()
        return super().evaluate(size)

    def _wait(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

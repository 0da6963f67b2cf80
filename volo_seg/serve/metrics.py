"""Prometheus metrics of one server."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Requests, network runs, and memory and CPU time of the process."""

    def __init__(self) -> None:
        self.registry = to = CollectorRegistry()
        ProcessCollector(registry=to)
        self.requests = Counter('volo_seg_requests', 'HTTP requests by route.', ['path', 'status'], registry=to)
        self.seconds = Histogram('volo_seg_request_seconds', 'Their duration.', ['path'], buckets=SECONDS, registry=to)
        self.runs = Histogram('volo_seg_network_seconds', 'Network runs.', ['model'], buckets=SECONDS, registry=to)
        self.batches = Histogram('volo_seg_batch_images', 'Images of a run.', buckets=(1, 2, 4, 8, 16), registry=to)
        self.in_hand = Gauge('volo_seg_images_in_hand', 'Images that hold a place of the queue.', registry=to)

"""Time and memory of a predictor, stage by stage."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np

from volo_seg.errors import UserError
from volo_seg.imageio import read_image, write_image
from volo_seg.inference.base import BasePredictor
from volo_seg.inference.exported_predictor import ExportedPredictor

STAGES = ('load', 'preprocess', 'backbone', 'neck', 'head', 'network', 'resize')
"""Reading and decoding; resizing and normalization; the parts of the network (or ``network``, for an exported file);
resizing of the logits, and labels."""
PARTS = {'data_preprocessor': 'preprocess', 'backbone': 'backbone', 'neck': 'neck', 'decode_head': 'head'}
Seconds = dict[str, float]


@dataclass(frozen=True)
class Summary:
    """Time and memory over all batches of a predictor.

    Attributes:
        batches: Number of batches.
        p50, p95: Percentiles of the seconds per batch.
        images_per_second, megapixels_per_second: Throughput; pixels are those of the image files.
        stages: (p50, p95, share of the total time) of each stage.
        peak_memory: Bytes, None if unknown.
        memory_counted: What ``peak_memory`` counts.
    """

    batches: int
    p50: float
    p95: float
    images_per_second: float
    megapixels_per_second: float
    stages: dict[str, tuple[float, float, float]]
    peak_memory: int | None
    memory_counted: str


class StageTimer:
    """Measures the stages of a predictor, whose methods it wraps in place.

    Args:
        predictor: The predictor; its results do not change.
    """

    def __init__(self, predictor: BasePredictor) -> None:
        self.predictor = cast(Any, predictor)
        self.seconds: Seconds = {}
        self.on_gpu = False
        if isinstance(predictor, ExportedPredictor):
            self._wrap(predictor, 'make_input', 'preprocess')
            self._wrap(predictor, 'run', 'network')
        else:
            self.on_gpu = self.predictor.device.type == 'cuda'
            for name, stage in PARTS.items():
                if getattr(self.predictor.model, name, None) is not None:
                    self._wrap(getattr(self.predictor.model, name), 'forward', stage)

    def _wrap(self, owner: Any, method: str, stage: str) -> None:
        function = getattr(owner, method)

        def timed(*args: Any, **keywords: Any) -> Any:
            start = self._now()
            result = function(*args, **keywords)
            self.seconds[stage] = self.seconds.get(stage, 0.0) + self._now() - start
            return result

        setattr(owner, method, timed)

    def _now(self) -> float:
        if self.on_gpu:
            import torch

            torch.cuda.synchronize(self.predictor.device)
        return time.perf_counter()

    def run(self, paths: Sequence[str | Path]) -> Seconds:
        """Segment the images at ``paths`` as one batch; return the seconds of each stage.

        Raises:
            UserError: An image cannot be read, or the network inputs differ in size.
        """
        self.seconds = {}
        start = self._now()
        images = [read_image(path, reading=self.predictor.reading) for path in paths]
        loaded = self._now()
        prepared = [self.predictor._prepare(image) for image in images]
        ready = self._now()
        if len({key for key, _ in prepared}) > 1:
            raise UserError(f'{paths[0]} and the next images differ in size and make no batch; set --batch-size 1')
        self.predictor._segment([item for _, item in prepared], confidence=False, probabilities=False)
        rest = self._now() - ready - sum(self.seconds.values())
        self.seconds['preprocess'] = self.seconds.get('preprocess', 0.0) + ready - loaded
        found = {'load': loaded - start, **self.seconds, 'resize': rest}
        return {stage: found[stage] for stage in STAGES if stage in found}

    def peak_memory(self, paths: Sequence[str | Path]) -> tuple[int | None, str]:
        """Bytes at the peak of one batch and what they count. The first batch counts all: memory pools are kept."""
        if self.on_gpu:
            import torch

            torch.cuda.reset_peak_memory_stats()
            self.run(paths)
            return torch.cuda.max_memory_allocated(), 'tensors on the GPU, weights included'
        if isinstance(self.predictor, ExportedPredictor):
            return resident_growth(lambda: self.run(paths)), 'growth of the resident memory in the first batch'
        return _tensor_growth(lambda: self.run(paths)), 'tensors, without the weights'


def measure(
    predictors: Mapping[str, BasePredictor],
    images: Sequence[str | Path],
    *,
    batch_size: int = 1,
    repeat: int = 10,
    warm_up: int = 1,
) -> dict[str, Summary]:
    """Measure ``predictors`` in turns: each batch goes through all of them.

    Args:
        predictors: By name; their methods are wrapped.
        images: Paths, in order; the last batch may be smaller.
        batch_size: Images in a batch.
        repeat: Rounds over all images.
        warm_up: Batches before the measurement.
    """
    from rich.progress import track

    timers = {name: StageTimer(predictor) for name, predictor in predictors.items()}
    batches = [images[i : i + batch_size] for i in range(0, len(images), batch_size)]
    memory = {name: timer.peak_memory(batches[0]) for name, timer in timers.items()}
    for timer in timers.values():
        for _ in range(warm_up):
            timer.run(batches[0])
    samples: dict[str, list[Seconds]] = {name: [] for name in timers}
    for _ in track(range(repeat), 'measuring', transient=True, update_period=1.0):
        for batch in batches:
            for name, timer in timers.items():
                samples[name].append(timer.run(batch))
    reading = next(iter(predictors.values())).reading
    pixels = repeat * sum(math.prod(read_image(path, reading=reading).shape[:2]) for path in images)
    return {
        name: summarize(taken, images=repeat * len(images), pixels=pixels, memory=memory[name])
        for name, taken in samples.items()
    }


def summarize(samples: Sequence[Seconds], *, images: int, pixels: int, memory: tuple[int | None, str]) -> Summary:
    """Combine the ``samples`` of all batches, one or more, with ``images`` images of ``pixels`` pixels in total."""
    totals = [sum(sample.values()) for sample in samples]
    elapsed = sum(totals)
    stages = {}
    for stage in samples[0]:
        seconds = [sample[stage] for sample in samples]
        p50, p95 = np.percentile(seconds, (50, 95)).tolist()
        stages[stage] = (p50, p95, sum(seconds) / elapsed)
    p50, p95 = np.percentile(totals, (50, 95)).tolist()
    return Summary(len(samples), p50, p95, images / elapsed, pixels / 1e6 / elapsed, stages, *memory)


def _tensor_growth(run: Callable[[], Any]) -> int:
    """Bytes of CPU tensors at the peak of ``run``, above those before."""
    import torch

    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=False) as profile:
        run()
    events = profile.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == '[memory]')
    return max(itertools.accumulate((change for _, change in changes), initial=0))


def resident_growth(run: Callable[[], Any]) -> int | None:
    """Peak of the resident memory of this process during ``run``, above that before; None except on Linux."""

    def peak() -> int:
        lines = Path('/proc/self/status').read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith('VmHWM:'))

    try:
        Path('/proc/self/clear_refs').write_text('5')  # resets the peak
        before = peak()
    except (OSError, StopIteration):
        run()
        return None
    run()
    return peak() - before


def generated_image(folder: Path, size: tuple[int, int]) -> Path:
    """Write a reproducible photo-like JPEG of ``size`` = (height, width): smooth colours with noise."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (9, 16, 3), dtype=np.uint8)
    image = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)
    noisy = image.astype(np.int16) + generator.integers(-12, 13, image.shape, dtype=np.int16)
    path = folder / f'generated_{size[0]}x{size[1]}.jpg'
    write_image(path, noisy.clip(0, 255).astype(np.uint8))
    return path

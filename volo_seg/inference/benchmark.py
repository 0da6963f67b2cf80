"""How long a predictor takes, stage by stage, and how much memory."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from volo_seg.errors import UserError
from volo_seg.imageio import read_image, write_image
from volo_seg.inference.base import BasePredictor
from volo_seg.inference.onnx_predictor import OnnxPredictor

STAGES = ('load', 'preprocess', 'backbone', 'neck', 'head', 'network', 'resize')
"""Read and decode; resize and normalise; the parts of the network (or all of it, where an ONNX file hides its parts);
enlarge the logits and take labels."""


@dataclass(frozen=True)
class Sample:
    """One batch: seconds of each stage."""

    seconds: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


@dataclass(frozen=True)
class Memory:
    """Bytes at the worst moment of a batch, None if it cannot be told, and what was counted."""

    peak: int | None
    counted: str


@dataclass(frozen=True)
class Summary:
    """Of all batches of a predictor; times in seconds.

    Attributes:
        samples, images: Batches, and images in them.
        median, high: The 50th and 95th percentile of a batch's time.
        images_a_second, megapixels_a_second: Of the images as they are on disk.
        memory: Bytes at the worst moment of a batch; see :class:`Memory`.
        stages: (median, 95th percentile, share of all time) of each stage.
    """

    samples: int
    images: int
    median: float
    high: float
    images_a_second: float
    megapixels_a_second: float
    memory: Memory
    stages: dict[str, tuple[float, float, float]]


class Timed:
    """A predictor whose stages are timed.

    Args:
        predictor: Its parts are wrapped in place; what they give stays the same.
    """

    def __init__(self, predictor: BasePredictor) -> None:
        self.predictor = predictor
        self.seconds: dict[str, float] = {}
        self._wait: Callable[[], None] = lambda: None
        self.on_gpu = False
        if isinstance(predictor, OnnxPredictor):
            self._time(predictor, 'make_input', 'preprocess')
            self._time(predictor, 'run', 'network')
        else:
            self._time_model(predictor)

    def _time_model(self, predictor: Any) -> None:
        import torch

        self.on_gpu = predictor.device.type == 'cuda'
        if self.on_gpu:
            self._wait = lambda: torch.cuda.synchronize(predictor.device)
        parts = {'data_preprocessor': 'preprocess', 'backbone': 'backbone', 'neck': 'neck', 'decode_head': 'head'}
        for name, stage in parts.items():
            if getattr(predictor.model, name, None) is not None:
                self._time(getattr(predictor.model, name), 'forward', stage)

    def _time(self, owner: Any, method: str, stage: str) -> None:
        function = getattr(owner, method)

        def timed(*args: Any, **keywords: Any) -> Any:
            self._wait()
            start = time.perf_counter()
            result = function(*args, **keywords)
            self._wait()
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
            return result

        setattr(owner, method, timed)

    def batch(self, paths: Sequence[str | Path]) -> Sample:
        """Segment the images at ``paths`` as one batch.

        Raises:
            UserError: One cannot be read, or the network sees them at different sizes.
        """
        self.seconds = {}
        start = time.perf_counter()
        images = [read_image(path) for path in paths]
        loaded = time.perf_counter()
        prepared = [self.predictor._prepare(image) for image in images]
        ready = time.perf_counter()
        if len({key for key, _ in prepared}) > 1:
            raise UserError(f'{paths[0]} and the next images differ in size and make no batch; set --batch-size 1')
        self.predictor._segment([item for _, item in prepared], confidence=False, probabilities=False)
        self._wait()
        done = time.perf_counter()
        rest = done - ready - sum(self.seconds.values())
        self.seconds['preprocess'] = self.seconds.get('preprocess', 0.0) + ready - loaded
        found = {'load': loaded - start, **self.seconds, 'resize': rest}
        return Sample({stage: found[stage] for stage in STAGES if stage in found})


def measure(
    predictors: Mapping[str, BasePredictor],
    images: Sequence[str | Path],
    *,
    batch_size: int = 1,
    repeat: int = 10,
    warm_up: int = 1,
) -> dict[str, Summary]:
    """Time each of ``predictors`` on ``images``, side by side: batch after batch goes through all of them.

    Args:
        predictors: By name; they are changed (see :class:`Timed`).
        images: Paths, taken in order; the last batch may be smaller.
        batch_size: Images in a batch.
        repeat: Rounds over all images.
        warm_up: Batches that each does first, unmeasured.
    """
    from rich.progress import track

    timed = {name: Timed(predictor) for name, predictor in predictors.items()}
    batches = [images[i : i + batch_size] for i in range(0, len(images), batch_size)]
    memory = {name: peak_memory(one, batches[0]) for name, one in timed.items()}
    for one in timed.values():
        for _ in range(warm_up):
            one.batch(batches[0])
    samples: dict[str, list[Sample]] = {name: [] for name in timed}
    for _ in track(range(repeat), 'measuring', transient=True, update_period=1.0):
        for batch in batches:
            for name, one in timed.items():
                samples[name].append(one.batch(batch))
    pixels = repeat * sum(math.prod(read_image(path).shape[:2]) for path in images)
    return {
        name: summarise(taken, images=repeat * len(images), pixels=pixels, memory=memory[name])
        for name, taken in samples.items()
    }


def summarise(samples: Sequence[Sample], *, images: int, pixels: int, memory: Memory) -> Summary:
    """Put ``samples``, one or more, together; they saw ``images`` images of ``pixels`` pixels in all."""
    totals = [sample.total for sample in samples]
    elapsed = sum(totals)
    stages = {}
    for stage in samples[0].seconds:
        seconds = [sample.seconds[stage] for sample in samples]
        stages[stage] = (percentile(seconds, 50), percentile(seconds, 95), sum(seconds) / elapsed)
    return Summary(
        len(samples),
        images,
        percentile(totals, 50),
        percentile(totals, 95),
        images / elapsed,
        pixels / 1e6 / elapsed,
        memory,
        stages,
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """Interpolated between the nearest values; of a single value, that value."""
    return float(np.percentile(np.asarray(values), percent))


def peak_memory(timed: Timed, paths: Sequence[str | Path]) -> Memory:
    """Run one batch for its memory: best the first one, as memory that a process holds on to grows only once."""
    if timed.on_gpu:
        import torch

        torch.cuda.reset_peak_memory_stats()
        timed.batch(paths)
        return Memory(torch.cuda.max_memory_allocated(), 'tensors on the GPU, weights included')
    if isinstance(timed.predictor, OnnxPredictor):
        return Memory(_resident_growth(lambda: timed.batch(paths)), 'growth of the resident memory in the first batch')
    return Memory(_tensor_growth(lambda: timed.batch(paths)), 'tensors, without the weights')


def _tensor_growth(run: Callable[[], Any]) -> int:
    """Bytes of CPU tensors alive at the worst moment of ``run`` above those before it."""
    import torch

    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=False
    ) as profile:
        run()
    events = profile.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == '[memory]')
    return max(itertools.accumulate((change for _, change in changes), initial=0))


def _resident_growth(run: Callable[[], Any]) -> int | None:
    """Highest resident memory of this process during ``run`` above that before it; Linux alone can tell."""
    try:
        Path('/proc/self/clear_refs').write_text('5')  # the highest size so far is the present one again
        before = _highest_resident()
    except OSError:
        before = None
    run()
    return None if before is None else (_highest_resident() or before) - before


def _highest_resident() -> int | None:
    lines = Path('/proc/self/status').read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith('VmHWM:')), None)


def generated_image(folder: Path, size: tuple[int, int]) -> Path:
    """Write a photo-like JPEG of ``size`` (height, width): smooth colours with some noise, the same each time."""
    import cv2

    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (9, 16, 3), dtype=np.uint8)
    image = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)
    noisy = image.astype(np.int16) + generator.integers(-12, 13, image.shape, dtype=np.int16)
    path = folder / f'generated_{size[0]}x{size[1]}.jpg'
    write_image(path, noisy.clip(0, 255).astype(np.uint8))
    return path

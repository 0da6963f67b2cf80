"""Memory of tensors and of the process, for tests that hold a bound on it."""

import gc
import tracemalloc
from pathlib import Path

import torch

STATM = Path('/proc/self/statm')
MIB = 2**20


def peak_bytes(run):
    """Bytes of tensors alive at the worst moment of ``run``, above those before."""
    run()
    with torch.profiler.profile(profile_memory=True, acc_events=False) as profile:
        run()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == '[memory]']
    alive = highest = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        highest = max(highest, alive)
    return highest


class Growth:
    """Compares the memory of this process at two steps of a loop.

    Args:
        first: Step of the first measurement, after warm-up.
        last: Step of the second measurement.
        traced: Whether to count Python objects and NumPy arrays too, which makes Python several times slower.
    """

    def __init__(self, *, first, last, traced=True):
        self.steps, self.traced, self.count, self.seen = (first, last), traced, 0, []

    def __enter__(self):
        if self.traced:
            tracemalloc.start()
        return self

    def __exit__(self, *_):
        tracemalloc.stop()

    def step(self):
        """Count one step; measure at the two chosen ones."""
        self.count += 1
        if self.count in self.steps:
            gc.collect()
            tensors = sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())
            resident = int(STATM.read_text().split()[1]) * 4096
            self.seen.append((tensors, tracemalloc.get_traced_memory()[0], resident))

    def check(self):
        """Assert that between the two steps no tensor was added, at most 1 MiB of objects and arrays, and at most
        16 MiB of resident memory."""
        assert len(self.seen) == 2, f'{self.count} steps'
        tensors, objects, resident = (last - first for first, last in zip(*self.seen, strict=True))
        assert tensors <= 0, f'{tensors} more tensors are alive'
        assert objects < MIB, f'{objects / MIB:.2f} MiB more of objects and arrays'
        assert resident < 16 * MIB, f'{resident / MIB:.1f} MiB more of resident memory'

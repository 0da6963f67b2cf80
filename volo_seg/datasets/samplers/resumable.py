"""Samplers that continue at any position of their order, and give each sample of a SeededDataset its own seed.

Positions count the samples of all processes together. With a :class:`.SeededDataset`, a sampler yields pairs
(index, seed), where the seed is derived from the run's seed and the position; with any other data set it yields
indices.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sized
from itertools import islice

from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmseg.registry import DATA_SAMPLERS

from volo_seg.datasets.seeded_dataset import SeededDataset
from volo_seg.seeding import SAMPLES, derive_seed

Draw = int | tuple[int, int]
"""An index, or an index and the seed of its sample."""


@DATA_SAMPLERS.register_module()
class ResumableInfiniteSampler(InfiniteSampler):
    """MMEngine's ``InfiniteSampler`` that starts at any position, also with another number of processes.

    Args:
        dataset, shuffle, seed: As in ``InfiniteSampler``.
    """

    def __init__(self, dataset: Sized, *, shuffle: bool = True, seed: int | None = None) -> None:
        super().__init__(dataset, shuffle, seed)
        self.start: int | None = None

    def __iter__(self) -> Iterator[Draw]:
        """The samples of this process, without end."""
        order = enumerate(self._infinite_indices())
        for position, index in islice(order, (self.start or 0) + self.rank, None, self.world_size):
            yield _draw(self, index, position)

    def start_at(self, position: int) -> None:
        """Start behind ``position`` samples of all processes; later calls of :meth:`skip` have no effect."""
        self.start = position

    def skip(self, num_samples: int) -> None:
        """Start behind ``num_samples`` samples of this process; the training loop calls it when it resumes."""
        if self.start is None:
            self.start = num_samples * self.world_size


@DATA_SAMPLERS.register_module()
class ResumableEpochSampler(DefaultSampler):
    """MMEngine's ``DefaultSampler`` for training by epochs, or by iterations over a finite order.

    Args:
        dataset, shuffle, seed, round_up: As in ``DefaultSampler``.
        batch_size, drop_last: Those of the data loader; only an iteration-based loop that resumes needs them, to know
            how many batches an epoch has.
    """

    def __init__(
        self,
        dataset: Sized,
        *,
        shuffle: bool = True,
        seed: int | None = None,
        round_up: bool = True,
        batch_size: int = 1,
        drop_last: bool = False,
    ) -> None:
        super().__init__(dataset, shuffle, seed, round_up)
        batches = self.num_samples / batch_size
        self.samples_per_epoch = batch_size * max(1, math.floor(batches) if drop_last else math.ceil(batches))
        self.first_epoch = self.skipped = 0

    def __iter__(self) -> Iterator[Draw]:
        """The samples of this process in the present epoch."""
        skipped, self.skipped = self.skipped, 0
        before = self.epoch * self.num_samples
        for place, index in islice(enumerate(super().__iter__()), skipped, None):
            yield _draw(self, index, (before + place) * self.world_size + self.rank)

    def skip(self, num_samples: int) -> None:
        """Start behind ``num_samples`` samples of this process; the training loop calls it when it resumes."""
        self.first_epoch, self.skipped = divmod(num_samples, self.samples_per_epoch)
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Start epoch ``epoch``, counted from where this process began."""
        super().set_epoch(self.first_epoch + epoch)


def _draw(sampler: InfiniteSampler | DefaultSampler, index: int, position: int) -> Draw:
    if isinstance(sampler.dataset, SeededDataset):
        return index, derive_seed(sampler.seed, SAMPLES, position)
    return index

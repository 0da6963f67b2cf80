"""Training data in an order, and with augmentations, that depend on the seed and on the place in the order alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from typing import Any

from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_dist_info
from mmseg.registry import DATA_SAMPLERS, DATASETS
from torch.utils.data import IterableDataset, Sampler

from volo_seg.config.validation import find_type
from volo_seg.engine.randomness import seed_sample

_OWN = ('dataset', 'seed')


class Draw(int):
    """An index into a data set that knows the place of the draw in the whole run."""

    number: int

    def __new__(cls, index: int, number: int) -> Draw:
        """The ``index`` drawn at place ``number``, counted over all processes."""
        draw = super().__new__(cls, index)
        draw.number = number
        return draw

    def __reduce__(self) -> tuple[type[Draw], tuple[int, int]]:
        """Keep the number on the way to a data-loading process."""
        return Draw, (int(self), self.number)


@DATA_SAMPLERS.register_module()
class NumberedSampler(Sampler):
    """Number what another sampler draws, and start in the middle without drawing data.

    MMEngine's InfiniteSampler deals one endless order to all processes in turn. That order is continued at any
    place, also with another number of processes. Any other sampler is taken as it is, round after round.

    Args:
        inner: Config of that sampler.
        dataset: What it draws from.
        seed: Of its order.
        batch_size: Images of one batch of this process.
        drop_last: Whether a last smaller batch of a round is left out.
    """

    def __init__(
        self, inner: dict[str, Any], *, dataset: Any, seed: int | None, batch_size: int = 1, drop_last: bool = False
    ) -> None:
        self.inner = DATA_SAMPLERS.build(inner, default_args=dict(dataset=dataset, seed=seed))
        self.rank, self.world_size = get_dist_info()
        self.batch_size, self.drop_last = batch_size, drop_last
        self.endless = type(self.inner) is InfiniteSampler
        self.start = 0
        self._placed = False
        self._round = self._first_round = self._skipped = 0

    def __len__(self) -> int:
        """As many as the inner sampler says."""
        return len(self.inner)

    def __iter__(self) -> Iterator[Draw]:
        """The draws of this process."""
        if self.endless:
            order = enumerate(self.inner._infinite_indices())
            for number, index in islice(order, self.start + self.rank, None, self.world_size):
                yield Draw(index, number)
            return
        before = (self._first_round + self._round) * len(self.inner)
        skipped, self._skipped = self._skipped, 0
        for place, index in islice(enumerate(self.inner), skipped, None):
            yield Draw(index, (before + place) * self.world_size + self.rank)

    def place(self, samples: int) -> None:
        """Start after the first ``samples`` of the endless order, all processes together; :meth:`skip` is void then."""
        self.start, self._placed = samples, True

    def skip(self, count: int) -> None:
        """Start after ``count`` draws of this process: what a training loop calls when it goes on."""
        if self.endless:
            self.start = self.start if self._placed else count * self.world_size
            return
        length = len(self.inner)
        rounded = length - length % self.batch_size if self.drop_last else _round_up(length, self.batch_size)
        self._first_round, self._skipped = divmod(count, max(rounded, 1))
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Start round ``epoch``, counted from where this process began."""
        self._round = epoch
        if hasattr(self.inner, 'set_epoch'):
            self.inner.set_epoch(self._first_round + epoch)


@DATASETS.register_module()
class SeededDataset:
    """A data set whose random augmentations of a draw depend on the seed and the draw's place in the run.

    Everything else is the data set's own.
    """

    def __init__(self, dataset: Any, *, seed: int) -> None:
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        self.seed = seed

    def __len__(self) -> int:
        """As many as the data set."""
        return len(self.dataset)

    def __getitem__(self, draw: int) -> Any:
        """Sample ``draw``, drawn with generators of its own if the draw is numbered."""
        if isinstance(draw, Draw):
            seed_sample(self.seed, draw.number)
        return self.dataset[int(draw)]

    def __getattr__(self, name: str) -> Any:
        if name in _OWN:  # while unpickling, before __init__
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OWN:
            object.__setattr__(self, name, value)
        else:
            setattr(self.dataset, name, value)


def make_resumable(loader: dict[str, Any], *, seed: int) -> dict[str, Any]:
    """Wrap the data set and the sampler in the config of a training loader; iterable data sets stay as they are."""
    dataset, sampler = loader.get('dataset'), loader.get('sampler')
    if not isinstance(dataset, dict) or not isinstance(sampler, dict):
        return loader
    kind = find_type(dataset['type'])
    if isinstance(kind, type) and issubclass(kind, IterableDataset):
        return loader
    sizes = {key: loader[key] for key in ('batch_size', 'drop_last') if key in loader}
    return {
        **loader,
        'dataset': dict(type=SeededDataset.__name__, dataset=dataset, seed=seed),
        'sampler': dict(type=NumberedSampler.__name__, inner=sampler, **sizes),
    }


def _round_up(value: int, step: int) -> int:
    return math.ceil(value / step) * step

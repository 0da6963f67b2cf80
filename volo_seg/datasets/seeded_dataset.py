"""A data set whose random augmentations are reproducible sample by sample."""

from __future__ import annotations

from typing import Any

from mmseg.registry import DATASETS

from volo_seg.seeding import seed_generators


@DATASETS.register_module()
class SeededDataset:
    """Wraps a training data set: the sampler gives each sample a seed, which its random transforms draw from.

    Augmentations then depend neither on the number of worker processes nor on where a run was interrupted. The samplers
    of :mod:`volo_seg.datasets.samplers` give seeds; with another sampler, this is the wrapped data set.

    Args:
        dataset: Data set, or the config of one.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        metainfo = getattr(self.dataset, 'metainfo', None)
        if metainfo is not None:
            self.metainfo = metainfo

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: int | tuple[int, int]) -> Any:
        """The sample at an index; for (index, seed), with all generators of this process seeded first."""
        if isinstance(draw, tuple):
            index, seed = draw
            seed_generators(seed)
            return self.dataset[index]
        return self.dataset[draw]

    def full_init(self) -> None:
        """Read the wrapped data set's list of files."""
        if hasattr(self.dataset, 'full_init'):
            self.dataset.full_init()

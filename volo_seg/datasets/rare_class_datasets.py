"""Data set wrappers for rare classes: images with them are drawn more often, or regions of them are pasted."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from mmengine.dataset import BaseDataset, ConcatDataset
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.registry import DATASETS

from volo_seg.datasets.class_pixels import class_pixels
from volo_seg.errors import UserError

RARE_CLASS = 'rare_class'
"""Key of a sample: the class that ``RandomCrop`` of this package keeps in the crop."""


class RareClasses:
    """A data set of which classes are drawn by how rare they are, and samples that have them.

    Class c is drawn with a probability proportional to exp((1 - f_c) / temperature), where f_c is its share of the
    labelled pixels, and then one of the samples that have ``min_pixels`` pixels of it (or any, if none has as many),
    all alike. Classes that do not occur are never drawn. Source: arXiv 2111.14887.

    The numbers are drawn from NumPy's generator, which a :class:`.SeededDataset` around this one seeds for each sample:
    then the samples depend on the seed and on the position in the run alone.
    """

    def __init__(self, dataset: Any, *, temperature: float, min_pixels: int) -> None:
        if not temperature > 0:
            raise UserError(f'{type(self).__name__}: temperature={temperature} must be above 0')
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        self.metainfo = self.dataset.metainfo
        self.temperature, self.min_pixels = temperature, min_pixels
        self.full_init()

    def full_init(self) -> None:
        """Read the wrapped data set's list of files, and count the classes in its label images.

        Raises:
            UserError: A label image is missing or cannot be read, or no label is a class.
        """
        self.dataset.full_init()
        counts = class_pixels(self.dataset)
        pixels = counts.sum(0)
        if not pixels.any():
            raise UserError(f'{type(self).__name__}: the training data has no labelled pixel; run volo-seg check')
        self.probabilities = class_probabilities(pixels, temperature=self.temperature)
        enough = np.where((counts >= self.min_pixels).any(0), self.min_pixels, 1)
        self.holders = [np.flatnonzero(counts[:, label] >= enough[label]) for label in range(counts.shape[1])]

    def __len__(self) -> int:
        return len(self.dataset)

    def get_data_info(self, index: int) -> dict[str, Any]:
        """The files of sample ``index`` of the wrapped data set."""
        return self.dataset.get_data_info(index)

    def draw_class(self) -> tuple[int, int]:
        """A class and the index of a sample that has it."""
        label = int(np.random.choice(len(self.probabilities), p=self.probabilities))  # noqa: NPY002
        return label, int(np.random.choice(self.holders[label]))  # noqa: NPY002

    def draw(self, index: int) -> tuple[Any, dict[str, Any]]:
        """The data set of a drawn sample, whose pipeline it passes, and its files."""
        raise NotImplementedError

    def finish(self, source: Any, results: dict[str, Any] | None, start: int) -> Any:
        """Apply the steps of the pipeline of ``source`` from ``start`` on; None if one of them refuses the sample."""
        for step in source.pipeline.transforms[start:]:
            results = None if results is None else step(results)
        return results

    def sample(self, index: int) -> Any:
        """A sample, None if the pipeline refuses it."""
        source, results = self.draw(index)
        return self.finish(source, results, 0)

    def __getitem__(self, index: int) -> Any:
        """A drawn sample; another one where the pipeline refuses it, as MMEngine's data sets do."""
        for _ in range(1 + getattr(_source(self.dataset, index)[0], 'max_refetch', 1000)):
            sample = self.sample(index)
            if sample is not None:
                return sample
        raise UserError(f'{type(self).__name__}: the pipeline gives no sample; run volo-seg check')


@DATASETS.register_module()
class RareClassDataset(RareClasses):
    """Draws images with rare classes more often, whatever index is asked for: the rare class sampling of DAFormer.

    A class is drawn first and then an image that has it; ``RandomCrop`` with ``_scope_='volo_seg'`` then cuts crops
    that contain the class. A smaller ``temperature`` prefers rare classes more: 0.01 is the paper's and draws classes
    with a few per cent of the pixels alone, 0.1 draws a class with 1 % about ten times as often as one with 25 %.

    The pixels of the classes are counted once and cached (:func:`.class_pixels`).

    Args:
        dataset: Data set, or the config of one; it may join, repeat or balance others.
        temperature: T in the probabilities of the classes, exp((1 - share) / T).
        min_pixels: Pixels of the class that an image must have to be drawn for it, if any image has as many.
    """

    def __init__(self, dataset: Any, *, temperature: float = 0.01, min_pixels: int = 100) -> None:
        super().__init__(dataset, temperature=temperature, min_pixels=min_pixels)

    def draw(self, index: int) -> tuple[Any, dict[str, Any]]:
        label, drawn = self.draw_class()
        source, place = _source(self.dataset, drawn)
        return source, {**source.get_data_info(place), RARE_CLASS: label}


@DATASETS.register_module()
class CopyPasteDataset(RareClasses):
    """Pastes regions of rare classes, with their labels, from other images into training images.

    A class and a donor image are drawn as in :class:`RareClassDataset`. Of the donor's connected components of the
    class, up to ``max_regions`` are pasted, whole and unchanged: at the height where they were (as a share of the
    height of the image), at a random column, mirrored in half of the cases, scaled by the ratio of the heights of both
    images. Components that touch the border of the donor are cut objects and stay out. Pasting happens before the other
    steps of the pipeline; ``RandomCrop`` with ``_scope_='volo_seg'`` then cuts crops that contain the class.

    Args:
        dataset: Data set, or the config of one; a ``RareClassDataset`` is possible.
        prob: Share of the images that receive regions.
        max_regions: Largest number of components pasted into an image.
        min_pixels: Smallest area of a component in pixels of the donor.
        temperature: As in ``RareClassDataset``.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        prob: float = 0.5,
        max_regions: int = 3,
        min_pixels: int = 100,
        temperature: float = 0.01,
    ) -> None:
        if not 0 <= prob <= 1 or max_regions < 1:
            raise UserError(f'CopyPasteDataset: prob={prob} is not in [0, 1], or max_regions={max_regions} is below 1')
        self.prob, self.max_regions = prob, max_regions
        super().__init__(dataset, temperature=temperature, min_pixels=min_pixels)

    def draw(self, index: int) -> tuple[Any, dict[str, Any]]:
        if isinstance(self.dataset, RareClasses):
            return self.dataset.draw(index)
        source, place = _source(self.dataset, index)
        return source, source.get_data_info(place)

    def sample(self, index: int) -> Any:
        source, results = self.draw(index)
        if np.random.rand() >= self.prob:  # noqa: NPY002
            return self.finish(source, results, 0)
        loaded, steps = _load(source, results)
        label, drawn = self.draw_class()
        donor_source, place = _source(self.dataset, drawn)
        donor, _ = _load(donor_source, donor_source.get_data_info(place))
        if loaded is not None and donor is not None:
            self.paste(loaded, donor['img'], donor['gt_seg_map'], label)
        return self.finish(source, loaded, steps)

    def paste(
        self, results: dict[str, Any], image: npt.NDArray[Any], labels: npt.NDArray[np.uint8], label: int
    ) -> None:
        """Paste components of ``label`` of a donor (H, W, C), (H, W) into ``results``, whose crop then keeps it."""
        _, parts, stats, _ = cv2.connectedComponentsWithStats((labels == label).astype(np.uint8), connectivity=8)
        height, width = labels.shape
        lefts, tops, widths, heights, areas = stats.T
        inside = (lefts > 0) & (tops > 0) & (lefts + widths < width) & (tops + heights < height)
        found = np.flatnonzero(inside & (areas >= self.min_pixels))
        found = found[found > 0]  # 0 is everything else
        if not len(found):
            return
        count = min(len(found), np.random.randint(1, self.max_regions + 1))  # noqa: NPY002
        results['img'], results['gt_seg_map'] = results['img'].copy(), results['gt_seg_map'].copy()
        for part in np.random.choice(found, count, replace=False):  # noqa: NPY002
            left, top, across, down = stats[part, :4]
            box = slice(top, top + down), slice(left, left + across)
            if _paste(results, image[box], parts[box] == part, label, top / height, height):
                results[RARE_CLASS] = label


def class_probabilities(pixels: npt.ArrayLike, *, temperature: float) -> npt.NDArray[np.float64]:
    """The probability (C,) of each class from its number of ``pixels`` (C,); 0 for those that do not occur."""
    pixels = np.asarray(pixels, np.float64)
    logits = np.where(pixels > 0, (1 - pixels / pixels.sum()) / temperature, -np.inf)
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def _source(dataset: Any, index: int) -> tuple[Any, int]:
    """The data set with a pipeline that has sample ``index`` of ``dataset``, and its index there."""
    while not isinstance(dataset, BaseDataset):
        if isinstance(dataset, ConcatDataset):
            part, index = dataset._get_ori_dataset_idx(index)
            dataset = dataset.datasets[part]
        elif hasattr(dataset, '_get_ori_dataset_idx'):  # those that repeat samples
            index, dataset = dataset._get_ori_dataset_idx(index), dataset.dataset
        elif isinstance(dataset, RareClassDataset):
            dataset = dataset.dataset
        else:
            raise UserError(
                f'{type(dataset).__name__} cannot be inside RareClassDataset or CopyPasteDataset; put it around them'
            )
    return dataset, index


def _load(source: Any, results: dict[str, Any] | None) -> tuple[dict[str, Any] | None, int]:
    """``results`` after the steps of the pipeline up to the one that loads labels, and the number of these steps."""
    for count, step in enumerate(source.pipeline.transforms, 1):
        results = None if results is None else step(results)
        if isinstance(step, LoadAnnotations):
            return results, count
    raise UserError(f'CopyPasteDataset: the pipeline of {type(source).__name__} does not load labels; add LoadLabels')


def _paste(
    results: dict[str, Any], image: npt.NDArray[Any], mask: npt.NDArray[Any], label: int, top: float, donor_height: int
) -> bool:
    """Paste the pixels ``mask`` (h, w) of ``image`` (h, w, C); False if they do not fit or vanish."""
    target = results['gt_seg_map']
    scale = target.shape[0] / donor_height
    height, width = (max(1, round(side * scale)) for side in mask.shape)
    rows, columns = target.shape[0] - height, target.shape[1] - width
    if rows < 0 or columns < 0:
        return False
    if (height, width) != mask.shape:
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        mask = cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0
    if np.random.rand() < 0.5:  # noqa: NPY002
        image, mask = image[:, ::-1], mask[:, ::-1]
    row, column = min(round(top * target.shape[0]), rows), np.random.randint(0, columns + 1)  # noqa: NPY002
    box = slice(row, row + height), slice(column, column + width)
    results['img'][box][mask] = image[mask]
    target[box][mask] = label
    return bool(mask.any())

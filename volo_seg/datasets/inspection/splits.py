"""Read the splits of a config: pairs of files, and how training maps label values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

from volo_seg.config.load import datasets
from volo_seg.datasets.folder_dataset import FolderDataset
from volo_seg.datasets.masks import ColourTable, Labels, label_lookup
from volo_seg.datasets.pairs import Pairing, pair_folders
from volo_seg.datasets.transforms.loading import reading_of
from volo_seg.imageio import Reading

SPLITS = ('train', 'val', 'test')


@dataclass(frozen=True)
class Split:
    """A data set of a split: its files and how its labels are read."""

    name: str
    place: str  # dotted key of the data set in the config
    kind: str  # the data set's type
    classes: tuple[str, ...]
    ignore_index: int
    reduce_zero_label: bool
    lookup: Labels  # (256,): label value in a file -> label in training
    mask_suffix: str
    table: ColourTable | None
    pairing: Pairing
    palette: tuple[tuple[int, ...], ...] = ()  # a colour per class, if the data set or its config gives them
    reading: Reading | None = None  # how its pipeline reads image files, if it starts with LoadImageFromFile

    def in_range(self, value: int) -> bool:
        """Whether label ``value`` of a file is a class or ignored."""
        seen = int(self.lookup[value])
        return seen < len(self.classes) or seen == self.ignore_index


def split_names(config: Config) -> list[str]:
    """The splits of ``config``; test is left out if it has the files of val."""
    names = [name for name in SPLITS if config.get(f'{name}_dataloader') is not None]
    if 'val' in names and 'test' in names and _files(config, 'val') == _files(config, 'test'):
        names.remove('test')
    return names


def read_splits(config: Config, name: str) -> Iterator[Split]:
    """Yield the data set of the split ``name``, or the data sets of which it consists."""
    loader = config.get(f'{name}_dataloader')
    if loader is not None:
        for place, dataset in datasets(loader.dataset, f'{name}_dataloader.dataset'):
            yield read_split(name, place, dataset)


def read_split(name: str, place: str, dataset: Mapping[str, Any]) -> Split:
    """Build ``dataset``, which the config has at ``place``, and list its files, without opening them."""
    built = DATASETS.build({**dataset, 'lazy_init': True, 'pipeline': []})
    pipeline, palette = dataset.get('pipeline'), built.metainfo.get('palette')
    if isinstance(built, FolderDataset) and not (
        dataset.get('palette') or dict(dataset.get('metainfo') or {}).get('palette')
    ):
        palette = None  # colours for drawing that nobody chose
    return Split(
        name=name,
        place=place,
        kind=type(built).__name__,
        classes=tuple(built.metainfo.get('classes') or ()),
        ignore_index=built.ignore_index,
        reduce_zero_label=built.reduce_zero_label,
        lookup=label_lookup(reduce_zero_label=built.reduce_zero_label, label_map=built.label_map),
        mask_suffix=built.seg_map_suffix,
        table=getattr(built, 'table', None),
        palette=tuple(tuple(colour) for colour in palette or ()),
        reading=reading_of(pipeline[0]) if pipeline else None,
        pairing=_pair(built),
    )


def _files(config: Config, name: str) -> Any:
    dataset = config[f'{name}_dataloader'].dataset
    keys = ('data_root', 'data_prefix', 'ann_file', 'indices')
    return dataset if 'data_prefix' not in dataset else [dataset.get(key) for key in keys]


def _pair(built: Any) -> Pairing:
    if isinstance(built, FolderDataset):
        return built.pair()
    if built.ann_file or type(built).load_data_list is not BaseSegDataset.load_data_list:
        return _listed(built.load_data_list())
    mask_dir = built.data_prefix.get('seg_map_path')
    return pair_folders(
        Path(built.data_prefix['img_path']),
        Path(mask_dir) if mask_dir else None,
        image_suffixes=(built.img_suffix,),
        mask_suffix=built.seg_map_suffix,
    )


def _listed(entries: Sequence[Mapping[str, Any]]) -> Pairing:
    """The pairs of a data set that lists its files. Label files that are not in its list are not reported."""
    found = Pairing()
    for entry in entries:
        image, mask = entry['img_path'], entry.get('seg_map_path')
        if mask is None or Path(mask).is_file():
            found.pairs.append((image, mask))
        else:
            found.unlabelled.append((image, mask))
    return found

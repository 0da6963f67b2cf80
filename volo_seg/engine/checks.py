"""What is checked before a run is built, so that a mistake costs a second and one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmseg.registry import DATASETS

from volo_seg.errors import UserError


def check_run(config: Config, splits: Sequence[str]) -> None:
    """Check the data folders and the class count of ``config`` for ``splits`` (of 'train', 'val', 'test').

    Raises:
        UserError: A folder is missing or empty of what the data set looks for, or the model's class count is not the
            data set's.
    """
    for split in splits:
        loader = config.get(f'{split}_dataloader')
        if loader is None:
            raise UserError(f'the config has no {split}_dataloader; name one, or a config that has it')
        _check_folders(split, loader.dataset)
        fill_class_count(config, _describe(loader.dataset).metainfo.get('classes'))
        _check_class_count(config, split, loader.dataset)


def fill_class_count(config: Config, classes: Sequence[str] | None) -> None:
    """Give each head of ``config`` that names no ``num_classes`` the number of ``classes``."""
    for name in ('decode_head', 'auxiliary_head'):
        head = config.model.get(name)
        if classes and isinstance(head, dict) and 'num_classes' not in head:
            head['num_classes'] = len(classes)


def _check_folders(split: str, dataset: dict[str, Any]) -> None:
    root = Path(dataset.get('data_root') or '.')
    place = f'{split}_dataloader.dataset'
    fix = f'give the right folder by --data-root or --cfg-options {place}.data_root=…'
    if not root.is_dir():
        raise UserError(f'data root {str(root)!r} ({place}) does not exist; {fix}')
    for key, prefix in (dataset.get('data_prefix') or {}).items():
        folder = root / prefix
        if not folder.is_dir():
            raise UserError(f'folder {str(folder)!r} ({place}.data_prefix.{key}) does not exist; {fix}')
    if not dataset.get('ann_file'):
        _check_files(place, dataset, root)


def _check_files(place: str, dataset: dict[str, Any], root: Path) -> None:
    built = _describe(dataset)
    prefix = dataset.get('data_prefix') or {}
    for key, suffix in (('img_path', built.img_suffix), ('seg_map_path', built.seg_map_suffix)):
        if key not in prefix:
            continue
        folder = root / prefix[key]
        suffixes = (suffix,) if isinstance(suffix, str) else tuple(suffix)
        if not any(path.name.endswith(suffixes) for path in folder.rglob('*')):
            hint = ''
            if 'labelTrainIds' in suffixes[0]:
                hint = '; run tools/dataset_converters/cityscapes.py on the data root first'
            raise UserError(f'folder {str(folder)!r} ({place}) holds no file *{" or *".join(suffixes)}{hint}')


def _check_class_count(config: Config, split: str, dataset: dict[str, Any]) -> None:
    classes = _describe(dataset).metainfo.get('classes')
    head = config.model.get('decode_head')
    if classes is None or head is None or len(classes) == head.get('num_classes'):
        return
    raise UserError(
        f'model.decode_head.num_classes={head.get("num_classes")}, but {split}_dataloader.dataset '
        f'({dataset["type"]}) has {len(classes)} classes; set num_classes of decode_head and auxiliary_head to '
        f'{len(classes)}'
    )


def _describe(dataset: dict[str, Any]) -> Any:
    """The data set of a config without its files read: its classes and suffixes."""
    return DATASETS.build({**dataset, 'lazy_init': True, 'pipeline': []})

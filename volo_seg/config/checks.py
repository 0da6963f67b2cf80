"""Check a config, its data folders and the weights files it names before a run is built."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS

from volo_seg.checkpoints.mmengine_loaders import load_from_config
from volo_seg.config.agreement import check_agreement, check_class_count, check_same_classes, heads
from volo_seg.config.load import datasets
from volo_seg.config.losses import check_channels_of_losses, check_losses
from volo_seg.config.validation import accepted_keys, check_names, find_type, walk
from volo_seg.errors import UserError, prefixed
from volo_seg.io import find_files

INITIALIZERS = ('Pretrained', 'PretrainedInit', 'mmengine.Pretrained', 'mmengine.PretrainedInit')


def check_run(config: Config, splits: Sequence[str]) -> None:
    """Check ``config``, its data folders and the class count for ``splits`` (of 'train', 'val', 'test').

    Raises:
        UserError: Values of the config disagree or name what does not exist, a folder is missing or has no files of the
            data set, data sets have different class lists, or model and data set different numbers of classes.
    """
    check_config(config, splits)
    init_default_scope(config.get('default_scope', 'mmseg'))  # an earlier run in this process may have set another
    known: tuple[str, Sequence[str]] | None = None
    for split in splits:
        for place, dataset in datasets(config[f'{split}_dataloader'].dataset, f'{split}_dataloader.dataset'):
            if not hasattr(find_type(dataset['type']), 'METAINFO'):
                continue  # a data set of someone else, with rules of its own
            _check_folders(place, dataset)
            classes = _describe(place, dataset).metainfo.get('classes')
            if classes is not None:
                known = known or (place, classes)
                check_same_classes(*known, place, classes)
                fill_class_count(config, classes)
                check_class_count(config, place, dataset['type'], len(classes))
    if 'train' in splits:
        check_channels_of_losses(config)


def check_config(config: Config, splits: Sequence[str]) -> None:
    """Check ``config`` without the data.

    Raises:
        UserError: The model or a loader is missing, a type is not registered, a key is unknown, or two values disagree.
    """
    for part in ('model', *(f'{split}_dataloader' for split in splits)):
        if config.get(part) is None:
            raise UserError(f'the config has no {part}; name one, or a config that has it')
    check_names(config, splits)
    for split in splits:
        for place, step in walk(config[f'{split}_dataloader'], f'{split}_dataloader'):
            if step.get('decode_backend') == 'pickle':
                raise UserError(f"{place}.decode_backend='pickle' would run code of the data files: use 'numpy'")
    check_losses(config)
    check_agreement(config, splits)


def fill_class_count(config: Config, classes: Sequence[str] | None) -> None:
    """Set ``num_classes`` to the number of ``classes`` in each head that takes it and does not have it."""
    for place, head in heads(config.model):
        named = any('num_classes' in part for _, part in walk(head, place))
        kind = find_type(head.get('type'))
        if classes and not named and (kind is None or 'num_classes' in accepted_keys(kind)):
            head['num_classes'] = len(classes)


def _check_folders(place: str, dataset: dict[str, Any]) -> None:
    root = Path(dataset.get('data_root') or '.')
    fix = f'give the right folder by --data-root or --cfg-options {place}.data_root=…'
    if not root.is_dir():
        raise UserError(f'data root {str(root)!r} ({place}) does not exist; {fix}')
    for key, prefix in _prefixes(dataset).items():
        folder = root / prefix
        if not folder.is_dir():
            raise UserError(f'folder {str(folder)!r} ({place}.data_prefix.{key}) does not exist; {fix}')
    ann_file = dataset.get('ann_file')
    if not ann_file:
        _check_files(place, dataset, root)
    elif not (root / ann_file).exists():
        raise UserError(f'list {str(root / ann_file)!r} ({place}.ann_file) does not exist; write it, or leave it out')


def _prefixes(dataset: dict[str, Any]) -> dict[str, str]:
    """The folders in which a data set looks for files, without those that a list or a template replaces."""
    if str(dataset.get('ann_file') or '').endswith(('.csv', '.jsonl')):
        return {}
    unused = 'seg_map_path' if dataset.get('mask_template') else None
    return {key: prefix for key, prefix in (dataset.get('data_prefix') or {}).items() if key != unused}


def _check_files(place: str, dataset: dict[str, Any], root: Path) -> None:
    built = _describe(place, dataset)
    prefix = _prefixes(dataset)
    for key, suffix in (('img_path', built.img_suffix), ('seg_map_path', built.seg_map_suffix)):
        if key not in prefix:
            continue
        folder = root / prefix[key]
        suffixes = (suffix,) if isinstance(suffix, str) else tuple(suffix)
        if not find_files(folder, suffixes=suffixes):
            files = find_files(folder, suffixes=('',))
            ends = Counter(path.suffix for path in files if path.suffix)
            name = 'img_suffix' if key == 'img_path' else 'seg_map_suffix'
            hint = ''.join(f'; its files end in {end}: set {place}.{name}={end}' for end, _ in ends.most_common(1))
            if 'labelTrainIds' in suffixes[0]:
                hint = '; run tools/dataset_converters/cityscapes.py on the data root first'
            raise UserError(f'folder {str(folder)!r} ({place}) holds no file *{" or *".join(suffixes)}{hint}')


def _describe(place: str, dataset: dict[str, Any]) -> Any:
    """Build the data set without reading its files, for its classes and suffixes."""
    try:
        return DATASETS.build({**dataset, 'lazy_init': True, 'pipeline': []})
    except TypeError as error:  # a data set of another package may not take them
        raise UserError(f'{place} ({dataset["type"]}) does not take these arguments: {error}') from error


def check_weights(config: Config) -> None:
    """Check that each weights file that ``config`` names for training can be read.

    Raises:
        UserError: A file is missing, damaged or refused; the message starts with its key.
    """
    for key, source in named_weights(config):
        with prefixed(f'{key}={source!r}'):
            load_from_config(source)


def named_weights(config: Config) -> Iterator[tuple[str, str]]:
    """Yield (dotted key, path, URL or zoo name) of each weights file that ``config`` names for training.

    The checkpoint of a resumed run is left out, because a flag names it, and it also has optimizer state.
    """
    for place, node in walk(config.model, 'model'):
        keys = ('checkpoint',) if node['type'] in INITIALIZERS else ('pretrained', 'checkpoint_path')
        yield from ((f'{place}.{key}', node[key]) for key in keys if _is_weights(node.get(key)))
    if not config.get('resume') and _is_weights(config.get('load_from')):
        yield 'load_from', config.load_from


def _is_weights(value: Any) -> bool:
    return (
        isinstance(value, str) and value != '' and not value.endswith('.npz')
    )  # the .npz files of timm contain arrays only

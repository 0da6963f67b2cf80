"""Find a config by path or by name, load it, and apply the command line to it."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict, DictAction
from mmengine.utils import import_modules_from_strings

from volo_seg.errors import UserError

PACKAGE = Path(__file__).resolve().parents[1]
OWN_TYPES = 'volo_seg.register'
"""The module that the shipped configs name in ``custom_imports``."""


def config_root() -> Path:
    """The folder that holds ``configs/``: the checkout when there is one, else what the wheel brought along."""
    checkout = PACKAGE.parent
    return checkout if (checkout / 'configs' / 'volo').is_dir() else PACKAGE / '.mim'


def shipped_configs() -> dict[str, Path]:
    """Name (without suffix) to path of every config that can be trained."""
    return {path.stem: path for path in sorted((config_root() / 'configs').glob('[!_]*/*.py'))}


def find_config(name: str) -> Path:
    """Return the config file that ``name`` means: a path, or the name of a shipped config.

    Raises:
        UserError: There is neither; the closest names are suggested.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = shipped_configs()
    stem = path.name.removesuffix('.py')
    if stem in shipped:
        return shipped[stem]
    close = difflib.get_close_matches(stem, shipped, n=3, cutoff=0.5)
    hint = f'did you mean {" or ".join(close)}?' if close else f'shipped names: {", ".join(shipped)}'
    raise UserError(f'config {name!r} is neither a file nor the name of a shipped config; {hint}')


def load_config(name: str, options: Sequence[str] | None = None) -> Config:
    """Load the config ``name`` and merge ``options`` (``key=value``, as in MMSegmentation) into it.

    All types of this package are registered first, whatever ``custom_imports`` the config has.

    Raises:
        UserError: No such config, one that does not parse, or an option that is no ``key=value``.
    """
    path = find_config(name)
    if path.suffix not in ('.py', '.json', '.yaml', '.yml'):
        raise UserError(f'config {name!r} ends in {path.suffix!r}; a config is a .py, .json or .yaml file')
    try:
        import_modules_from_strings([OWN_TYPES])
        config = Config.fromfile(path)
    except Exception as error:
        raise UserError(f'config {str(path)!r} cannot be read: {type(error).__name__}: {error}') from error
    _merge_options(config, parse_options(options or []))
    for split in ('train', 'val', 'test'):
        loader = config.get(f'{split}_dataloader')
        if loader and not loader.get('num_workers') and loader.get('persistent_workers'):
            loader.persistent_workers = False  # torch refuses workers that persist where there are none
    return config


def _merge_options(config: Config, options: Mapping[str, object]) -> None:
    """Merge ``options`` into ``config``; a dict replaces the value None that stands above the key of an option."""
    for option, value in options.items():
        node: Any = config
        for name in option.split('.')[:-1]:
            at = int(name) if isinstance(node, list) and name.isdigit() else name
            try:
                child = node[at]
            except (KeyError, IndexError):
                break  # a new key, or an index that MMEngine refuses
            if child is None:
                child = node[at] = ConfigDict()
            elif not isinstance(child, (dict, list)):
                raise UserError(
                    f'--cfg-options {option}={value}: {name!r} is {child!r} in the config and has no keys; '
                    'give a key that the config has'
                )
            node = node[at]
    try:
        config.merge_from_dict(dict(options))
    except (KeyError, TypeError) as error:
        raise UserError(f'--cfg-options {" ".join(options)}: {error.args[0]}') from error


def parse_options(options: Sequence[str]) -> dict[str, object]:
    """Parse ``key=value`` words into a flat dict with dotted keys, by the rules of MMEngine's ``--cfg-options``."""
    for option in options:
        if '=' not in option.lstrip('='):
            raise UserError(f'--cfg-options {option!r} is not of the form key=value')
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='*', action=DictAction, default={})
    return parser.parse_args(['--cfg-options', *options]).cfg_options or {}


def datasets(dataset: Mapping[str, Any], place: str) -> Iterator[tuple[str, Any]]:
    """(dotted place, dict) of the data sets that read files, inside wrappers that repeat, join or mix them."""
    if isinstance(dataset.get('dataset'), Mapping):
        yield from datasets(dataset['dataset'], f'{place}.dataset')
    elif isinstance(dataset.get('datasets'), (list, tuple)):
        for index, part in enumerate(dataset['datasets']):
            yield from datasets(part, f'{place}.datasets.{index}')
    else:
        yield place, dataset


def set_data_root(config: Config, data_root: str) -> None:
    """Point every data set of ``config``, those inside wrappers too, at the folder ``data_root``."""
    for split in ('train', 'val', 'test'):
        loader = config.get(f'{split}_dataloader') or {}
        for _, dataset in datasets(loader.get('dataset') or {}, split):
            dataset['data_root'] = data_root


def set_mask_template(config: Config, template: str) -> None:
    """Let every ``FolderDataset`` of ``config`` find masks by ``template``; see its ``mask_template``.

    Raises:
        UserError: ``config`` has another data set.
    """
    for split in ('train', 'val', 'test'):
        loader = config.get(f'{split}_dataloader') or {}
        for place, dataset in datasets(loader.get('dataset') or {}, f'{split}_dataloader.dataset'):
            if dataset.get('type') != 'FolderDataset':
                raise UserError(
                    f'--mask-template needs FolderDataset, and {place} is {dataset.get("type")}; leave it out'
                )
            dataset['mask_template'] = template

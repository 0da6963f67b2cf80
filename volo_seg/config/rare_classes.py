"""Rare classes in the training data of a config: sampling and copy-paste."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config

from volo_seg.config.validation import walk
from volo_seg.errors import UserError

TEMPERATURE = 0.01
"""The default temperature of the classes, that of arXiv 2111.14887."""
OUTER = ('SeededDataset', 'MultiImageMixDataset')
"""Wrappers of data sets that stay around those of this module."""


def sample_rare_classes(config: Config, *, temperature: float = TEMPERATURE) -> None:
    """Draw images with rare classes more often by ``RareClassDataset``, and let crops contain the class.

    Raises:
        UserError: The training data is not a data set in a config, or ``temperature`` is not above 0.
    """
    if not temperature > 0:
        raise UserError(f'--sampling-temperature {temperature:g} is not above 0; the default is {TEMPERATURE}')
    settings = {'temperature': temperature}
    _wrap(config, 'RareClassDataset', settings, outer=(*OUTER, 'CopyPasteDataset'), flag='--sampling rare')


def paste_rare_classes(config: Config) -> None:
    """Paste regions of rare classes by ``CopyPasteDataset``, and let crops contain them.

    Raises:
        UserError: The training data is not a data set in a config.
    """
    _wrap(config, 'CopyPasteDataset', {'prob': 0.5, 'temperature': TEMPERATURE}, outer=OUTER, flag='--copy-paste')


def _wrap(config: Config, kind: str, settings: dict[str, Any], *, outer: tuple[str, ...], flag: str) -> None:
    place: Any = config.get('train_dataloader') or {}
    while isinstance(place.get('dataset'), dict) and place.dataset.get('type') in outer:
        place = place.dataset
    if not isinstance(place.get('dataset'), dict):
        raise UserError(f'{flag}: the config has no train_dataloader.dataset to sample from; add one')
    if place.dataset.get('type') == kind:
        place.dataset.update(settings)
    else:
        place.dataset = dict(type=kind, **settings, dataset=place.dataset)
    for root in (config.train_dataloader.dataset, config.get('train_pipeline')):
        for _, step in walk(root, ''):
            if step['type'] == 'RandomCrop':
                step['_scope_'] = 'volo_seg'  # type: ignore[index]

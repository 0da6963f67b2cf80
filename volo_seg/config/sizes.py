"""The sizes of a config: training crops, and what images are resized to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.config import Config

from volo_seg.config.load import datasets
from volo_seg.config.validation import walk
from volo_seg.errors import UserError
from volo_seg.windows import Size

SMALLEST_CROP = 32
"""Shortest side of a training crop in pixels: the stride of most networks."""


def set_crop(config: Config, crop: Size) -> None:
    """Train on crops of ``crop`` = (height, width) pixels; windows of sliding inference have the same size.

    The position grid of the backbone is left as it is, so that checkpoints fit a config without the change.

    Raises:
        UserError: A side is too short, or the training pipeline does not crop.
    """
    height, width = crop
    flag = f'--crop {height} {width}'
    if min(crop) < SMALLEST_CROP:
        raise UserError(f'{flag}: a side is below {SMALLEST_CROP} pixels; give larger ones')
    cuts = [step for step in steps(config, 'train') if step['type'] == 'RandomCrop']
    if not cuts:
        raise UserError(f'{flag}: the training pipeline of the config has no RandomCrop; add one, or remove the flag')
    for step in cuts:
        step['crop_size'] = crop
    for step in steps(config, 'train'):
        if step['type'] == 'Pad' and step.get('size'):
            step['size'] = (width, height)
    for preprocessor in (config.model.get('data_preprocessor'), config.get('data_preprocessor')):
        if preprocessor and preprocessor.get('size'):
            preprocessor.size = crop
    test_cfg: Any = config.model.get('test_cfg') or {}
    if test_cfg.get('mode') == 'slide':
        sides = zip(crop, test_cfg.crop_size, test_cfg.stride, strict=True)
        test_cfg.stride = tuple(max(1, round(stride * new / old)) for new, old, stride in sides)
        test_cfg.crop_size = crop
    if 'crop_size' in config:
        config.crop_size = crop
    if 'crop_from_data' in config:
        config.crop_from_data = False


def set_scale(config: Config, scale: Size) -> None:
    """Resize images to fit into ``scale`` = (width, height) pixels, for training before the random factor.

    Raises:
        UserError: A side is not positive, or no pipeline resizes to a size.
    """
    width, height = scale
    if min(scale) < 1:
        raise UserError(f'--scale {width} {height}: a side is below 1 pixel; give the width and height to fit into')
    found = [
        step
        for split in ('train', 'val', 'test')
        for step in steps(config, split)
        if step['type'] in ('Resize', 'RandomResize')
    ]
    if not found:
        raise UserError(
            f'--scale {width} {height}: no pipeline of the config has Resize or RandomResize; add one of them'
        )
    for step in found:
        step['scale'] = scale
        step.pop('scale_factor', None)
    if 'scale' in config:
        config.scale = scale


def steps(config: Config, split: str) -> Iterator[Any]:
    """The steps of all pipelines of ``split``: of its data sets, and the variable that MMSegmentation's tools read."""
    loader = config.get(f'{split}_dataloader') or {}
    for place, dataset in datasets(loader.get('dataset') or {}, split):
        yield from (step for _, step in walk(dataset.get('pipeline'), place))
    variable = config.get(f'{split}_pipeline')
    yield from (step for _, step in walk(variable, split))

"""Check that values which a config has in several places agree: channels, crops, ignored labels, class counts."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

from volo_seg.config.load import datasets
from volo_seg.config.validation import Node, accepted_keys, find_type, is_ours, suggestion, walk
from volo_seg.errors import UserError

EDGE_HEADS = ('STDCHead',)
"""Auxiliary heads that predict edges and not the classes of the data set."""
RESIZING = ('Resize', 'Pad', 'Mosaic')
"""Parts of the names of pipeline steps that change the size of a crop."""
LABEL_STEPS = {'RandomCrop': 'ignore_index', 'RandomRotate': 'seg_pad_val', 'RandomMosaic': 'seg_pad_val'}
"""Pipeline steps with a value for ignored labels, and the name of that argument."""

MEANS = {
    'mIoU': ('mIoU', 'mAcc'),
    'mDice': ('mDice', 'mAcc'),
    'mFscore': ('mFscore', 'mPrecision', 'mRecall'),
}
"""The mean scores that a metric returns for each value of ``iou_metrics``."""

Value = tuple[str, Any]
"""A dotted key and its value."""


def check_agreement(config: Config, splits: Sequence[str]) -> None:
    """Check in_channels, windows, crops (for training) and ignored labels of ``config``.

    Raises:
        UserError: Two values disagree; the message names both keys, their values and the fix.
    """
    check_channels(config.model)
    check_windows(config.model)
    if 'train' in splits:
        check_crops(config)
    check_ignored(config, splits)
    if 'train' in splits and 'val' in splits:
        check_monitored(config)


def check_monitored(config: Config) -> None:
    """Check that validation gives the scores by which hooks choose the best checkpoint or stop training.

    Raises:
        UserError: It does not. Metrics other than ``ExactIoUMetric`` and ``IoUMetric`` are not checked.
    """
    metrics = [node for _, node in walk(config.get('val_evaluator'), 'val_evaluator') if 'metrics' not in node]
    if not metrics or not all(metric['type'] in ('ExactIoUMetric', 'IoUMetric') for metric in metrics):
        return
    given = {score for metric in metrics for score in _scores(metric)}
    for place, hook in (found for name in ('default_hooks', 'custom_hooks') for found in walk(config.get(name), name)):
        for key in hook.keys() & {'save_best', 'monitor'}:
            for value in hook[key] if isinstance(hook[key], (list, tuple)) else [hook[key]]:
                if value in (None, 'auto', *given) or '/' in str(value):  # IoU/<class>
                    continue
                asked = next((name for name, means in MEANS.items() if value in means), None)
                fix = f"set val_evaluator.iou_metrics to ['mIoU', {asked!r}]" if asked else 'use one of them'
                raise UserError(
                    f'{place}.{key}={value!r} is not a score of val_evaluator, which gives {", ".join(sorted(given))}; '
                    f'{suggestion(value, sorted(given), otherwise=fix) if not asked else fix}'
                )


def _scores(metric: Node) -> list[str]:
    """Return the names of the mean scores that ``metric`` gives."""
    names = metric.get('iou_metrics', 'mIoU')
    names = [names] if isinstance(names, str) else list(names)
    found = ['aAcc']
    if metric['type'] == 'ExactIoUMetric':
        names.append('mIoU')
        found += [score for key, score in (('boundary', 'boundary_mIoU'), ('calibration', 'ECE')) if metric.get(key)]
    found += [score for name in names for score in MEANS.get(name, ())]
    return [f'{metric["prefix"]}/{score}' if metric.get('prefix') else score for score in found]


def check_channels(model: Node) -> None:
    """Compare ``in_channels`` of neck and heads with the channels of the backbone, if it is one of this package."""
    backbone = model.get('backbone') or {}
    kind = find_type(backbone.get('type'))
    if kind is None or not is_ours(kind) or not hasattr(kind, 'out_channels_of'):
        return
    try:
        maps = list(kind.out_channels_of(backbone))
    except ValueError as error:
        raise UserError(f'model.backbone: {error}') from error
    source = 'model.backbone'
    for place, neck in _parts(model, 'neck'):
        _check_in_channels(place, neck, maps, source)
        if neck.get('type') != 'VOLOPyramid':
            return
        source = place
    for place, head in heads(model):
        _check_in_channels(place, head, maps, source)


def _check_in_channels(place: str, part: Node, maps: list[int], source: str) -> None:
    given = part.get('in_channels')
    if given is None:
        return
    many = isinstance(given, Sequence)
    index = part.get('in_index', -1)
    wanted = index if isinstance(index, Sequence) else list(range(len(maps))) if many else [index]
    for i in wanted:
        if not -len(maps) <= i < len(maps):
            raise UserError(f'{place}.in_index={index}, but {source} gives {len(maps)} maps; use 0..{len(maps) - 1}')
    expected = [maps[i] for i in wanted]
    if (list(given) if many else [given]) != expected:
        right = expected if many or len(expected) > 1 else expected[0]
        actual = list(given) if many else given
        raise UserError(
            f'{place}.in_channels={actual}, but {source} gives {maps} channels; set {place}.in_channels={right}'
        )


def check_windows(model: Node) -> None:
    """Check that the windows of sliding inference leave no gaps."""
    test_cfg = model.get('test_cfg') or {}
    if test_cfg.get('mode') != 'slide':
        return
    crop, stride = _pair(test_cfg.get('crop_size')), _pair(test_cfg.get('stride'))
    for key, value in (('crop_size', crop), ('stride', stride)):
        if value is None:
            raise UserError(
                f"model.test_cfg.{key}={test_cfg.get(key)!r}, but mode='slide' needs (height, width) in pixels; "
                'give it, or set model.test_cfg.mode=whole'
            )
    if stride and crop and (stride[0] > crop[0] or stride[1] > crop[1]):
        raise UserError(
            f'model.test_cfg.stride={stride} exceeds model.test_cfg.crop_size={crop} and leaves pixels between '
            f'windows; set a stride of at most {crop}'
        )


def check_crops(config: Config) -> None:
    """Check that training crop, padding size, sliding window and ``crop_size`` of the config have one size."""
    cut = _training_crop(config)
    if cut is None:
        return
    place, crop = cut
    preprocessor, test_cfg = config.model.get('data_preprocessor') or {}, config.model.get('test_cfg') or {}
    others = []
    if _pair(preprocessor.get('size')):
        others = [('model.data_preprocessor.size', preprocessor.get('size')), ('crop_size', config.get('crop_size'))]
    if test_cfg.get('mode') == 'slide':
        others.append(('model.test_cfg.crop_size', test_cfg.get('crop_size')))
    for other, value in others:
        size = _pair(value)
        if size is not None and size != crop:
            raise UserError(
                f'{place}={crop}, but {other}={size}; set both to one (height, width), and crop_size, '
                'model.data_preprocessor.size and a sliding model.test_cfg.crop_size with them'
            )


def _training_crop(config: Config) -> tuple[str, tuple[int, int]] | None:
    """The dotted key and size of the RandomCrop that sets the size of training images; None if another step does."""
    for place, dataset in datasets(config.train_dataloader.dataset, 'train_dataloader.dataset'):
        found = None
        for index, step in enumerate(dataset.get('pipeline') or ()):
            name = str(step.get('type'))
            size = _pair(step.get('crop_size')) if name == 'RandomCrop' else None
            if size:
                found = f'{place}.pipeline.{index}.crop_size', size
            elif any(part in name for part in RESIZING):
                found = None
        if found:
            return found
    return None


def check_ignored(config: Config, splits: Sequence[str]) -> None:
    """Check that data set, heads, losses, padding and metric ignore the same label."""
    of_model = list(_ignored_by_model(config.model))
    for split in splits:
        values: list[Value] = []
        loader = config.get(f'{split}_dataloader') or {}
        for place, dataset in datasets(loader.get('dataset') or {}, f'{split}_dataloader.dataset'):
            values += _value(place, dataset, 'ignore_index')
            if dataset.get('reduce_zero_label') and values and values[-1][1] not in (255, None):
                raise UserError(
                    f'{place}.ignore_index={values[-1][1]}, but reduce_zero_label=True turns label 0 into 255; '
                    f'set {place}.ignore_index=255'
                )
            for index, step in enumerate(dataset.get('pipeline') or ()):
                key = LABEL_STEPS.get(str(step.get('type')))
                values += _value(f'{place}.pipeline.{index}', step, key) if key else []
        evaluators = config.get(f'{split}_evaluator') or []
        for place, evaluator in walk(evaluators, f'{split}_evaluator'):
            values += _value(place, evaluator, 'ignore_index')
        _all_equal(values + (of_model if split == 'train' else []))


def _ignored_by_model(model: Node) -> Iterator[Value]:
    if not any(_value(place, head, 'ignore_index') for place, head in heads(model)):
        return  # the heads do not predict classes
    yield from _value('model.data_preprocessor', model.get('data_preprocessor') or {}, 'seg_pad_val')
    for place, head in heads(model):
        for below, part in walk(head, place):
            yield from _value(below, part, 'ignore_index')


def _value(place: str, node: Node, key: str) -> list[Value]:
    """``node[key]``, or the default of the class that ``node`` configures; empty if the class has no such argument."""
    if key in node:
        return [(f'{place}.{key}', node[key])]
    kind = find_type(node.get('type'))
    parameter = accepted_keys(kind).get(key) if callable(kind) else None
    if parameter is None or parameter.default is parameter.empty:
        return []
    return [(f'{place}.{key} (by default)', parameter.default)]


def _all_equal(values: Sequence[Value]) -> None:
    known = [(place, value) for place, value in values if isinstance(value, int)]
    for place, value in known[1:]:
        if value != known[0][1]:
            raise UserError(
                f'{place} is {value}, but {known[0][0]} is {known[0][1]}; ignored labels must be the same in data set, '
                'padding, heads, losses and metric'
            )


def check_class_count(config: Config, place: str, kind: str, count: int) -> None:
    """Check that ``num_classes`` of the heads is ``count``, the number of classes of the data set at ``place``."""
    for head_place, head in heads(config.model):
        number = head.get('num_classes')
        if number is not None and number != count and head.get('type') not in EDGE_HEADS:
            raise UserError(
                f'{head_place}.num_classes={number}, but {place} ({kind}) has {count} classes; '
                f'set num_classes of decode_head and auxiliary_head to {count}'
            )


def check_same_classes(place: str, classes: Sequence[str], other_place: str, other: Sequence[str]) -> None:
    """Check that two class lists give each label one meaning; a class that only has another name is logged.

    Raises:
        UserError: The numbers of classes differ, or a name stands for two labels.
    """
    classes, other = list(classes), list(other)
    if classes == other:
        return
    text = f'{place} has the classes {named(classes)}, but {other_place} has {named(other)}'
    if len(classes) != len(other) or any(classes.index(name) != other.index(name) for name in {*classes} & {*other}):
        raise UserError(f'{text}; give both the same list in the same order, e.g. one file by classes=…')
    print_log(f'{text}; they are taken for the same classes, label by label', 'current', logging.WARNING)


def named(classes: Sequence[str]) -> str:
    """Class names with their labels, at most 20."""
    more = f', … ({len(classes)} in all)' if len(classes) > 20 else ''
    return ', '.join(f'{label} {name!r}' for label, name in enumerate(classes[:20])) + more


def heads(model: Node) -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, dict) of each decode and auxiliary head."""
    for name in ('decode_head', 'auxiliary_head'):
        yield from _parts(model, name)


def _parts(model: Node, name: str) -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, dict) of the part ``name`` of ``model``, a dict or a list of dicts."""
    part = model.get(name)
    if isinstance(part, Mapping):
        yield f'model.{name}', part
    elif isinstance(part, (list, tuple)):
        yield from ((f'model.{name}.{index}', each) for index, each in enumerate(part))


def _pair(value: Any) -> tuple[int, int] | None:
    """(height, width) from a side or a pair; None from other values."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value, value
    if isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(v, int) for v in value):
        return value[0], value[1]
    return None

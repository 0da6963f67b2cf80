"""Set and check class weights and hard example mining in the losses of a config."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config

from volo_seg.config.agreement import heads
from volo_seg.config.validation import accepted_keys, find_type, is_ours, walk
from volo_seg.errors import UserError, prefixed

CONFIDENT = 0.7
"""A pixel is easy if its true class has at least this probability."""
MIN_KEPT = 6
"""At least one of this number of pixels is kept."""
WEIGHT_SUFFIXES = ('.json', '.txt', '.npy')
"""Files of class weights: a JSON list, numbers separated by white space, or an array."""
ONE_CHANNEL: dict[Any, dict[str, Any]] = {
    'CrossEntropyLoss': {'use_sigmoid': True},
    'LovaszLoss': {'loss_type': 'binary'},
    'WeightedCrossEntropyLoss': {},
    'SoftmaxFocalLoss': {},
    'SoftDiceLoss': {},
    'LovaszSoftmaxLoss': {},
    'DistanceBoundaryLoss': {},
}
"""Losses that learn class 1 of two from the only channel of a head, and the arguments with which they do."""
CROSS_ENTROPIES = ('CrossEntropyLoss', 'WeightedCrossEntropyLoss')
CHOICES = {
    'ce': (CROSS_ENTROPIES[0],),
    'ohem': (CROSS_ENTROPIES[0],),
    'focal': ('SoftmaxFocalLoss',),
    'dice': ('SoftDiceLoss',),
    'lovasz': ('LovaszSoftmaxLoss',),
    'ce+dice': (CROSS_ENTROPIES[0], 'SoftDiceLoss'),
    'ce+lovasz': (CROSS_ENTROPIES[0], 'LovaszSoftmaxLoss'),
    'boundary': (CROSS_ENTROPIES[0], 'DistanceBoundaryLoss'),
}
"""The losses of each value of ``--loss``; all have the weight of the head, except for the last one."""
BOUNDARY_WEIGHT = 0.01
"""Weight of the boundary loss beside a cross entropy of weight 1, the first one of its paper."""
MAX_BYTES = 2**20
"""Largest accepted file of class weights."""


def set_class_weights(config: Config, weights: Sequence[float]) -> None:
    """Set ``weights``, one per class, in each loss of each head that has ``class_weight``.

    ``CrossEntropyLoss`` over a softmax becomes ``WeightedCrossEntropyLoss``, which is also exact in half precision.

    Raises:
        UserError: No loss has ``class_weight``, or a loss cannot be combined with weights.
    """
    taken = 0
    for _, loss in losses(config.model):
        kind = find_type(loss.get('type'))
        if kind is not None and 'class_weight' in accepted_keys(kind):
            if loss['type'] == 'CrossEntropyLoss' and not (loss.get('use_sigmoid') or loss.get('use_mask')):
                for key in set(loss) - {'loss_weight', 'loss_name'}:
                    del loss[key]
                loss['type'] = 'WeightedCrossEntropyLoss'
            loss['class_weight'] = list(weights)
            taken += 1
    if not taken:
        raise UserError('--class-weights: no loss of this config takes class_weight; use CrossEntropyLoss')
    check_losses(config)


def read_class_weights(path: str | Path) -> list[float]:
    """Read class weights from a ``.json``, ``.txt`` or ``.npy`` file, without unpickling.

    Raises:
        UserError: The suffix is another one, the file does not exist or has more than 1 MiB, or its content is not a
        list
            of finite numbers >= 0.
    """
    path = Path(path)
    if path.suffix not in WEIGHT_SUFFIXES:
        raise UserError(f'{str(path)!r} is not a {" or ".join(WEIGHT_SUFFIXES)} file: write the weights as a JSON list')
    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        problem = 'is larger than 1 MiB' if path.is_file() else 'does not exist or is not a file'
        raise UserError(f'{str(path)!r} {problem}: give a file with one number per class')
    try:
        if path.suffix == '.npy':
            numbers = np.load(path, allow_pickle=False)
        else:
            text = path.read_text(encoding='utf-8-sig')
            numbers = np.asarray(json.loads(text) if path.suffix == '.json' else text.split())
            if path.suffix == '.json' and numbers.dtype.kind not in 'iuf':
                raise ValueError('it contains other values than numbers')
        weights = numbers.astype(np.float64)
        if weights.ndim != 1 or not weights.size or not np.isfinite(weights).all() or weights.min() < 0:
            raise ValueError('it is not a list of finite numbers >= 0')
    except (OSError, ValueError, TypeError, RecursionError, OverflowError, EOFError) as error:
        reason = ' '.join(str(error).split())[:160]
        raise UserError(f'{str(path)!r} contains no class weights ({reason}): write one number per class') from error
    return weights.tolist()


def choose_loss(config: Config, choice: str) -> None:
    """Set the losses of ``choice``, a key of :data:`CHOICES`, in each head that computes its losses per pixel.

    A head keeps the sum of the weights of its losses as the weight of each new one (boundary loss: 0.01 of it), and a
    cross entropy over a softmax that it has. ``'ohem'`` also sets online hard example mining in the decode head: a
    pixel is used if the probability of its true class is below 0.7; at least a sixth of the pixels of a crop is used.

    Raises:
        UserError: The decode head has losses of its own, or the config has no crop size for ``'ohem'``.
    """
    for place, head in heads(config.model):
        if not _is_plain(head):
            if place.startswith('model.decode_head'):
                raise UserError(
                    f'--loss {choice}: {head.get("type")} ({place}) computes losses of its own; leave the flag out'
                )
            continue
        before = [loss for _, loss in _losses(head, place)]
        weight = sum(loss.get('loss_weight', 1.0) for loss in before) if before else 1.0
        kept = [loss for loss in before if loss.get('type') in CROSS_ENTROPIES and not loss.get('use_sigmoid')]
        kept = kept if head.get('out_channels') != 1 else [loss for loss in kept if loss['type'] == CROSS_ENTROPIES[1]]
        chosen = []
        for kind in CHOICES[choice]:
            factor = BOUNDARY_WEIGHT if kind == 'DistanceBoundaryLoss' else 1
            if kind != CROSS_ENTROPIES[0]:
                loss = dict(type=kind)
            elif kept:
                loss = kept[0]
            else:
                loss = dict(type=CROSS_ENTROPIES[head.get('out_channels') == 1])
            chosen.append(dict(loss, loss_weight=weight * factor))
        head['loss_decode'] = chosen if len(chosen) > 1 else chosen[0]
        if (head.get('sampler') or {}).get('type') == 'OHEMPixelSampler':
            del head['sampler']
        if choice == 'ohem' and place.startswith('model.decode_head'):
            height, width = _crop_size(config)
            kept_pixels = max(2, height * width // MIN_KEPT)
            head['sampler'] = dict(type='OHEMPixelSampler', thresh=CONFIDENT, min_kept=kept_pixels)


def _crop_size(config: Config) -> tuple[int, int]:
    size = (config.model.get('data_preprocessor') or {}).get('size') or config.get('crop_size')
    if size is None:
        raise UserError('--loss ohem needs the size of a crop; add model.data_preprocessor.size=(height, width)')
    return (size, size) if isinstance(size, int) else tuple(size)


def check_losses(config: Config) -> None:
    """Check that MMSegmentation's losses work with the class weights of ``config``, and read no pickle.

    Raises:
        UserError: ``class_weight`` names a file that cannot be read safely, is combined with ``avg_non_ignore`` (which
            fails on ignored pixels), or the run is in float16 (the sum of the weights overflows, and the loss is 0).
    """
    for place, node in walk(config.model, 'model'):
        path = node.get('class_weight')
        if isinstance(path, str):
            with prefixed(f'{place}.class_weight'):
                if not path.endswith(('.json', '.npy')):  # the losses read files with another suffix by pickle
                    raise UserError(f'{path!r} is not a .json or .npy file: write the weights as a JSON list')
                read_class_weights(path)
    half = in_float16(config.get('optim_wrapper') or {})
    for where, head in heads(config.model):
        if not _is_plain(head):
            continue
        for place, loss in _losses(head, where):
            if loss.get('type') != 'CrossEntropyLoss' or not loss.get('class_weight'):
                continue
            fix = "use type='WeightedCrossEntropyLoss' with class_weight alone"
            if loss.get('avg_non_ignore'):
                raise UserError(f'{place}: class_weight and avg_non_ignore=True fail together on ignored pixels; {fix}')
            if half:
                raise UserError(f'{place}: the sum of class_weight overflows in float16, and the loss is 0; {fix}')


def check_channels_of_losses(config: Config) -> None:
    """Check that the heads that classify each pixel can learn with their number of channels and their losses.

    A softmax over one channel is 1, whatever the network gives: the loss is 0 or constant for ever. Of the losses of
    MMSegmentation, those in :data:`ONE_CHANNEL` learn class 1 of two from one channel; Dice and focal loss would learn
    class 0 from it, and prediction reads class 1.

    Raises:
        UserError: A head has one class, or one channel and another loss or sampler, or a loss does not run here.
    """
    for place, head in heads(config.model):
        classes, channels = head.get('num_classes'), head.get('out_channels') or head.get('num_classes')
        if not _is_plain(head) or not isinstance(classes, int):
            continue
        if classes == 1:
            raise UserError(
                f'{place}.num_classes=1: with one class there is nothing to tell apart, and nothing is learned; list '
                'two classes, "background" (label 0) and yours (label 1)'
            )
        sampler = head.get('sampler') or {}
        ours = all(is_ours(find_type(part.get('type'))) for part in (head, *(loss for _, loss in _losses(head, place))))
        by_class = sampler.get('type') == 'OHEMPixelSampler' and sampler.get('thresh') is not None
        if channels == 1 and by_class and not ours:
            raise UserError(
                f'{place}: OHEMPixelSampler with thresh needs a channel per class; remove out_channels=1, or use '
                'WeightedCrossEntropyLoss in VOLOUPerHead or VOLOFCNHead'
            )
        for key, loss in _losses(head, place):
            kind = loss.get('type')
            sigmoid = kind in ONE_CHANNEL and all(loss.get(k) == v for k, v in ONE_CHANNEL[kind].items())
            known = getattr(find_type(kind), '__module__', '').startswith(('mmseg.', 'volo_seg.'))
            if channels == 1 and known and not sigmoid:
                raise UserError(
                    f'{key}: {kind} cannot learn two classes from out_channels=1; use '
                    "dict(type='CrossEntropyLoss', use_sigmoid=True), or remove out_channels=1"
                )
            if kind == 'FocalLoss' and not torch.cuda.is_available():
                raise UserError(
                    f'{key}: FocalLoss of MMSegmentation fails on a CPU with two or more channels; use '
                    'SoftmaxFocalLoss, or train on a GPU'
                )
            if channels != 1 and kind == 'LovaszLoss' and sigmoid:
                raise UserError(
                    f"{key}: LovaszLoss with loss_type='binary' needs out_channels=1 in {place}; set it, or use "
                    "loss_type='multi_class'"
                )


def _is_plain(head: Mapping[str, Any]) -> bool:
    """Whether ``head`` computes its losses per pixel, as ``BaseDecodeHead`` does; other heads may use queries."""
    rule = getattr(find_type(head.get('type')), 'loss_by_feat', None)
    return getattr(rule, '__qualname__', '') in ('BaseDecodeHead.loss_by_feat', 'ResizedLossMixin.loss_by_feat')


def in_float16(optim_wrapper: Mapping[str, Any]) -> bool:
    """Whether training with ``optim_wrapper`` uses float16."""
    kind, dtype = optim_wrapper.get('type'), optim_wrapper.get('dtype')
    return dtype in ('float16', torch.float16) or (kind == 'AmpOptimWrapper' and dtype is None)


def losses(model: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, dict) of each loss of each head of ``model``."""
    for place, head in heads(model):
        yield from _losses(head, place)


def _losses(head: Mapping[str, Any], place: str) -> Iterator[tuple[str, Any]]:
    decode = head.get('loss_decode')
    if isinstance(decode, Mapping):
        yield f'{place}.loss_decode', decode
    elif isinstance(decode, Sequence):
        yield from ((f'{place}.loss_decode.{index}', loss) for index, loss in enumerate(decode))

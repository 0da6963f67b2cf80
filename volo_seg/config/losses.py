"""Class weights and hard pixels, put into the losses of a config."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config

from volo_seg.config.agreement import heads
from volo_seg.config.validation import accepted_keys, find_type, walk
from volo_seg.errors import UserError, prefixed

CONFIDENT = 0.7
"""Pixels whose true class has at least this probability are easy."""
KEPT_SHARE = 6
"""At least one pixel in so many is kept, however easy the image."""
WEIGHT_SUFFIXES = ('.json', '.txt', '.npy')
"""Files of class weights: a list of numbers as JSON, as text (one a line or divided by blanks), or as an array."""
MOST_BYTES = 2**20
"""Of a file of class weights."""


def set_class_weights(config: Config, weights: Sequence[float]) -> None:
    """Give ``weights``, one a class, to each loss of each head that takes them.

    ``CrossEntropyLoss`` over a softmax becomes ``WeightedCrossEntropyLoss``, which also holds in half precision.

    Raises:
        UserError: No loss takes them, or one averages in a way that does not go with weights.
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
    """Read the weights of the classes from a ``.json``, ``.txt`` or ``.npy`` file; no file is unpickled.

    Raises:
        UserError: Another suffix, no such file, more than 1 MiB, or something else than finite numbers from 0 on.
    """
    path = Path(path)
    if path.suffix not in WEIGHT_SUFFIXES:
        raise UserError(f'{str(path)!r} is no {" or ".join(WEIGHT_SUFFIXES)} file: write the weights as a JSON list')
    if not path.is_file() or path.stat().st_size > MOST_BYTES:
        problem = 'is larger than 1 MiB' if path.is_file() else 'does not exist or is no file'
        raise UserError(f'{str(path)!r} {problem}: give a file with one number a class')
    try:
        if path.suffix == '.npy':
            numbers = np.load(path, allow_pickle=False)
        else:
            text = path.read_text(encoding='utf-8-sig')
            numbers = np.asarray(json.loads(text) if path.suffix == '.json' else text.split())
            if path.suffix == '.json' and numbers.dtype.kind not in 'iuf':
                raise ValueError('it holds something else than numbers')
        weights = numbers.astype(np.float64)
        if weights.ndim != 1 or not weights.size or not np.isfinite(weights).all() or weights.min() < 0:
            raise ValueError('it is no list of finite numbers from 0 on')
    except (OSError, ValueError, TypeError, RecursionError, OverflowError, EOFError) as error:
        told = ' '.join(str(error).split())[:160]
        raise UserError(f'{str(path)!r} holds no class weights ({told}): write one number a class') from error
    return weights.tolist()


def use_hard_pixels(config: Config) -> None:
    """Let the decode head learn from the pixels that it finds hard (online hard example mining).

    A pixel is hard where its true class has a probability below 0.7; at least a sixth of a crop's pixels is kept.

    Raises:
        UserError: The size of the crop is not in the config.
    """
    size = (config.model.get('data_preprocessor') or {}).get('size') or config.get('crop_size')
    if size is None:
        raise UserError('--ohem needs the size of a crop; add model.data_preprocessor.size=(height, width)')
    height, width = (size, size) if isinstance(size, int) else size
    kept = max(2, height * width // KEPT_SHARE)
    head = config.model.decode_head
    for one in head if isinstance(head, Sequence) else [head]:
        one['sampler'] = dict(type='OHEMPixelSampler', thresh=CONFIDENT, min_kept=kept)


def check_losses(config: Config) -> None:
    """Refuse class weights where MMSegmentation's losses fail on them, or would unpickle a file.

    Raises:
        UserError: ``class_weight`` names a file that is not read here, they stand with ``avg_non_ignore`` (it fails on
            ignored pixels), or the run is in float16 (their sum overflows, and the loss is 0).
    """
    for place, node in walk(config.model, 'model'):
        if isinstance(node.get('class_weight'), str):
            _check_weights_file(f'{place}.class_weight', node['class_weight'])
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


def _check_weights_file(place: str, path: str) -> None:
    """Refuse what MMSegmentation's losses would not read safely: they read text by a .json suffix alone."""
    with prefixed(place):
        if not path.endswith(('.json', '.npy')):
            raise UserError(f'{path!r} is no .json or .npy file: write the weights as a JSON list')
        read_class_weights(path)


def _is_plain(head: Mapping[str, Any]) -> bool:
    """Whether the losses of ``head`` see a class a pixel; heads with rules of their own may see a few queries."""
    rule = getattr(find_type(head.get('type')), 'loss_by_feat', None)
    return getattr(rule, '__qualname__', '') == 'BaseDecodeHead.loss_by_feat'


def in_float16(optim_wrapper: Mapping[str, Any]) -> bool:
    """Whether a run with ``optim_wrapper`` computes in float16."""
    kind, dtype = optim_wrapper.get('type'), optim_wrapper.get('dtype')
    return dtype in ('float16', torch.float16) or (kind == 'AmpOptimWrapper' and dtype is None)


def losses(model: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(dotted place, dict) of each loss of each head of ``model``."""
    for place, head in heads(model):
        yield from _losses(head, place)


def _losses(head: Mapping[str, Any], place: str) -> Iterator[tuple[str, Any]]:
    decode = head.get('loss_decode')
    if isinstance(decode, Mapping):
        yield f'{place}.loss_decode', decode
    elif isinstance(decode, Sequence):
        yield from ((f'{place}.loss_decode.{index}', loss) for index, loss in enumerate(decode))

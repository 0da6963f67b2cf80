"""Class weights and hard pixels, put into the losses of a config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.config import Config

from volo_seg.config.agreement import heads
from volo_seg.config.validation import accepted_keys, find_type
from volo_seg.errors import UserError

CONFIDENT = 0.7
"""Pixels whose true class has at least this probability are easy."""
KEPT_SHARE = 6
"""At least one pixel in so many is kept, however easy the image."""


def set_class_weights(config: Config, weights: Sequence[float] | str) -> None:
    """Give ``weights`` (one a class, or a .json file of them) to each loss of each head that takes them.

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
            loss['class_weight'] = weights if isinstance(weights, str) else list(weights)
            taken += 1
    if not taken:
        raise UserError('--class-weights: no loss of this config takes class_weight; use CrossEntropyLoss')
    check_losses(config)


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
    """Refuse class weights where MMSegmentation's CrossEntropyLoss fails on them.

    Raises:
        UserError: They stand with ``avg_non_ignore`` (it fails on ignored pixels), or the run is in float16 (their sum
            overflows, and the loss is 0).
    """
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

"""Class weights and hard pixels, put into the losses of a config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config

from volo_seg.engine.config_agreement import heads
from volo_seg.engine.config_checks import accepted_keys, find_type
from volo_seg.errors import UserError

CONFIDENT = 0.7
"""Pixels whose true class has at least this probability are easy."""
KEPT_SHARE = 6
"""At least one pixel in so many is kept, however easy the image."""


def set_class_weights(config: Config, weights: Sequence[float] | str) -> None:
    """Give ``weights`` (one a class, or a .json file of them) to each loss of each head that takes them.

    Raises:
        UserError: No loss takes them, or one averages in a way that does not go with weights.
    """
    taken = 0
    for _, loss in losses(config.model):
        kind = find_type(loss.get('type'))
        if kind is not None and 'class_weight' in accepted_keys(kind):
            loss['class_weight'] = weights if isinstance(weights, str) else list(weights)
            taken += 1
    if not taken:
        raise UserError('--class-weights: no loss of this config takes class_weight; use CrossEntropyLoss')
    check_losses(config.model)


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


def check_losses(model: Mapping[str, Any]) -> None:
    """Refuse class weights with ``avg_non_ignore``: MMSegmentation's CrossEntropyLoss fails on ignored pixels then.

    Raises:
        UserError: A loss of ``model`` has both.
    """
    for place, loss in losses(model):
        if loss.get('type') == 'CrossEntropyLoss' and loss.get('class_weight') and loss.get('avg_non_ignore'):
            raise UserError(
                f'{place}: class_weight and avg_non_ignore=True fail together on ignored pixels; '
                'set avg_non_ignore=False (weighted losses leave ignored pixels out anyway)'
            )


def losses(model: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(dotted place, dict) of each loss of each head of ``model``."""
    for place, head in heads(model):
        decode = head.get('loss_decode')
        if isinstance(decode, Mapping):
            yield f'{place}.loss_decode', decode
        elif isinstance(decode, Sequence):
            yield from ((f'{place}.loss_decode.{index}', loss) for index, loss in enumerate(decode))

"""Loading a whole trained model."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from volo_seg.checkpoints.architecture import describe, differences, variant_name
from volo_seg.checkpoints.conversion import check_shapes
from volo_seg.checkpoints.formats import first_few, unwrap
from volo_seg.checkpoints.reading import load_file
from volo_seg.errors import UserError
from volo_seg.layers import resize_pos_embed

_CLASS_WEIGHTS = 'conv_seg.weight'
_POSITIONS = 'backbone.pos_embed'
_TRAINED_WITH = 'use the config it was trained with'


def load_segmentor_weights(model: nn.Module, source: str | os.PathLike[str], *, strict: bool = True) -> dict[str, Any]:
    """Load the trained checkpoint ``source`` (see :func:`.load_file`) into ``model``, all of it or nothing.

    Returns:
        The checkpoint's ``meta`` (classes, palette, iteration, config, ...), empty if it has none.

    Raises:
        UserError: The file cannot be had or read, or is of another model or for another number of classes.
    """
    content = load_file(source)
    fit_segmentor_weights(model, content, name=os.fspath(source), strict=strict)
    meta = content.get('meta')
    return dict(meta) if isinstance(meta, Mapping) else {}


def fit_segmentor_weights(model: nn.Module, content: Mapping[str, Any], *, name: str, strict: bool = True) -> None:
    """Put the weights of ``content``, what :func:`.load_file` made of the file ``name``, into ``model``.

    A position grid of another size (a model trained on other crops) is resampled. With ``strict`` false,
    names that only one side has are logged instead of refused; shapes and classes must agree all the same.

    Raises:
        UserError: They are of another model or for another number of classes.
    """
    found, _ = unwrap(content, name=name)
    target = model.state_dict()
    _check_backbone(found, target, name=name)
    _check_names(found, target, name=name, strict=strict)
    _check_classes(found, target, name=name)
    _fit_positions(found, target, name=name)
    check_shapes(found, target, name=name, model_name='this model')
    model.load_state_dict(found, strict=False)


def _check_backbone(found: Mapping[str, Tensor], target: Mapping[str, Tensor], *, name: str) -> None:
    theirs, ours = (
        describe({key.removeprefix('backbone.'): v for key, v in state.items() if key.startswith('backbone.')})
        for state in (found, target)
    )
    if theirs and ours and theirs != ours:
        raise UserError(
            f'{name} holds a {variant_name(theirs)} segmentor, this model is built on {variant_name(ours)} '
            f'({differences(theirs, ours)}): {_TRAINED_WITH}'
        )


def _check_names(found: Mapping[str, Tensor], target: Mapping[str, Tensor], *, name: str, strict: bool) -> None:
    lacking = [key for key in target if key not in found and not key.endswith('.num_batches_tracked')]
    spare = [key for key in found if key not in target]
    told = []
    if lacking:
        told.append(f'it lacks {first_few(lacking)}')
    if spare:
        told.append(f'it holds {first_few(spare)} that this one has no place for')
    if told and strict:
        alone = any(f'backbone.{key}' in target for key in spare)
        fix = "a backbone alone belongs in the backbone's init_cfg" if alone else _TRAINED_WITH
        raise UserError(f'{name} is of another model ({" and ".join(told)}): {fix}')
    if told:
        logging.getLogger(__name__).warning('%s fits in part: %s', name, ' and '.join(told))


def _check_classes(found: Mapping[str, Tensor], target: Mapping[str, Tensor], *, name: str) -> None:
    for key in target:
        if not key.endswith(_CLASS_WEIGHTS) or key not in found:
            continue
        theirs, ours = len(found[key]), len(target[key])
        if theirs != ours:
            layer = key.removesuffix('.weight')
            raise UserError(f'{name} has {theirs} classes at {layer}, this model {ours}: {_TRAINED_WITH}')


def _fit_positions(found: dict[str, Tensor], target: Mapping[str, Tensor], *, name: str) -> None:
    positions, goal = found.get(_POSITIONS), target.get(_POSITIONS)
    if positions is None or goal is None or positions.ndim != 4 or positions.shape == goal.shape:
        return
    grid = goal.shape[1], goal.shape[2]
    found[_POSITIONS] = resize_pos_embed(positions, grid)
    old = 'x'.join(map(str, positions.shape[1:3]))
    logging.getLogger(__name__).info('%s: position grid %s -> %dx%d', name, old, *grid)

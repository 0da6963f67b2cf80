"""Load the weights of a trained segmentor into a model."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from volo_seg.checkpoints.architecture import describe, differences, variant_name
from volo_seg.checkpoints.convert import check_shapes, first_few, unwrap
from volo_seg.checkpoints.read import load_file
from volo_seg.errors import UserError
from volo_seg.layers import resize_pos_embed

_CLASS_WEIGHTS = 'conv_seg.weight'
_POSITIONS = 'backbone.pos_embed'
_EXTRA = '_extra_state'
"""The end of the names of values that modules add to their state dict; they are loaded unchecked."""
_TRAINED_WITH = 'use the config with which it was trained'


def load_segmentor_weights(model: nn.Module, source: str | os.PathLike[str], *, strict: bool = True) -> dict[str, Any]:
    """Load the trained checkpoint ``source`` (see :func:`.load_file`) into ``model``; after an error it is unchanged.

    Returns:
        The checkpoint's ``meta`` (classes, palette, iteration, config, ...), empty if it has none.

    Raises:
        UserError: The file cannot be read, or belongs to another model or another number of classes.
    """
    content = load_file(source)
    fit_segmentor_weights(model, content, name=os.fspath(source), strict=strict)
    meta = content.get('meta')
    return dict(meta) if isinstance(meta, Mapping) else {}


def fit_segmentor_weights(
    model: nn.Module, content: Mapping[str, Any], *, name: str, strict: bool = True, other_classes: bool = False
) -> dict[str, str]:
    """Load the weights in ``content``, which :func:`.load_file` read from the file ``name``, into ``model``.

    A position grid of another size (from training on other crops) is resized. If ``strict`` is false, missing and
    unknown names are logged; shapes must agree in any case. If ``other_classes`` is true, classification layers of
    another number of classes keep the values that they have in ``model``.

    Returns:
        A line for each classification layer that was left out, by the name of the layer.

    Raises:
        UserError: The weights belong to another model or, without ``other_classes``, another number of classes.
    """
    found, container = unwrap(content, name=name)
    state = content[container] if container else content
    target = model.state_dict()
    extra = {key: state[key] for key in target if key.endswith(_EXTRA) and key in state}
    found, target = ({k: v for k, v in part.items() if not k.endswith(_EXTRA)} for part in (found, target))
    _check_backbone(found, target, name=name)
    _check_names(found, target, name=name, strict=strict)
    left_out: dict[str, str] = {}
    for layer, told in _other_classes(found, target):
        if not other_classes:
            raise UserError(f'{name} has {told}: {_TRAINED_WITH}')
        left_out[layer] = f'{told}; the layer starts with new weights'
        for key in [key for key in found if key.startswith(f'{layer}.')]:
            found[key] = target[key]
    positions, goal = found.get(_POSITIONS), target.get(_POSITIONS)
    if positions is not None and goal is not None and positions.ndim == 4 and positions.shape != goal.shape:
        (old_h, old_w), (h, w) = positions.shape[1:3], goal.shape[1:3]
        found[_POSITIONS] = resize_pos_embed(positions, (h, w))
        logging.getLogger(__name__).info('%s: position grid %dx%d -> %dx%d', name, old_h, old_w, h, w)
    check_shapes(found, target, name=name, model_name='this model')
    loaded = OrderedDict({**found, **extra})
    loaded._metadata = _versions(getattr(state, '_metadata', None))  # type: ignore[attr-defined]
    model.load_state_dict(loaded, strict=False)
    return left_out


def _versions(metadata: Any) -> dict[str, dict[str, int]]:
    """Return the versions of the modules in the ``metadata`` of a state dict, which can be anything in a file."""
    items = metadata.items() if isinstance(metadata, Mapping) else ()
    found = {key: value.get('version') for key, value in items if isinstance(value, Mapping)}
    return {key: {'version': version} for key, version in found.items() if isinstance(version, int)}


def _check_backbone(found: Mapping[str, Tensor], target: Mapping[str, Tensor], *, name: str) -> None:
    theirs, ours = (
        describe({key.removeprefix('backbone.'): v for key, v in state.items() if key.startswith('backbone.')})
        for state in (found, target)
    )
    if theirs and ours and theirs != ours:
        raise UserError(
            f'{name} contains a {variant_name(theirs)} segmentor, this model is built on {variant_name(ours)} '
            f'({differences(theirs, ours)}): {_TRAINED_WITH}'
        )


def _check_names(found: Mapping[str, Tensor], target: Mapping[str, Tensor], *, name: str, strict: bool) -> None:
    lacking = [key for key in target if key not in found and not key.endswith('.num_batches_tracked')]
    spare = [key for key in found if key not in target]
    problems = []
    if lacking:
        problems.append(f'it lacks {first_few(lacking)}')
    if spare:
        problems.append(f'it contains {first_few(spare)}, which this model does not have')
    if problems and strict:
        is_backbone = any(f'backbone.{key}' in target for key in spare)
        fix = "name the weights of a backbone in the backbone's init_cfg" if is_backbone else _TRAINED_WITH
        raise UserError(f'{name} belongs to another model ({" and ".join(problems)}): {fix}')
    if problems:
        logging.getLogger(__name__).warning('%s fits in part: %s', name, ' and '.join(problems))


def _other_classes(found: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """Yield (layer, what differs) of each classification layer with another number of classes."""
    for key in target:
        if key.endswith(_CLASS_WEIGHTS) and key in found and len(found[key]) != len(target[key]):
            layer = key.removesuffix('.weight')
            yield layer, f'{len(found[key])} classes at {layer}, this model has {len(target[key])}'

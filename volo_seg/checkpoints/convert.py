"""Recognise files of VOLO weights, and convert them to the state dict of a backbone."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from volo_seg.checkpoints.architecture import Signature, describe, differences, parameter_names, variant_name
from volo_seg.checkpoints.read import load_file
from volo_seg.errors import UserError
from volo_seg.layers import resize_pos_embed

_NOT_DENSE = ('cls_token', 'post_network.', 'head.', 'aux_head.')  # parts of a classifier only
_LAST_NORM = 'norm3.'  # norm of the last output map; the released files call it norm.
_COUNTER = '.num_batches_tracked'
_STATISTICS = re.compile(r'patch_embed\.conv\.\d+\.(running_mean|running_var|num_batches_tracked)')

_CONTAINERS = ('state_dict', 'state_dict_ema')
_CLASSIFIER = ('cls_token', 'post_network.', 'norm.', 'head.', 'aux_head.')
_MARKS = ('patch_embed.proj.weight', 'network.0.0.attn.attn.weight', 'network.1.proj.weight', 'pos_embed')


@dataclass(frozen=True)
class VoloWeights:
    """The weights of a backbone from a file.

    Attributes:
        name: The file, for messages.
        layout: ``'classifier'`` (official and timm files, which share their names), ``'segmentor'`` or ``'backbone'``.
        container: Key of the file that has the weights, ``''`` for a flat file.
        state_dict: The tensors by name, without ``module.`` and ``backbone.``.
        dropped: Names of the file outside the backbone.
        architecture: What the shapes determine, None if the backbone is incomplete.
    """

    name: str
    layout: str
    container: str
    state_dict: dict[str, Tensor]
    dropped: list[str]
    architecture: Signature | None

    @property
    def origin(self) -> str:
        """Layout, container and variant, for messages."""
        where = f' ({self.container})' if self.container else ''
        return f'{self.layout} weights{where} of {variant_name(self.architecture)}'


def read_volo(source: str | os.PathLike[str]) -> VoloWeights:
    """Read ``source`` (see :func:`.load_file`) and recognise its layout.

    Raises:
        UserError: The file cannot be read or is not a VOLO.
    """
    return recognise(load_file(source), name=os.fspath(source))


def recognise(content: Mapping[str, Any], *, name: str) -> VoloWeights:
    """Recognise the layout of ``content``, which was read from the file ``name``.

    Raises:
        UserError: It is not a VOLO.
    """
    state_dict, container = unwrap(content, name=name)
    backbone = {key.removeprefix('backbone.'): v for key, v in state_dict.items() if key.startswith('backbone.')}
    found = backbone or state_dict
    if sum(mark in found for mark in _MARKS) < len(_MARKS) - 1:
        raise UserError(
            f'{name} contains no VOLO weights (its names start with {first_few(list(found)[:3])}): '
            'give an official, timm or volo-seg file of VOLO'
        )
    layout = 'classifier' if any(key.startswith(_CLASSIFIER) for key in found) else 'backbone'
    return VoloWeights(
        name=name,
        layout='segmentor' if backbone else layout,
        container=container,
        state_dict=found,
        dropped=[key for key in state_dict if not key.startswith('backbone.')] if backbone else [],
        architecture=describe(found),
    )


def unwrap(content: Mapping[str, Any], *, name: str) -> tuple[dict[str, Tensor], str]:
    """Take the tensors out of their container (plain weights before averaged ones), without the prefix ``module.``.

    Returns:
        The tensors by name, and the key of their container (``''`` for a flat file).

    Raises:
        UserError: There are no tensors, or some are sparse, quantized, nested or on the meta device.
    """
    container = next((key for key in _CONTAINERS if isinstance(content.get(key), Mapping)), '')
    entries: Mapping[str, Any] = content[container] if container else content
    tensors = {str(key).removeprefix('module.'): v for key, v in entries.items() if isinstance(v, Tensor)}
    if not tensors:
        found = first_few(list(entries)[:3]) or 'nothing'
        raise UserError(f'{name} contains no tensors but {found}: give a file of weights')
    odd = [key for key, v in tensors.items() if v.layout != torch.strided or v.is_quantized or v.is_nested or v.is_meta]
    if odd:
        raise UserError(f'{name} contains sparse, quantized or empty tensors ({first_few(odd)}): save dense tensors')
    return tensors, container


def first_few(names: Iterable[object]) -> str:
    """The first three of ``names``, printable and at most 80 characters each, and the count of all."""
    texts = list(names)
    shown = ', '.join(repr(str(text)[:80])[1:-1] for text in texts[:3])
    return shown + (f', … {len(texts)} in all' if len(texts) > 3 else '')


@dataclass(frozen=True)
class Conversion:
    """A state dict that fits a backbone.

    Attributes:
        state_dict: The tensors by the names of the backbone.
        dropped: Names of the file that are not used.
        kept: Names of the model that the file may lack; they keep their initial values.
        resized: (H, W) of the position grid in tokens before and after resizing, None if it is unchanged.
        origin: Layout and variant of the file.
    """

    state_dict: dict[str, Tensor]
    dropped: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    resized: tuple[tuple[int, int], tuple[int, int]] | None = None
    origin: str = 'weights'

    def summary(self) -> str:
        """One line: what is loaded, resized, dropped and left as initialised."""
        parts = [self.origin]
        if self.resized:
            (h, w), (new_h, new_w) = self.resized
            parts.append(f'position grid {h}x{w} -> {new_h}x{new_w}')
        if self.dropped:
            parts.append(f'dropped {count_groups(self.dropped)}')
        if self.kept:
            parts.append(f'left as initialised {count_groups(self.kept)}')
        return '; '.join(parts)


def count_groups(names: Iterable[str]) -> str:
    """Count ``names`` by their first part, as text: ``head (2), post_network (26)``."""
    groups = Counter(name.partition('.')[0] for name in names)
    return ', '.join(f'{group} ({count})' for group, count in sorted(groups.items()))


def load_pretrained(
    target_state: Mapping[str, Tensor], source: str | os.PathLike[str], *, model_name: str
) -> Conversion:
    """Read ``source`` (see :func:`.load_file`) and convert it for the backbone ``model_name`` with ``target_state``.

    Raises:
        UserError: The file cannot be read, is not this variant of VOLO, or is incomplete.
    """
    weights = read_volo(source)
    conversion = convert(weights.state_dict, target=target_state, name=weights.name, model_name=model_name)
    return replace(conversion, origin=weights.origin, dropped=weights.dropped + conversion.dropped)


def load_equal(
    target_state: Mapping[str, Tensor], source: str | os.PathLike[str], *, model_name: str
) -> dict[str, Tensor]:
    """Read the tensors of ``target_state``, by name, from ``source``, this backbone or a segmentor with it.

    Raises:
        UserError: The file cannot be read, lacks one of the tensors, or has one of another shape.
    """
    content = load_file(source)
    state = {name.removeprefix('backbone.'): value for name, value in content.get('state_dict', content).items()}
    for name, own in target_state.items():
        if getattr(state.get(name), 'shape', None) != own.shape:
            raise UserError(f'{source} has no {name} of shape {tuple(own.shape)}: it is not of this {model_name}')
    return {name: state[name] for name in target_state}


def read_backbone(source: str | os.PathLike[str]) -> VoloWeights:
    """Read ``source`` (see :func:`.load_file`) as a complete backbone of any variant, with the backbone's names.

    Raises:
        UserError: The file cannot be read, is not a VOLO, or is incomplete.
    """
    weights = read_volo(source)
    found, dropped = to_backbone_names(weights.state_dict)
    needed = parameter_names(weights.architecture.depths) if weights.architecture else []
    needed += [f'{_LAST_NORM}weight', f'{_LAST_NORM}bias'] if weights.layout == 'classifier' else []
    lacking = [key for key in needed if key not in found]
    if lacking or not weights.architecture:
        names = first_few(lacking) or 'all of a stage'
        raise UserError(f'{weights.name} lacks parts of the backbone ({names}): give a complete file')
    return replace(weights, state_dict=found, dropped=weights.dropped + dropped)


def to_backbone_names(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Rename released weights to the backbone's names, and drop the parts of a classifier.

    Returns:
        The tensors by the backbone's names, and the names dropped.
    """
    dropped = [key for key in state_dict if key.startswith(_NOT_DENSE)]
    kept = {re.sub(r'^norm\.', _LAST_NORM, key): v for key, v in state_dict.items() if key not in dropped}
    return kept, dropped


def convert(
    state_dict: Mapping[str, Tensor],
    *,
    target: Mapping[str, Tensor],
    name: str = 'the file',
    model_name: str = 'this model',
) -> Conversion:
    """Convert VOLO weights (official, timm's or of this package) to the names and shapes of ``target``.

    The position grid is resized to that of ``target``. Entries that a file may lack (output norms, batch counters) are
    taken from ``target``, which is not changed.

    Raises:
        UserError: The variant or a shape differs, or names are missing or unknown.
    """
    found, dropped = to_backbone_names(state_dict)
    theirs, ours = describe(found), describe(target)
    if theirs and ours and theirs != ours:
        raise UserError(
            f'{name} contains {variant_name(theirs)} weights, this model is {model_name} '
            f'({differences(theirs, ours)}): use a file of {model_name} or build the other model'
        )
    spare = [key for key in found if key not in target]
    _check_none(
        [key for key in spare if not re.match(r'norm\d\.', key) and not _STATISTICS.fullmatch(key)],
        f'{name} contains names that {model_name} does not have',
        'build the model from which the file was saved',
    )
    absent = [key for key in target if key not in found]
    _check_none(
        [key for key in absent if not _may_lack(key, classifier=bool(dropped))],
        f'{name} lacks names that {model_name} needs',
        'give a complete file',
    )
    old = _grid(found['pos_embed'], target['pos_embed'], name=name)
    new = _grid(target['pos_embed'], target['pos_embed'], name=model_name)
    found['pos_embed'] = resize_pos_embed(found['pos_embed'], new)
    check_shapes(found, target, name=name, model_name=model_name)
    state = {key: found.get(key, value) for key, value in target.items()}
    kept = [key for key in absent if not key.endswith(_COUNTER)]
    return Conversion(state, dropped + spare, kept, (old, new) if old != new else None)


def _may_lack(key: str, *, classifier: bool) -> bool:
    """Whether a file may lack ``key``; a classifier must have the final norm."""
    norm = re.match(r'norm\d\.', key)
    return key.endswith(_COUNTER) or (norm is not None and not (classifier and key.startswith(_LAST_NORM)))


def _check_none(names: list[str], what: str, fix: str) -> None:
    if names:
        raise UserError(f'{what} ({first_few(names)}): {fix}')


def _grid(pos_embed: Tensor, target: Tensor, *, name: str) -> tuple[int, int]:
    if pos_embed.ndim != 4 or pos_embed.shape[0] != 1 or pos_embed.shape[3] != target.shape[3]:
        raise UserError(
            f'{name} has a position grid of shape {tuple(pos_embed.shape)}, '
            f'not (1, H, W, {target.shape[3]}): give a file of VOLO'
        )
    return pos_embed.shape[1], pos_embed.shape[2]


def check_shapes(found: Mapping[str, Tensor], target: Mapping[str, Tensor], *, name: str, model_name: str) -> None:
    """Raise UserError if the shapes of names that both state dicts have differ."""
    both = ((key, tuple(value.shape), tuple(target[key].shape)) for key, value in found.items() if key in target)
    unlike = [f'{key} is {theirs} against {ours}' for key, theirs, ours in both if theirs != ours]
    _check_none(unlike, f'{name} has other shapes than {model_name}', 'build the model from which the file was saved')

"""From any file of VOLO weights to the state dict of one backbone."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from volo_seg.checkpoints.architecture import describe, differences, parameter_names, variant_name
from volo_seg.checkpoints.formats import VoloWeights, first_few, read_volo
from volo_seg.errors import UserError
from volo_seg.layers import resize_pos_embed

_NOT_DENSE = ('cls_token', 'post_network.', 'head.', 'aux_head.')
_LAST_NORM = 'norm3.'  # our name for the released final norm, which the last stage's map takes
_COUNTER = '.num_batches_tracked'
_STATISTICS = re.compile(r'patch_embed\.conv\.\d+\.(running_mean|running_var|num_batches_tracked)')


@dataclass(frozen=True)
class Conversion:
    """A state dict that fits, and what became of the rest.

    ``dropped`` are names of the file that were not used, ``kept`` names of the model that the file need not
    hold and that keep their initial values, ``resized`` the position grid's (H, W) in tokens before and
    after.
    """

    state_dict: dict[str, Tensor]
    dropped: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    resized: tuple[tuple[int, int], tuple[int, int]] | None = None
    origin: str = 'weights'

    def summary(self) -> str:
        """Tell in one line what was loaded, resized, dropped and left as it was."""
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
    """List the first parts of ``names`` with their counts: ``head (2), post_network (26)``."""
    groups = Counter(name.partition('.')[0] for name in names)
    return ', '.join(f'{group} ({count})' for group, count in sorted(groups.items()))


def load_pretrained(
    target_state: Mapping[str, Tensor], source: str | os.PathLike[str], *, model_name: str
) -> Conversion:
    """Read ``source`` (see :func:`.load_file`) for the backbone ``model_name`` with this state dict.

    Raises:
        UserError: The file cannot be had or read, holds no VOLO or another one, or lacks something.
    """
    weights = read_volo(source)
    conversion = convert(weights.state_dict, target=target_state, name=weights.name, model_name=model_name)
    return replace(conversion, origin=weights.origin, dropped=weights.dropped + conversion.dropped)


def read_backbone(source: str | os.PathLike[str]) -> VoloWeights:
    """Read ``source`` (see :func:`.load_file`) as a complete backbone of any variant, in our names.

    Raises:
        UserError: The file cannot be had or read, holds no VOLO, or lacks a part of it.
    """
    weights = read_volo(source)
    found, dropped = to_backbone_names(weights.state_dict)
    needed = parameter_names(weights.architecture.depths) if weights.architecture else []
    needed += [f'{_LAST_NORM}weight', f'{_LAST_NORM}bias'] if weights.layout == 'classifier' else []
    lacking = [key for key in needed if key not in found]
    if lacking or not weights.architecture:
        raise UserError(
            f'{weights.name} lacks parts of the backbone ({first_few(lacking) or "whole stages"}): give a complete file'
        )
    return replace(weights, state_dict=found, dropped=weights.dropped + dropped)


def to_backbone_names(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Give released weights the backbone's names; ours pass unchanged.

    Returns:
        The tensors by our names, and the names dropped: dense prediction needs no classifier.
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
    """Turn VOLO weights, official, timm's or ours, into exactly the names and shapes of ``target``.

    The position grid is resampled to the target's, whatever its shape. Nothing of ``target`` is changed; what
    the file need not hold (output norms it never had, batch counters) comes from there.

    Raises:
        UserError: Another variant, something missing, something without a place, or a shape that differs.
    """
    found, dropped = to_backbone_names(state_dict)
    _check_variant(found, target, name=name, model_name=model_name)
    spare = [key for key in found if key not in target]
    _check_none(
        [key for key in spare if not re.match(r'norm\d\.', key) and not _STATISTICS.fullmatch(key)],
        f'{name} holds what {model_name} has no place for',
        'build the model that the file was saved from',
    )
    absent = [key for key in target if key not in found]
    _check_none(
        [key for key in absent if not _may_lack(key, classifier=bool(dropped))],
        f'{name} lacks what {model_name} needs',
        'give a complete file',
    )
    old = _grid(found['pos_embed'], target['pos_embed'], name=name)
    new = _grid(target['pos_embed'], target['pos_embed'], name=model_name)
    found['pos_embed'] = resize_pos_embed(found['pos_embed'], new)
    check_shapes(found, target, name=name, model_name=model_name)
    state = {key: found.get(key, value) for key, value in target.items()}
    kept = [key for key in absent if not key.endswith(_COUNTER)]
    return Conversion(state, dropped + spare, kept, (old, new) if old != new else None)


def _check_variant(found: Mapping[str, Tensor], target: Mapping[str, Tensor], *, name: str, model_name: str) -> None:
    theirs, ours = describe(found), describe(target)
    if theirs and ours and theirs != ours:
        raise UserError(
            f'{name} holds {variant_name(theirs)} weights, this model is {model_name} '
            f'({differences(theirs, ours)}): give the file of {model_name} or build the other model'
        )


def _may_lack(key: str, *, classifier: bool) -> bool:
    """Tell whether a file may do without ``key``; a classifier always has the final norm."""
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
    """Compare the shapes of what both have.

    Raises:
        UserError: Some differ.
    """
    both = ((key, tuple(value.shape), tuple(target[key].shape)) for key, value in found.items() if key in target)
    unlike = [f'{key} is {theirs} against {ours}' for key, theirs, ours in both if theirs != ours]
    _check_none(unlike, f'{name} has other shapes than {model_name}', 'build the model that the file was saved from')

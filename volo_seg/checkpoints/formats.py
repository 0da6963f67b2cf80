"""Which kind of weights file it is, and the VOLO backbone in it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from volo_seg.checkpoints.architecture import Signature, describe, variant_name
from volo_seg.checkpoints.reading import load_file
from volo_seg.errors import UserError

_CONTAINERS = ('state_dict', 'state_dict_ema')
_CLASSIFIER = ('cls_token', 'post_network.', 'norm.', 'head.', 'aux_head.')
_MARKS = ('patch_embed.proj.weight', 'network.0.0.attn.attn.weight', 'network.1.proj.weight', 'pos_embed')


@dataclass(frozen=True)
class VoloWeights:
    """The backbone's weights out of a file, names without ``module.`` and ``backbone.``.

    ``layout`` is ``'classifier'`` (official and timm, which share their names), ``'segmentor'`` (a whole
    trained model) or ``'backbone'`` (ours). ``container`` is the entry of the file they lay in, ``''`` for a
    flat file. ``dropped`` are the file's names outside the backbone.
    """

    name: str
    layout: str
    container: str
    state_dict: dict[str, Tensor]
    dropped: list[str]
    architecture: Signature | None

    @property
    def origin(self) -> str:
        """The file's kind and variant in words."""
        where = f' ({self.container})' if self.container else ''
        return f'{self.layout} weights{where} of {variant_name(self.architecture)}'


def read_volo(source: str | os.PathLike[str]) -> VoloWeights:
    """Read ``source`` (see :func:`.load_file`) and recognise it.

    Raises:
        UserError: The file cannot be had or read, or holds no VOLO.
    """
    return recognise(load_file(source), name=os.fspath(source))


def recognise(content: Mapping[str, Any], *, name: str) -> VoloWeights:
    """Recognise the ``content`` of a file called ``name``.

    Raises:
        UserError: It holds no VOLO.
    """
    state_dict, container = unwrap(content, name=name)
    backbone = {key.removeprefix('backbone.'): v for key, v in state_dict.items() if key.startswith('backbone.')}
    found = backbone or state_dict
    if sum(mark in found for mark in _MARKS) < len(_MARKS) - 1:
        raise UserError(
            f'{name} holds no VOLO weights (its names start with {first_few(list(found)[:3])}): '
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
    """Take the tensors out of their container (plain weights go before averaged ones) and drop ``module.``.

    Returns:
        The tensors by name, and the name of their container (``''`` for a flat file).

    Raises:
        UserError: There are no tensors, or some are sparse, quantized or without values.
    """
    container = next((key for key in _CONTAINERS if isinstance(content.get(key), Mapping)), '')
    entries: Mapping[str, Any] = content[container] if container else content
    tensors = {str(key).removeprefix('module.'): v for key, v in entries.items() if isinstance(v, Tensor)}
    if not tensors:
        found = first_few(list(entries)[:3]) or 'nothing'
        raise UserError(f'{name} holds no tensors but {found}: give a file of weights')
    odd = [key for key, v in tensors.items() if v.layout != torch.strided or v.is_quantized or v.is_nested or v.is_meta]
    if odd:
        raise UserError(f'{name} holds sparse, quantized or empty tensors ({first_few(odd)}): save plain dense ones')
    return tensors, container


def first_few(names: Iterable[object]) -> str:
    """The first three of ``names``, printable and at most 80 characters each, and how many there are."""
    texts = list(names)
    shown = ', '.join(repr(str(text)[:80])[1:-1] for text in texts[:3])
    return shown + (f', … {len(texts)} in all' if len(texts) > 3 else '')

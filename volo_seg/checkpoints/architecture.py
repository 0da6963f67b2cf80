"""Recognise a variant of VOLO by the shapes of its weights."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from volo_seg.layers import VARIANTS, Downsample, Outlooker, PatchEmbed, Signature, Transformer

_STAGES = (0, 2, 3, 4)  # network.1 is the downsampling between stages 1 and 2


def describe(state_dict: Mapping[str, Tensor]) -> Signature | None:
    """The signature of weights with the released names; None if entries that determine it are missing."""
    try:
        dims = tuple(_size(state_dict, rf'network\.{stage}\.\d+\.mlp\.fc2\.weight', 0) for stage in _STAGES)
        return Signature(
            depths=tuple(_depth(state_dict, stage) for stage in _STAGES),
            embed_dims=dims,
            outlook_heads=_size(state_dict, r'network\.0\.\d+\.attn\.attn\.weight', 0) // 81,  # K**4 logits a head
            mlp_ratio=_size(state_dict, r'network\.0\.\d+\.mlp\.fc1\.weight', 0) / dims[0],
            stem_channels=_size(state_dict, r'patch_embed\.proj\.weight', 1),
        )
    except (LookupError, ZeroDivisionError):
        return None


def _size(state_dict: Mapping[str, Tensor], pattern: str, axis: int) -> int:
    for key, value in state_dict.items():
        if re.fullmatch(pattern, key):
            return value.shape[axis]
    raise KeyError(pattern)


def _depth(state_dict: Mapping[str, Tensor], stage: int) -> int:
    blocks = (re.match(rf'network\.{stage}\.(\d+)\.', key) for key in state_dict)
    return 1 + max((int(block[1]) for block in blocks if block), default=-1)


def variant_name(signature: Signature | None) -> str:
    """``'volo_'`` and the key in ``VARIANTS``; depths and widths of an architecture that is not in the table."""
    if signature is None:
        return 'incomplete VOLO'
    names = (f'volo_{name}' for name, variant in VARIANTS.items() if variant.signature == signature)
    return next(names, f'VOLO of depths {signature.depths} and widths {signature.embed_dims}')


def differences(one: Signature, other: Signature) -> str:
    """Name the fields that differ, each with both values."""
    pairs = zip(Signature._fields, one, other, strict=True)
    return ', '.join(f'{field} {a} against {b}' for field, a, b in pairs if a != b)


def parameter_names(depths: tuple[int, ...]) -> list[str]:
    """The parameters of a backbone with these ``depths``, by their released names, without output norms.

    Buffers are left out, because the stem may be built with normalisation layers that have none.
    """
    with torch.device('meta'):  # the widths do not matter
        modules = {'patch_embed': PatchEmbed(1, 1), 'network.1': Downsample(1, 1)}
        outlooker, transformer = Outlooker(1, 1, mlp_ratio=1), Transformer(1, 1, mlp_ratio=1)
    for stage, depth in zip(_STAGES, depths, strict=True):
        modules |= {f'network.{stage}.{i}': transformer if stage else outlooker for i in range(depth)}
    return ['pos_embed', *(f'{path}.{name}' for path, m in modules.items() for name, _ in m.named_parameters())]

"""Which VOLO a set of weights is, told from the shapes alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

_STAGES = (0, 2, 3, 4)  # network.1 is the downsampling between stages 1 and 2
_LINEAR = ('weight', 'bias')
_NORM_AND_MLP = [f'{part}.{kind}' for part in ('norm1', 'norm2', 'mlp.fc1', 'mlp.fc2') for kind in _LINEAR]
_OUTLOOKER = ['attn.v.weight', 'attn.attn.weight', 'attn.attn.bias', 'attn.proj.weight', 'attn.proj.bias']
_TRANSFORMER = ['attn.qkv.weight', 'attn.proj.weight', 'attn.proj.bias']


class Architecture(NamedTuple):
    """What shapes tell: depth and width of each stage, heads of the outlookers, MLP ratio, stem width."""

    depths: tuple[int, ...]
    embed_dims: tuple[int, ...]
    outlook_heads: int
    mlp_ratio: float
    stem_channels: int


SIGNATURES = {
    'volo_d1': Architecture((4, 4, 8, 2), (192, 384, 384, 384), 6, 3, 64),
    'volo_d2': Architecture((6, 4, 10, 4), (256, 512, 512, 512), 8, 3, 64),
    'volo_d3': Architecture((8, 8, 16, 4), (256, 512, 512, 512), 8, 3, 64),
    'volo_d4': Architecture((8, 8, 16, 4), (384, 768, 768, 768), 12, 3, 64),
    'volo_d5': Architecture((12, 12, 20, 4), (384, 768, 768, 768), 12, 4, 128),
}
"""The paper's variants (arXiv 2106.13112, table 2, and sail-sg/volo commit cf35775)."""


def describe(state_dict: Mapping[str, Tensor]) -> Architecture | None:
    """Tell the architecture of weights with the released names, or None if too much of them is absent."""
    try:
        dims = tuple(_size(state_dict, rf'network\.{stage}\.\d+\.mlp\.fc2\.weight', 0) for stage in _STAGES)
        return Architecture(
            depths=tuple(_depth(state_dict, stage) for stage in _STAGES),
            embed_dims=dims,
            outlook_heads=_size(state_dict, r'network\.0\.\d+\.attn\.attn\.weight', 0) // 81,  # 9 x 9 a head
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


def variant_name(architecture: Architecture | None) -> str:
    """``'volo_d1'`` .. ``'volo_d5'``, or the architecture in words."""
    for name, signature in SIGNATURES.items():
        if architecture == signature:
            return name
    if architecture is None:
        return 'incomplete VOLO'
    return f'VOLO of depths {architecture.depths} and widths {architecture.embed_dims}'


def differences(one: Architecture, other: Architecture) -> str:
    """Name the fields that differ, each with both values."""
    pairs = zip(Architecture._fields, one, other, strict=True)
    return ', '.join(f'{field} {a} against {b}' for field, a, b in pairs if a != b)


def parameter_names(architecture: Architecture) -> list[str]:
    """List what a backbone file of ``architecture`` must hold, in the released names, without output norms.

    Statistics of the stem's batch norms are left out too, as a stem may be built with other norms.
    """
    stem = [f'conv.{i}.weight' for i in (0, 3, 6)] + [f'conv.{i}.{kind}' for i in (1, 4, 7) for kind in _LINEAR]
    names = [f'patch_embed.{name}' for name in [*stem, 'proj.weight', 'proj.bias']]
    names += ['network.1.proj.weight', 'network.1.proj.bias', 'pos_embed']
    for stage, depth in zip(_STAGES, architecture.depths, strict=True):
        block = _NORM_AND_MLP + (_OUTLOOKER if stage == 0 else _TRANSFORMER)
        names += [f'network.{stage}.{i}.{name}' for i in range(depth) for name in block]
    return names

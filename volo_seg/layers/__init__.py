"""VOLO as torch modules. Imports torch and ``volo_seg.ops`` only."""

from volo_seg.layers.blocks import DropPath, Mlp, Outlooker, SelfAttention, Transformer
from volo_seg.layers.embedding import Downsample, PatchEmbed, resample_pos_embed, resize_pos_embed
from volo_seg.layers.outlook_attention import OutlookAttention

__all__ = [
    'Downsample',
    'DropPath',
    'Mlp',
    'OutlookAttention',
    'Outlooker',
    'PatchEmbed',
    'SelfAttention',
    'Transformer',
    'resample_pos_embed',
    'resize_pos_embed',
]

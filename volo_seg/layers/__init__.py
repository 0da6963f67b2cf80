"""The mathematics of VOLO as torch modules; nothing here imports more than torch and ``volo_seg.ops``."""

from .blocks import DropPath, Mlp, Outlooker, SelfAttention, Transformer
from .outlook_attention import OutlookAttention
from .position import resample_pos_embed, resize_pos_embed
from .stem import Downsample, PatchEmbed

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

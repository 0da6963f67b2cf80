"""The mathematics of VOLO as torch modules; nothing here imports more than torch and ``volo_seg.ops``."""

from .blocks import DropPath, Mlp, Outlooker, SelfAttention, Transformer
from .outlook_attention import OutlookAttention
from .position import resize_pos_embed
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
    'resize_pos_embed',
]

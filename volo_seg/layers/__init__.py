"""The mathematics of VOLO as torch modules; nothing here imports more than torch and ``volo_seg.ops``."""

from volo_seg.layers.blocks import DropPath, Mlp, Outlooker, SelfAttention, Transformer
from volo_seg.layers.outlook_attention import OutlookAttention
from volo_seg.layers.position import resample_pos_embed, resize_pos_embed
from volo_seg.layers.stem import Downsample, PatchEmbed

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

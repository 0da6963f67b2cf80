"""VOLO as torch modules. Imports torch and ``volo_seg.ops`` only."""

from volo_seg.layers.blocks import DropPath, Mlp, Outlooker, SelfAttention, Transformer
from volo_seg.layers.embedding import Downsample, PatchEmbed, resample_pos_embed, resize_pos_embed
from volo_seg.layers.outlook_attention import OutlookAttention
from volo_seg.layers.variants import VARIANTS, Architecture, Signature
from volo_seg.layers.volo import VOLOFeatures
from volo_seg.layers.volo_nano import VOLONanoFeatures

__all__ = [
    'VARIANTS',
    'Architecture',
    'Downsample',
    'DropPath',
    'Mlp',
    'OutlookAttention',
    'Outlooker',
    'PatchEmbed',
    'SelfAttention',
    'Signature',
    'Transformer',
    'VOLOFeatures',
    'VOLONanoFeatures',
    'resample_pos_embed',
    'resize_pos_embed',
]

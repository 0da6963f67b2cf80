"""Locate, read, recognise, convert and save weights files: official, timm's and those of this package."""

from volo_seg.checkpoints.architecture import describe, parameter_names, variant_name
from volo_seg.checkpoints.convert import (
    Conversion,
    VoloWeights,
    convert,
    count_groups,
    load_equal,
    load_pretrained,
    read_backbone,
    read_volo,
    recognise,
    to_backbone_names,
)
from volo_seg.checkpoints.read import load_file
from volo_seg.checkpoints.save import check_destination, save_file
from volo_seg.checkpoints.segmentor import fit_segmentor_weights, load_segmentor_weights
from volo_seg.layers import VARIANTS, Architecture, Signature

__all__ = [
    'VARIANTS',
    'Architecture',
    'Conversion',
    'Signature',
    'VoloWeights',
    'check_destination',
    'convert',
    'count_groups',
    'describe',
    'fit_segmentor_weights',
    'load_equal',
    'load_file',
    'load_pretrained',
    'load_segmentor_weights',
    'parameter_names',
    'read_backbone',
    'read_volo',
    'recognise',
    'save_file',
    'to_backbone_names',
    'variant_name',
]

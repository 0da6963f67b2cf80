"""Weights in and out: official, timm and our own files, whole trained models; never unpickled unsafely."""

from .architecture import SIGNATURES, Architecture, describe, parameter_names, variant_name
from .conversion import Conversion, convert, count_groups, load_pretrained, read_backbone, to_backbone_names
from .formats import VoloWeights, read_volo, recognise
from .official import OFFICIAL, OfficialFile
from .reading import load_file
from .saving import check_destination, save_file
from .segmentor import fit_segmentor_weights, load_segmentor_weights

__all__ = [
    'OFFICIAL',
    'SIGNATURES',
    'Architecture',
    'Conversion',
    'OfficialFile',
    'VoloWeights',
    'check_destination',
    'convert',
    'count_groups',
    'describe',
    'fit_segmentor_weights',
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

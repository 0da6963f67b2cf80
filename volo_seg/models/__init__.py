"""What MMSegmentation's registry knows of this project: backbone, neck, decode head, segmentor."""

from .pyramid import VOLOPyramid
from .segmentor import VOLOSegmentor
from .uper_head import VOLOUPerHead
from .volo import VOLO

__all__ = ['VOLO', 'VOLOPyramid', 'VOLOSegmentor', 'VOLOUPerHead']

"""What MMSegmentation's registry knows of this project: backbone, neck, decode head, segmentor."""

from .host import import_mmseg

import_mmseg()

import volo_seg.registry  # noqa: E402, F401

from .fusion import fuse  # noqa: E402
from .pyramid import VOLOPyramid  # noqa: E402
from .segmentor import VOLOSegmentor  # noqa: E402
from .uper_head import VOLOUPerHead  # noqa: E402
from .volo import VOLO  # noqa: E402
from .weighted_loss import WeightedCrossEntropyLoss  # noqa: E402

__all__ = ['VOLO', 'VOLOPyramid', 'VOLOSegmentor', 'VOLOUPerHead', 'WeightedCrossEntropyLoss', 'fuse']

"""The backbone, neck, decode heads, losses and segmentor that are registered with MMSegmentation."""

from volo_seg.compat import import_mmseg

import_mmseg()

import volo_seg.registry  # noqa: E402, F401
from volo_seg.checkpoints.mmengine_loaders import register_names  # noqa: E402
from volo_seg.models.backbones.volo import VOLO, fuse  # noqa: E402
from volo_seg.models.backbones.volo_nano import VOLONano  # noqa: E402
from volo_seg.models.decode_heads.fcn_head import VOLOFCNHead  # noqa: E402
from volo_seg.models.decode_heads.uper_head import VOLOUPerHead  # noqa: E402
from volo_seg.models.losses.boundary_loss import DistanceBoundaryLoss  # noqa: E402
from volo_seg.models.losses.dice_loss import SoftDiceLoss  # noqa: E402
from volo_seg.models.losses.focal_loss import SoftmaxFocalLoss  # noqa: E402
from volo_seg.models.losses.lovasz_loss import LovaszSoftmaxLoss  # noqa: E402
from volo_seg.models.losses.weighted_cross_entropy import WeightedCrossEntropyLoss  # noqa: E402
from volo_seg.models.necks.pyramid import VOLOPyramid  # noqa: E402
from volo_seg.models.segmentors.volo_segmentor import VOLOSegmentor  # noqa: E402

register_names()

__all__ = [
    'VOLO',
    'DistanceBoundaryLoss',
    'LovaszSoftmaxLoss',
    'SoftDiceLoss',
    'SoftmaxFocalLoss',
    'VOLOFCNHead',
    'VOLONano',
    'VOLOPyramid',
    'VOLOSegmentor',
    'VOLOUPerHead',
    'WeightedCrossEntropyLoss',
    'fuse',
]

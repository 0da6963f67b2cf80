"""The fully convolutional head with losses that are computed in chunks."""

from mmseg.models.decode_heads import FCNHead
from mmseg.registry import MODELS

from volo_seg.models.decode_heads.resized_loss import ResizedLossMixin


@MODELS.register_module()
class VOLOFCNHead(ResizedLossMixin, FCNHead):
    """A drop-in ``FCNHead`` whose losses need less time and memory.

    Arguments and parameter names are those of MMSegmentation's ``FCNHead``, whose checkpoints load. Logits are resized
    in chunks of rows while ``CrossEntropyLoss`` over a softmax or ``WeightedCrossEntropyLoss``, their gradient and
    ``acc_seg`` are computed. Other losses, and samplers other than ``OHEMPixelSampler``, run MMSegmentation's code.
    """

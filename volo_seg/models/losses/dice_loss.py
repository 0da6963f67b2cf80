"""Dice loss by class."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from mmseg.registry import MODELS
from torch import Tensor

from volo_seg.models.losses.segmentation_loss import SegmentationLoss


@MODELS.register_module()
class SoftDiceLoss(SegmentationLoss):
    """Dice loss: the mean over the classes c in the labels of 1 - 2 sum(p_c g_c) / (sum(p_c^2) + sum(g_c^2)).

    p is the softmax of the logits and g the one-hot labels; sums are over the labelled pixels of the batch. Classes
    without a pixel in the batch are left out, as their overlap is not defined. With ``class_weight``, the mean is
    weighted. MMSegmentation's ``DiceLoss`` adds all classes up before it divides, so that large ones decide, and counts
    the probabilities of ignored pixels in the denominator. Source: arXiv 1606.04797.

    Args:
        class_weight, loss_weight, loss_name: See :class:`.SegmentationLoss`.
    """

    def __init__(
        self,
        *,
        class_weight: Sequence[float] | str | None = None,
        loss_weight: float = 1.0,
        loss_name: str = 'loss_dice',
    ) -> None:
        super().__init__(class_weight=class_weight, loss_weight=loss_weight, loss_name=loss_name)

    def loss(self, logits: Tensor, label: Tensor, pixels: Tensor, classes: Tensor) -> Tensor:
        probability = logits.softmax(1)
        truth = F.one_hot(label, logits.shape[1]).movedim(3, 1) * pixels[:, None]
        size = truth.sum((0, 2, 3))
        overlap = (probability * truth).sum((0, 2, 3))
        both = (probability.square() * pixels[:, None]).sum((0, 2, 3)) + size
        weights = classes * (size > 0)
        dice = 2 * overlap / both.where(size > 0, both.new_ones(()))
        return (weights * (1 - dice)).sum() / weights.sum().clamp_min(1e-12)

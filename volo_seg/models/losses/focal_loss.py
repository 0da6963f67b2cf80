"""Focal loss over a softmax."""

from __future__ import annotations

from collections.abc import Sequence

from mmseg.registry import MODELS
from torch import Tensor

from volo_seg.models.losses.segmentation_loss import SegmentationLoss


@MODELS.register_module()
class SoftmaxFocalLoss(SegmentationLoss):
    """Focal loss: the mean over labelled pixels of -w_y (1 - p_y)^gamma log p_y, with the softmax p of the logits.

    For one channel that is the paper's loss of two classes. MMSegmentation's ``FocalLoss`` is one of C sigmoids, fails
    on a CPU, and divides by the number of all pixels, ignored ones too. Source: arXiv 1708.02002.

    Args:
        gamma: Exponent; 0 is cross entropy, larger values count pixels that are right and sure less.
        class_weight, loss_weight, loss_name: See :class:`.SegmentationLoss`; ``class_weight`` is the paper's alpha.

    Raises:
        ValueError: ``gamma`` is negative, or between 0 and 1, where the gradient is not finite.
    """

    def __init__(
        self,
        *,
        gamma: float = 2.0,
        class_weight: Sequence[float] | str | None = None,
        loss_weight: float = 1.0,
        loss_name: str = 'loss_focal',
    ) -> None:
        super().__init__(class_weight=class_weight, loss_weight=loss_weight, loss_name=loss_name)
        if gamma != 0 and not gamma >= 1:
            raise ValueError(f'gamma={gamma} is neither 0 nor 1 or more')
        self.gamma = gamma

    def pixel_losses(self, logits: Tensor, label: Tensor, pixels: Tensor, classes: Tensor) -> Tensor:
        log = logits.log_softmax(1).gather(1, label[:, None])[:, 0]
        return -pixels * classes[label] * (-log.expm1()) ** self.gamma * log

    def loss(self, logits: Tensor, label: Tensor, pixels: Tensor, classes: Tensor) -> Tensor:
        return self.pixel_losses(logits, label, pixels, classes).sum() / pixels.count_nonzero().clamp_min(1)

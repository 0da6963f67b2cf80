"""The Lovasz-Softmax loss."""

from __future__ import annotations

from collections.abc import Sequence

from mmseg.registry import MODELS
from torch import Tensor

from volo_seg.models.losses.segmentation_loss import SegmentationLoss


@MODELS.register_module()
class LovaszSoftmaxLoss(SegmentationLoss):
    """The Lovasz extension of 1 - IoU, averaged over the classes in the labels, over all labelled pixels of the batch.

    With ``class_weight``, the mean is weighted. Pixels count or do not count: a weight of a pixel above 0 is 1.
    MMSegmentation's ``LovaszLoss`` gives NaN for a batch without a labelled pixel, fails on a single labelled one and
    in float64, and ignores the weights of pixels. Source: arXiv 1705.08790.

    Args:
        class_weight, loss_weight, loss_name: See :class:`.SegmentationLoss`.
    """

    def __init__(
        self,
        *,
        class_weight: Sequence[float] | str | None = None,
        loss_weight: float = 1.0,
        loss_name: str = 'loss_lovasz',
    ) -> None:
        super().__init__(class_weight=class_weight, loss_weight=loss_weight, loss_name=loss_name)

    def loss(self, logits: Tensor, label: Tensor, pixels: Tensor, classes: Tensor) -> Tensor:
        counted = pixels > 0
        probability, label = logits.softmax(1).movedim(1, 3)[counted], label[counted]
        total, weights = logits.sum() * 0, logits.new_zeros(())
        for c in label.unique():
            truth = label == c
            errors, order = (truth.to(logits.dtype) - probability[:, c]).abs().sort(descending=True)
            total = total + classes[c] * (errors * jaccard_steps(truth[order], like=errors)).sum()
            weights = weights + classes[c]
        return total / weights.clamp_min(1e-12)


def jaccard_steps(truth: Tensor, *, like: Tensor) -> Tensor:
    """By how much the Jaccard loss grows with each further wrong pixel of ``truth`` (P,), a mask in order of errors."""
    steps = truth.cumsum(0)
    size = steps[-1]
    union = size + (~truth).cumsum(0)
    loss = 1 - (size - steps).to(like.dtype) / union
    return loss.diff(prepend=loss.new_zeros(1))

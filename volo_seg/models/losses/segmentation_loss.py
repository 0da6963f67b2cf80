"""What the losses of this package have in common: ignored pixels, class weights, one channel, number formats."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmseg.models.losses.utils import get_class_weight
from torch import Tensor, nn

from volo_seg.errors import UserError
from volo_seg.ops.transforms import at_least_float32


class SegmentationLoss(nn.Module):
    """A loss between logits and labels of pixels, in float32 or wider, called as MMSegmentation's heads do.

    Ignored pixels have no part in it: neither their logits nor their number matter. One channel stands for two classes,
    the first of which has the logit 0. The loss of a batch without labelled pixels is 0, with a gradient of 0.

    Args:
        class_weight: A weight for each class, or a file (.json, .npy) with them; None weighs all classes by 1.
        loss_weight: Factor of the loss.
        loss_name: Name in the log; losses whose name starts with ``loss_`` are optimized.

    Shapes: logits (B, C, H, W), labels (B, H, W), ``weight`` of the pixels (B, H, W) or None.
    """

    def __init__(
        self, *, class_weight: Sequence[float] | str | None = None, loss_weight: float = 1.0, loss_name: str
    ) -> None:
        super().__init__()
        self.class_weight = get_class_weight(class_weight)
        self.loss_weight = loss_weight
        self.loss_name = loss_name

    def forward(
        self,
        cls_score: Tensor,
        label: Tensor,
        weight: Tensor | None = None,
        reduction_override: str | None = None,
        ignore_index: int = 255,
    ) -> Tensor:
        """A scalar; with ``reduction_override='none'`` the losses of the pixels (B, H, W), if the loss has them."""
        logits = as_classes(at_least_float32(cls_score))
        valid = label != ignore_index
        pixels = valid.to(logits.dtype)
        if weight is not None:
            pixels = pixels * weight.to(logits.dtype)
        classes = logits.new_ones(logits.shape[1])
        if self.class_weight is not None:
            classes = logits.new_tensor(self.class_weight)
        with torch.autocast(logits.device.type, enabled=False):
            if reduction_override == 'none':
                return self.loss_weight * self.pixel_losses(logits, label.masked_fill(~valid, 0), pixels, classes)
            return self.loss_weight * self.loss(logits, label.masked_fill(~valid, 0), pixels, classes)

    def loss(self, logits: Tensor, label: Tensor, pixels: Tensor, classes: Tensor) -> Tensor:
        """The scalar loss, by the weights of the pixels (B, H, W), 0 where ignored, and of the classes (C,)."""
        raise NotImplementedError

    def pixel_losses(self, logits: Tensor, label: Tensor, pixels: Tensor, classes: Tensor) -> Tensor:
        """The losses of the pixels (B, H, W)."""
        raise UserError(
            f'{type(self).__name__} is a loss of regions, and OHEMPixelSampler without thresh needs the losses of '
            'pixels; give the sampler thresh=0.7, or use CrossEntropyLoss'
        )


def as_classes(logits: Tensor) -> Tensor:
    """``logits`` (B, C, H, W), with a channel of zeros before the only one if C is 1."""
    return torch.cat([torch.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits

"""Cross entropy with class weights and label smoothing, also for half precision and ignored pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from mmseg.models.losses.utils import get_class_weight
from mmseg.registry import MODELS
from torch import Tensor, nn

from volo_seg.models.losses.segmentation_loss import as_classes
from volo_seg.ops.transforms import at_least_float32


@MODELS.register_module()
class WeightedCrossEntropyLoss(nn.Module):
    """Cross entropy averaged over the pixels that are not ignored, weighted by class; in float32 or wider.

    In float32 it equals MMSegmentation's ``CrossEntropyLoss(class_weight=...)``, which sums the weights in the dtype of
    the logits: in float16 that sum overflows above 65,504, and the loss becomes 0. One channel stands for two classes,
    the first of which has the logit 0.

    Args:
        class_weight: A weight for each class, or a file (.json, .npy) with them; None weighs all classes by 1.
        label_smoothing: As in ``torch.nn.functional.cross_entropy``, in [0, 1). Each class has ``label_smoothing / C``
            of the target, times its weight; the divisor stays the sum of the weights of the true classes.
        loss_weight: Factor of the loss.
        loss_name: Name in the log; losses whose name starts with ``loss_`` are optimized.

    With ``OHEMPixelSampler``, a threshold compares probabilities of the true class; without one, the smoothed losses
    choose the pixels.

    Raises:
        ValueError: ``label_smoothing`` is not in [0, 1).

    Shapes: logits (B, C, H, W), labels (B, H, W), ``weight`` of the pixels (B, H, W) or None.
    """

    def __init__(
        self,
        *,
        class_weight: Sequence[float] | str | None = None,
        label_smoothing: float = 0.0,
        loss_weight: float = 1.0,
        loss_name: str = 'loss_ce',
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f'label_smoothing={label_smoothing} is not in [0, 1)')
        self.label_smoothing = label_smoothing
        self.class_weight = get_class_weight(class_weight)
        self.loss_weight = loss_weight
        self.loss_name = loss_name

    def forward(
        self,
        cls_score: Tensor,
        label: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | None = None,
        reduction_override: str | None = None,
        ignore_index: int = 255,
    ) -> Tensor:
        """A scalar (0 if all pixels are ignored), or (B, H, W) with ``reduction_override='none'``."""
        logits = as_classes(at_least_float32(cls_score))
        class_weight = None if self.class_weight is None else logits.new_tensor(self.class_weight)
        options: dict[str, Any] = {'ignore_index': ignore_index, 'label_smoothing': self.label_smoothing}
        loss = F.cross_entropy(logits, label, weight=class_weight, reduction='none', **options)
        if weight is not None:
            loss = loss * weight.float()
        if reduction_override == 'none':
            return self.loss_weight * loss
        counted = label[label != ignore_index]
        if avg_factor is not None:
            total = logits.new_tensor(avg_factor)
        else:
            total = logits.new_tensor(counted.numel()) if class_weight is None else class_weight[counted].sum()
        return self.loss_weight * loss.sum() / total.clamp_min(1e-12)

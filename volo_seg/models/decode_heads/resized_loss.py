"""Losses of a head without logits at the size of the image."""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.losses.cross_entropy_loss import CrossEntropyLoss, cross_entropy
from mmseg.structures import OHEMPixelSampler
from mmseg.structures.seg_data_sample import SegDataSample
from torch import Tensor, nn

from volo_seg.models.losses.distillation import distillation_loss
from volo_seg.models.losses.resized_cross_entropy import resized_cross_entropy, resized_pixel_losses
from volo_seg.models.losses.segmentation_loss import SegmentationLoss, as_classes
from volo_seg.models.losses.weighted_cross_entropy import WeightedCrossEntropyLoss
from volo_seg.ops import why_plain

EPS = torch.finfo(torch.float32).eps
"""MMSegmentation adds it to the divisors of losses and of the accuracy."""


class ResizedLossMixin(BaseDecodeHead):
    """A decode head that resizes its logits in chunks of rows while it computes its losses and ``acc_seg``.

    Values and gradients are those of ``BaseDecodeHead``, whose own code runs if a loss is not a cross entropy over a
    softmax (``CrossEntropyLoss`` or ``WeightedCrossEntropyLoss``, without hooks), if the sampler is not
    ``OHEMPixelSampler``, if it chooses pixels by smoothed losses, or if :func:`volo_seg.ops.why_plain` gives a reason.
    Losses are computed in float32 or wider.
    """

    def loss(self, inputs: Any, batch_data_samples: list[SegDataSample], train_cfg: Any) -> dict[str, Tensor]:
        """The losses of :meth:`loss_by_feat`, and ``loss_distill`` for samples with ``teacher_logits``."""
        seg_logits = self.forward(inputs)
        result = self.loss_by_feat(seg_logits, batch_data_samples)
        if 'teacher_logits' in batch_data_samples[0]:
            soft = [sample.teacher_logits for sample in batch_data_samples]
            value = distillation_loss(
                seg_logits,
                torch.stack([one.data for one in soft]),
                temperature=soft[0].temperature,
                align_corners=self.align_corners,
            )
            result['loss_distill'] = soft[0].weight * sum(loss.loss_weight for loss in _losses(self)) * value
        return result

    def loss_by_feat(self, seg_logits: Tensor, batch_data_samples: list[SegDataSample]) -> dict[str, Tensor]:
        """Losses by name, and ``acc_seg`` in percent, of the output of :meth:`forward`, (B, C, h, w)."""
        losses = _losses(self)
        if all(isinstance(loss, (SegmentationLoss, WeightedCrossEntropyLoss)) for loss in losses):
            seg_logits = as_classes(seg_logits)
        if not self._resizes_in_chunks(seg_logits, losses):
            return super().loss_by_feat(seg_logits, batch_data_samples)
        labels = self._stack_batch_gt(batch_data_samples).squeeze(1)
        options: dict[str, Any] = {'ignore_index': self.ignore_index, 'align_corners': self.align_corners}
        dtype = torch.promote_types(seg_logits.dtype, torch.float32)
        weights = [_class_weight(loss, seg_logits.new_empty(0, dtype=dtype)) for loss in losses]
        pixel_weight = None
        if self.sampler is not None:
            pixel_losses = resized_pixel_losses(seg_logits, labels, **options)
            pixel_weight = self._hard_pixels(pixel_losses, labels, losses, weights)
        result: dict[str, Tensor] = {}
        for loss, class_weight in zip(losses, weights, strict=True):
            total, total_weight, counts = resized_cross_entropy(
                seg_logits,
                labels,
                class_weight=class_weight,
                pixel_weight=pixel_weight,
                label_smoothing=_label_smoothing(loss),
                **options,
            )
            value = loss.loss_weight * total / _divisor(loss, total_weight, labels.numel())
            result[loss.loss_name] = result[loss.loss_name] + value if loss.loss_name in result else value
        counted, correct = counts.float()
        result['acc_seg'] = ((correct + EPS) * (100.0 / (counted + EPS))).view(1)
        return result

    def _resizes_in_chunks(self, logits: Tensor, losses: list[Any]) -> bool:
        return (
            not why_plain(logits)
            and min(logits.shape) > 0
            and logits.shape[1] > 1
            and self.ignore_index is not None
            and all(_is_softmax_cross_entropy(loss) for loss in losses)
            and (self.sampler is None or type(self.sampler) is OHEMPixelSampler)
            and not (self.sampler and self.sampler.thresh is None and any(map(_label_smoothing, losses)))
        )

    def _hard_pixels(
        self, pixel_losses: Tensor, labels: Tensor, losses: list[Any], weights: list[Tensor | None]
    ) -> Tensor:
        """The weights (B, H, W), 0 or 1, that ``OHEMPixelSampler.sample`` gives."""
        valid = labels != self.ignore_index
        values, kept = pixel_losses[valid], self.sampler.min_kept * len(labels)
        chosen = torch.zeros_like(values)
        if self.sampler.thresh is not None:
            probability = values.neg_().exp_()
            threshold = probability.new_tensor(self.sampler.thresh)
            if len(probability):
                threshold = probability.sort().values[min(kept, len(probability) - 1)].clamp_min(threshold)
            chosen[probability < threshold] = 1
        else:
            classes = labels[valid]
            factors = [
                loss.loss_weight * (1 if weight is None else weight[classes])
                for loss, weight in zip(losses, weights, strict=True)
            ]
            chosen[(values * sum(factors)).argsort(descending=True)[:kept]] = 1
        return torch.zeros_like(pixel_losses).masked_scatter_(valid, chosen)


def _losses(head: BaseDecodeHead) -> list[Any]:
    return list(head.loss_decode) if isinstance(head.loss_decode, nn.ModuleList) else [head.loss_decode]


def is_stock(module: Any, kind: type[nn.Module]) -> TypeGuard[Any]:
    """Whether calling ``module`` runs ``kind.forward`` and nothing else, so that its parts may be used instead."""
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return type(module) is kind and not any(hooks) and 'forward' not in module.__dict__


def _is_softmax_cross_entropy(loss: Any) -> bool:
    if is_stock(loss, WeightedCrossEntropyLoss):
        return True
    return is_stock(loss, CrossEntropyLoss) and loss.cls_criterion is cross_entropy and loss.reduction != 'none'


def _class_weight(loss: Any, like: Tensor) -> Tensor | None:
    return None if loss.class_weight is None else like.new_tensor(loss.class_weight)


def _label_smoothing(loss: Any) -> float:
    return loss.label_smoothing if isinstance(loss, WeightedCrossEntropyLoss) else 0.0


def _divisor(loss: Any, total_weight: Tensor, pixels: int) -> Tensor | float:
    """What ``loss`` divides its sum by; ``total_weight`` is the sum of the class weights of the counted pixels."""
    if isinstance(loss, WeightedCrossEntropyLoss):
        return total_weight.clamp_min(1e-12)
    if loss.reduction == 'sum':
        return 1.0
    return (total_weight if loss.class_weight is not None or loss.avg_non_ignore else pixels) + EPS

"""Distillation: the loss between the logits of a student and those of its teacher."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from volo_seg.ops.transforms import at_least_float32


def distillation_loss(
    logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0, align_corners: bool = False
) -> Tensor:
    """``temperature**2`` times the mean over all positions of KL(teacher || student), in float32 or wider.

    The probabilities of both are the softmax of their logits divided by ``temperature``. One channel stands for two
    classes, the first of which has the logit 0. Source: arXiv 1503.02531.

    Args:
        logits: (B, C, h, w), of the student.
        teacher_logits: (B, C, H, W), resized to (h, w) if that differs.
        temperature: Divisor of the logits, above 0; larger values make the probabilities more equal.
        align_corners: As in ``F.interpolate``.
    """
    wide = at_least_float32(teacher_logits)
    if wide.shape[2:] != logits.shape[2:]:
        wide = F.interpolate(wide, logits.shape[2:], mode='bilinear', align_corners=align_corners)
    student, teacher = (_log_probabilities(part / temperature) for part in (at_least_float32(logits), wide))
    divergence = F.kl_div(student, teacher, reduction='sum', log_target=True)
    return temperature**2 * divergence / max(1, logits[:, 0].numel())


def _log_probabilities(logits: Tensor) -> Tensor:
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], 1)
    return logits.log_softmax(1)

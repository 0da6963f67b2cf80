"""The module that is exported: a batch of images to logits or labels at the size of the images."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from volo_seg.errors import UserError
from volo_seg.models.segmentors.volo_segmentor import EncoderDecoder, head_only_resizes, overridden_methods


class WholeImage(nn.Module):
    """A segmentor applied to whole images of one size: (B, 3, H, W) to logits (B, C, H, W).

    Args:
        model: The segmentor, in evaluation mode. Sliding windows (``test_cfg``) are not part of the export.
        normalize: Take uint8 pixels (B, 3, H, W) in BGR instead of normalized ones.
        argmax: Return (logits, labels) with labels (B, H, W).

    Raises:
        UserError: The head does more than resize its logits in testing, or the data preprocessor pads images.
    """

    def __init__(self, model: nn.Module, *, normalize: bool = False, argmax: bool = False) -> None:
        super().__init__()
        _check(model)
        self.model: Any = model
        self.normalize, self.argmax = normalize, argmax

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return logits, or (logits, labels) with ``argmax``."""
        x = self._normalized(image) if self.normalize else image
        logits = self.model.decode_head(self.model.extract_feat(x))
        align = self.model.align_corners
        logits = F.interpolate(logits, image.shape[2:], mode='bilinear', align_corners=align)
        return (logits, self._labels(logits)) if self.argmax else logits

    def _normalized(self, image: Tensor) -> Tensor:
        preprocessor = self.model.data_preprocessor
        x = image.flip(1) if preprocessor._channel_conversion else image
        x = x.float()
        return (x - preprocessor.mean) / preprocessor.std if preprocessor._enable_normalize else x

    def _labels(self, logits: Tensor) -> Tensor:
        channels = logits.shape[1]
        labels = logits.argmax(1) if channels > 1 else logits[:, 0].sigmoid() > self.model.decode_head.threshold
        return labels.to(torch.uint8 if channels <= 256 else torch.int32)


def _check(model: Any) -> None:
    if not isinstance(model, EncoderDecoder) or overridden_methods(model):
        raise UserError(f'a {type(model).__name__} cannot be exported: use EncoderDecoder or VOLOSegmentor')
    if not head_only_resizes(model.decode_head):
        head = type(model.decode_head).__name__
        raise UserError(f'the head {head} changes its logits in testing and cannot be exported: use another')
    if getattr(model.data_preprocessor, 'test_cfg', None):
        raise UserError('data_preprocessor.test_cfg pads images, which cannot be exported: set it to None')

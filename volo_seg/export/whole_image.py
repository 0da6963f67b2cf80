"""The function that is exported: a batch of images to logits or labels at the images' size."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from volo_seg.errors import UserError
from volo_seg.models.segmentors.volo_segmentor import BaseDecodeHead, EncoderDecoder


class WholeImage(nn.Module):
    """A segmentor's network on whole images of one size.

    Args:
        model: The segmentor, in evaluation mode; its windows (``test_cfg``) play no part here.
        normalize: Take pixels as they are, (B, 3, H, W) uint8 in BGR, instead of normalised ones.
        argmax: Also give labels.

    Shapes: (B, 3, H, W) to logits (B, C, H, W); with ``argmax`` to these and labels (B, H, W).

    Raises:
        UserError: The model's head does more than to resize its output when testing, or the model pads its input.
    """

    def __init__(self, model: nn.Module, *, normalize: bool = False, argmax: bool = False) -> None:
        super().__init__()
        _check(model)
        self.model: Any = model
        self.normalize, self.argmax = normalize, argmax

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """See the class."""
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
    if not isinstance(model, EncoderDecoder) or type(model).encode_decode is not EncoderDecoder.encode_decode:
        raise UserError(f'a {type(model).__name__} cannot be exported: export knows EncoderDecoder and VOLOSegmentor')
    head = type(model.decode_head)
    if getattr(head, 'predict', None) is not BaseDecodeHead.predict or (
        head.predict_by_feat is not BaseDecodeHead.predict_by_feat
    ):
        raise UserError(
            f'the head {head.__name__} does more with its logits than to resize them, which export does not know'
        )
    if getattr(model.data_preprocessor, 'test_cfg', None):
        raise UserError('data_preprocessor.test_cfg pads images, which export does not know; set it to None')

"""Encoder and decoder, with sliding windows in batches and labels in chunks."""

from __future__ import annotations

from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import MODELS


@MODELS.register_module()
class VOLOSegmentor(EncoderDecoder):
    """``EncoderDecoder`` of MMSegmentation."""

"""Outlook attention as a function of tensors: a reference and three implementations that equal it. torch only."""

from volo_seg.ops.functional import IMPLEMENTATIONS, explain, outlook_attention
from volo_seg.ops.transforms import at_least_float32, exporting, why_plain

__all__ = ['IMPLEMENTATIONS', 'at_least_float32', 'explain', 'exporting', 'outlook_attention', 'why_plain']

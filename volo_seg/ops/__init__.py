"""Outlook attention as a function of tensors: a reference and three implementations that equal it. torch only."""

from volo_seg.ops.functional import IMPLEMENTATIONS, explain, outlook_attention

__all__ = ['IMPLEMENTATIONS', 'explain', 'outlook_attention']

"""Outlook attention as a function of tensors: the definition, and three implementations equal to it."""

from volo_seg.ops.functional import IMPLEMENTATIONS, explain, outlook_attention

__all__ = ['IMPLEMENTATIONS', 'explain', 'outlook_attention']

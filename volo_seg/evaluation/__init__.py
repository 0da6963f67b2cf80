"""Exact evaluation: confusion matrix, the scores that follow from it, reports and submissions.

Importing the package registers :class:`ExactIoUMetric` with MMSegmentation.
"""

from volo_seg.evaluation.metric import ExactIoUMetric

__all__ = ['ExactIoUMetric']

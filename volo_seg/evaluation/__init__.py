"""Exact evaluation: confusion matrix, the scores that follow from it, reports and submissions.

Importing the package registers :class:`ExactIoUMetric` and :class:`OverlappedEvaluator` with MMSegmentation.
"""

from volo_seg.evaluation.metric import ExactIoUMetric
from volo_seg.evaluation.overlapped_evaluator import OverlappedEvaluator

__all__ = ['ExactIoUMetric', 'OverlappedEvaluator']

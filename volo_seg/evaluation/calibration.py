"""Expected calibration error: the difference of confidence and accuracy, averaged over bins of confidence.

Source: Guo et al., 'On Calibration of Modern Neural Networks', arXiv:1706.04599, equation 3; 15 bins of equal width,
each including its upper end.
"""

from __future__ import annotations

import torch
from torch import Tensor

from volo_seg.evaluation.tally import CALIBRATION_BINS

UNIT = 2.0**24
_ROWS = 64


def calibration_counts(scores: Tensor, truth: Tensor, prediction: Tensor, *, ignore_index: int) -> Tensor:
    """Count pixels, correct pixels and summed confidence (units of 2**-24) in each bin: (3, 15) int64, CPU.

    The memory needed does not depend on the height, because strips of rows are counted one after another.

    Args:
        scores: (C, H, W) logits, or probabilities if they lie in [0, 1] and sum to 1 in every pixel (averaged
            predictions do); with C = 1 the probability of class 1.
        truth: (H, W).
        prediction: (H, W).
        ignore_index: Value of ``truth`` that is not counted.
    """
    counts = torch.zeros(3, CALIBRATION_BINS, dtype=torch.int64, device=scores.device)
    truth, prediction = truth.to(scores.device), prediction.to(scores.device)
    strips = scores.split(_ROWS, dim=1)
    probabilities = len(scores) == 1 or all(
        bool(strip.min() >= 0) and bool((strip.float().sum(0) - 1).abs().max() < 1e-3) for strip in strips
    )
    for start in range(0, scores.shape[1], _ROWS):
        strip = slice(start, start + _ROWS)
        confidence = _confidence(scores[:, strip], prediction[strip], probabilities)
        counts += _binned(confidence, truth[strip], prediction[strip], ignore_index)
    return counts.cpu()


def expected_calibration_error(counts: Tensor) -> float:
    """Mean absolute difference of confidence and accuracy over the bins, weighted by pixels; in [0, 1].

    Raises:
        ValueError: No pixel was counted.
    """
    pixels, correct, confidence = counts.double()
    if not pixels.any():
        raise ValueError('the calibration error is undefined without pixels')
    return float((correct - confidence / UNIT).abs().sum() / pixels.sum())


def _confidence(scores: Tensor, prediction: Tensor, probabilities: bool) -> Tensor:
    """Probability (H, W) of the predicted class."""
    scores = scores.float()
    if len(scores) == 1:
        return torch.where(prediction > 0, scores[0], 1 - scores[0])
    chosen = scores.gather(0, prediction[None].long())[0]
    return chosen if probabilities else (chosen - scores.logsumexp(0)).exp()


def _binned(confidence: Tensor, truth: Tensor, prediction: Tensor, ignore_index: int) -> Tensor:
    """The counts of a strip. Ignored pixels are counted in an additional bin, which is dropped."""
    edges = torch.arange(1, CALIBRATION_BINS, device=confidence.device) / CALIBRATION_BINS
    bins = torch.bucketize(confidence, edges).masked_fill_(truth == ignore_index, CALIBRATION_BINS)
    amounts = torch.stack(
        [torch.ones_like(bins), (truth == prediction).long(), (confidence.double() * UNIT).round().long()]
    )
    sums = torch.zeros(3, CALIBRATION_BINS + 1, dtype=torch.int64, device=bins.device)
    return sums.index_add_(1, bins.reshape(-1), amounts.reshape(3, -1))[:, :CALIBRATION_BINS]

"""Expected calibration error: is a model that says 80 % right in 80 % of the pixels?

Source: Guo et al., 'On Calibration of Modern Neural Networks', arXiv:1706.04599, equation 3, 15 bins of equal
width, each without its lower and with its upper end.
"""

from __future__ import annotations

import torch
from torch import Tensor

from volo_seg.evaluation.tally import CALIBRATION_BINS

UNIT = 2.0**24
_ROWS = 64


def calibration_counts(scores: Tensor, truth: Tensor, prediction: Tensor, *, ignore_index: int) -> Tensor:
    """(3, 15) int64 on the CPU: pixels, correct pixels and summed confidence (units of 2**-24) in each bin.

    ``scores`` (C, H, W) are logits, or probabilities if they lie in [0, 1] and sum to 1 in every pixel
    (averaged predictions do); with C = 1 they are the probability of class 1. Works in strips of rows.
    """
    counts = torch.zeros(3, CALIBRATION_BINS, dtype=torch.int64, device=scores.device)
    truth, prediction = truth.to(scores.device), prediction.to(scores.device)
    probabilities = len(scores) == 1 or _are_probabilities(scores)
    for start in range(0, scores.shape[1], _ROWS):
        strip = slice(start, start + _ROWS)
        confidence = _confidence(scores[:, strip], prediction[strip], probabilities)
        counts += _binned(confidence, truth[strip], prediction[strip], ignore_index)
    return counts.cpu()


def expected_calibration_error(counts: Tensor) -> float:
    """Mean distance of confidence and accuracy over the bins, weighted by pixels; a share in [0, 1].

    Raises:
        ValueError: nothing was counted.
    """
    pixels, correct, confidence = counts.double()
    if not pixels.any():
        raise ValueError('the calibration error of no pixel at all is not defined')
    return float((correct - confidence / UNIT).abs().sum() / pixels.sum())


def _are_probabilities(scores: Tensor) -> bool:
    strips = scores.split(_ROWS, dim=1)
    return all(bool(strip.min() >= 0) and bool((strip.float().sum(0) - 1).abs().max() < 1e-3) for strip in strips)


def _confidence(scores: Tensor, prediction: Tensor, probabilities: bool) -> Tensor:
    """Probability (H, W) of the predicted class."""
    scores = scores.float()
    if len(scores) == 1:
        return torch.where(prediction > 0, scores[0], 1 - scores[0])
    chosen = scores.gather(0, prediction[None].long())[0]
    return chosen if probabilities else (chosen - scores.logsumexp(0)).exp()


def _binned(confidence: Tensor, truth: Tensor, prediction: Tensor, ignore_index: int) -> Tensor:
    """Ignored pixels go to a bin of their own, which is dropped."""
    edges = torch.arange(1, CALIBRATION_BINS, device=confidence.device) / CALIBRATION_BINS
    bins = torch.bucketize(confidence, edges).masked_fill_(truth == ignore_index, CALIBRATION_BINS)
    amounts = torch.stack(
        [torch.ones_like(bins), (truth == prediction).long(), (confidence.double() * UNIT).round().long()]
    )
    sums = torch.zeros(3, CALIBRATION_BINS + 1, dtype=torch.int64, device=bins.device)
    return sums.index_add_(1, bins.reshape(-1), amounts.reshape(3, -1))[:, :CALIBRATION_BINS]

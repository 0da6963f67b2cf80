"""Labels, confidence and probabilities of a segmentor's result, as arrays."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from mmseg.structures import SegDataSample
from torch import Tensor

from volo_seg.inference.base import Scores
from volo_seg.models.resize.logit_source import label_confidence
from volo_seg.models.segmentors.lazy_logits import LazyLogits

_ROWS = 64


def scores_of(sample: SegDataSample, *, classes: int, confidence: bool, probabilities: bool) -> Scores:
    """Take what was asked for out of ``sample``, a few rows at a time.

    Probabilities are the softmax of the logits. A head with one channel gives the sigmoid: that of the second class;
    the first class has the rest.
    """
    labels = sample.pred_sem_seg.data[0].to(torch.uint8 if classes <= 256 else torch.int32)
    height, width = labels.shape
    sure = np.empty((height, width), np.float32) if confidence else None
    shares = np.empty((classes, height, width), np.float32) if probabilities else None
    if confidence or probabilities:
        for start, stop, logits in _rows(sample.seg_logits):
            if shares is not None:
                part = _probabilities(logits)
                shares[:, start:stop] = part.permute(2, 0, 1).cpu().numpy()
            if sure is not None:
                sure[start:stop] = label_confidence(logits, labels[start:stop]).cpu().numpy()
    return Scores(labels.cpu().numpy(), sure, shares)


def _rows(logits: LazyLogits | object) -> Iterator[tuple[int, int, Tensor]]:
    """(first row, row behind the last, logits (rows, W, channels)), float32 or better."""
    if isinstance(logits, LazyLogits):
        yield from logits.rows()
        return
    data = logits.data  # type: ignore[attr-defined]
    if len(data) == 1:  # MMSegmentation has applied the sigmoid
        data = data.double().logit()
    for start in range(0, data.shape[1], _ROWS):
        part = data[:, start : start + _ROWS].permute(1, 2, 0)
        yield start, start + part.shape[0], part if part.dtype.itemsize >= 4 else part.float()


def _probabilities(logits: Tensor) -> Tensor:
    if logits.shape[-1] > 1:
        return logits.softmax(-1)
    second = logits.sigmoid()
    return torch.cat([1 - second, second], -1)

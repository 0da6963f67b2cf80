"""The counts of an evaluation: integers only, so that sums do not depend on the order of the images."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

CALIBRATION_BINS = 15


@dataclass
class Tally:
    """The counts of one or more images for C classes; int64, CPU.

    Attributes:
        matrix: (C, C + 1) pixels by true and predicted class; missed pixels in the last column.
        seen: (3,) images, pixels, ignored pixels.
        boundary: (3, C) boundary pixels that agree, of the truth, of the prediction.
        calibration: (3, 15) pixels, correct pixels and summed confidence (units of 2**-24) by bin of confidence.
    """

    matrix: Tensor
    seen: Tensor
    boundary: Tensor
    calibration: Tensor

    @classmethod
    def empty(cls, num_classes: int) -> Tally:
        """A tally of no image."""
        shapes = ((num_classes, num_classes + 1), (3,), (3, num_classes), (3, CALIBRATION_BINS))
        return cls(*(torch.zeros(shape, dtype=torch.int64) for shape in shapes))

    @classmethod
    def of_image(cls, matrix: Tensor, *, ignored: int, pixels: int) -> Tally:
        """The counts of an image with ``pixels`` pixels."""
        tally = cls.empty(len(matrix))
        tally.matrix += matrix
        tally.seen += torch.tensor([1, pixels, ignored])
        tally.check()
        return tally

    @property
    def images(self) -> int:
        return int(self.seen[0])

    @property
    def ignored(self) -> int:
        return int(self.seen[2])

    def check(self) -> None:
        """Check that the matrix and the ignored pixels sum to the pixels seen.

        Raises:
            RuntimeError: They do not; this is a bug in the counting.
        """
        counted, pixels = int(self.matrix.sum()) + self.ignored, int(self.seen[1])
        if counted != pixels:
            raise RuntimeError(f'the confusion matrix accounts for {counted} pixels of {pixels} seen')

    def add(self, other: Tally) -> None:
        """Add the counts of ``other`` in place, and check the sum."""
        for field in fields(self):
            getattr(self, field.name).add_(getattr(other, field.name))
        self.check()

    def to_vector(self) -> Tensor:
        """All counts as one vector, for summing across processes."""
        return torch.cat([getattr(self, field.name).reshape(-1) for field in fields(self)])

    @classmethod
    def from_vector(cls, vector: Tensor, num_classes: int) -> Tally:
        """Inverse of :meth:`to_vector`."""
        tally, start = cls.empty(num_classes), 0
        for field in fields(cls):
            part = getattr(tally, field.name)
            part.copy_(vector[start : start + part.numel()].view_as(part))
            start += part.numel()
        tally.check()
        return tally

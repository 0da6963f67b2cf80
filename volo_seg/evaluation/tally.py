"""What an evaluation has counted so far: whole numbers only, so that sums do not depend on their order."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

CALIBRATION_BINS = 15


@dataclass
class Tally:
    """Counts of one image or of many (int64, CPU); C classes.

    ``matrix`` (C, C + 1): true class by predicted class, last column missed pixels. ``seen`` (3,): images,
    pixels, ignored pixels. ``boundary`` (3, C): contour pixels that agree, of the truth, of the prediction.
    ``calibration`` (3, 15): pixels, correct pixels, summed confidence in units of 2**-24, by confidence.
    """

    matrix: Tensor
    seen: Tensor
    boundary: Tensor
    calibration: Tensor

    @classmethod
    def empty(cls, num_classes: int) -> Tally:
        """Nothing counted yet."""
        shapes = ((num_classes, num_classes + 1), (3,), (3, num_classes), (3, CALIBRATION_BINS))
        return cls(*(torch.zeros(shape, dtype=torch.int64) for shape in shapes))

    @classmethod
    def of_image(cls, matrix: Tensor, *, ignored: int, pixels: int) -> Tally:
        """The counts of one image of ``pixels`` pixels."""
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
        """Every pixel seen is in the matrix or was ignored, and none twice.

        Raises:
            RuntimeError: that is not so (a fault of the counting itself).
        """
        counted, pixels = int(self.matrix.sum()) + self.ignored, int(self.seen[1])
        if counted != pixels:
            raise RuntimeError(f'the confusion matrix accounts for {counted} pixels of {pixels} seen')

    def add(self, other: Tally) -> None:
        """Add the counts of ``other`` in place; the matrix must grow by exactly the pixels counted there."""
        for field in fields(self):
            getattr(self, field.name).add_(getattr(other, field.name))
        self.check()

    def to_vector(self) -> Tensor:
        """All counts in one row, to be summed across processes."""
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

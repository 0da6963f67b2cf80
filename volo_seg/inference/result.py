"""What a prediction is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Result:
    """Labels of one image.

    Attributes:
        image: (H, W, 3) uint8, BGR: what was segmented.
        labels: (H, W) uint8 (int32 above 256 classes): an index into ``classes`` for each pixel.
        classes: Class names.
        palette: (len(classes), 3) uint8, RGB.
    """

    image: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    palette: np.ndarray

    def colour(self) -> np.ndarray:
        """The labels as colours, (H, W, 3) uint8, BGR."""
        return self.palette[:, ::-1][self.labels]

    def overlay(self, *, opacity: float = 0.5) -> np.ndarray:
        """The colours over the image, (H, W, 3) uint8, BGR; ``opacity`` of the colours in [0, 1]."""
        if not 0.0 <= opacity <= 1.0:
            raise ValueError(f'opacity={opacity} is not in [0, 1]')
        mixed = opacity * self.colour().astype(np.float32) + (1.0 - opacity) * self.image.astype(np.float32)
        return np.rint(mixed).astype(np.uint8)

    def shares(self) -> dict[str, float]:
        """Share of the pixels of each class that occurs, in [0, 1], largest first."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.classes)) / self.labels.size
        return {self.classes[i]: float(counts[i]) for i in np.argsort(-counts, kind='stable') if counts[i] > 0}

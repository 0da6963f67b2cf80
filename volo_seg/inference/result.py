"""What a prediction is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from volo_seg.errors import UserError
from volo_seg.visualization import colourize, overlay


@dataclass(frozen=True)
class Result:
    """Labels of one image, at the image's own size.

    Attributes:
        image: (H, W, 3) uint8, BGR: what was segmented, turned as EXIF says.
        labels: (H, W) uint8 (int32 above 256 classes): an index into ``classes`` for each pixel.
        classes: Class names.
        palette: (len(classes), 3) uint8, RGB.
        confidence: (H, W) float32 in [0, 1], the probability of the label of each pixel; None unless asked for.
        probabilities: (len(classes), H, W) float32 in [0, 1]; None unless asked for.
        name: What results are called in files: the image's file name without its suffix; None for arrays.
    """

    image: np.ndarray = field(repr=False)
    labels: np.ndarray = field(repr=False)
    classes: tuple[str, ...] = field(repr=False)
    palette: np.ndarray = field(repr=False)
    confidence: np.ndarray | None = field(default=None, repr=False)
    probabilities: np.ndarray | None = field(default=None, repr=False)
    name: str | None = None

    def colour(self) -> np.ndarray:
        """The labels as colours, (H, W, 3) uint8, BGR."""
        return colourize(self.labels, self.palette[:, ::-1])

    def overlay(self, *, opacity: float = 0.5) -> np.ndarray:
        """The colours over the image, (H, W, 3) uint8, BGR; ``opacity`` of the colours in [0, 1]."""
        return overlay(self.image, self.labels, self.palette[:, ::-1], opacity=opacity)

    def shares(self) -> dict[str, float]:
        """Share of the pixels of each class that occurs, in [0, 1], largest first."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.classes)) / self.labels.size
        return {self.classes[i]: float(counts[i]) for i in np.argsort(-counts, kind='stable') if counts[i] > 0}

    def save(
        self,
        folder: str | Path,
        kinds: Sequence[str] = ('labels', 'overlay'),
        *,
        name: str | None = None,
        opacity: float = 0.5,
    ) -> list[Path]:
        """Write one file a kind below ``folder`` and return their paths; see :func:`.writers.save_result`.

        Args:
            folder: Made if it is missing.
            kinds: What to write, of :data:`volo_seg.inference.output_formats.KINDS`.
            name: Name of the files without suffix, instead of the result's own.
            opacity: Of the colours in an overlay, in [0, 1].

        Raises:
            UserError: An unknown kind, a kind that was not computed, no name, or one that leads out of ``folder``.
        """
        from volo_seg.inference.writers import save_result

        chosen = name or self.name
        if not chosen:
            raise UserError('a result of an image without a file name needs one: save(folder, name=...)')
        return save_result(self, folder, name=chosen, kinds=kinds, opacity=opacity)


@dataclass(frozen=True)
class Failure:
    """An image that could not be segmented, and why, in one sentence."""

    source: Any
    reason: str

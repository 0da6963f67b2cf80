"""Prediction with an exported file, whatever its runtime: the metadata of the file say how images are prepared."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Iterator
from importlib import import_module
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from volo_seg.errors import UserError
from volo_seg.inference.base import BasePredictor, Prediction
from volo_seg.inference.onnx_metadata import InputSpec, OnnxMetadata, ResizeSpec, WindowSpec
from volo_seg.inference.resizing import fitted_size, prediction_from_logits
from volo_seg.windows import WindowGrid

PREDICTORS = {
    '.onnx': ('onnx_predictor', 'OnnxPredictor'),
    '.xml': ('openvino_predictor', 'OpenVinoPredictor'),
    '.pt2': ('torch_program_predictor', 'TorchProgramPredictor'),
    '.ts': ('torch_program_predictor', 'TorchProgramPredictor'),
}
"""Module and class that run an exported file, by its suffix."""
MOST_PIXELS = 2**28
"""Largest number of pixels of a resized image."""


def exported_predictor(path: str | PathLike[str]) -> type[ExportedPredictor]:
    """The class that runs the exported file ``path``, by its suffix, which must be one of :data:`PREDICTORS`."""
    module, name = PREDICTORS[Path(path).suffix]
    return getattr(import_module(f'volo_seg.inference.{module}'), name)


class ExportedPredictor(BasePredictor):
    """Segments images with a file of ``volo-seg export``, with the same results as :class:`Predictor`.

    A subclass is for one runtime: it opens the file (:meth:`_open`) and runs it (:meth:`_run`). The metadata of the
    file define how images are resized and normalized, and whether they are predicted whole or in windows.

    A file with the argmax inside gives labels at the size of the network input. For an image that was resized, labels
    are resized by nearest neighbour, which differs from the other predictors at the borders of objects. Such a file
    has no confidence, no probabilities and no windows.

    Args:
        path: The file.
        device: ``'auto'``, ``'cpu'``, ``'cuda'``, ``'cuda:N'``, as far as the runtime has it.
        batch_size: Largest number of images of equal size, or of windows, in one run of the graph.
        confidence, probabilities: See :class:`BasePredictor`.
        threads: CPU threads of the runtime; 0 means its default.

    Raises:
        UserError: The runtime, the file or the device is missing, or the file was not exported by this project.
    """

    kind = ''
    """The format of the file, for messages."""
    runtime = ''
    """The name of the runtime, for messages."""

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        device: str = 'auto',
        batch_size: int = 1,
        confidence: bool = False,
        probabilities: bool = False,
        threads: int = 0,
    ) -> None:
        name = fspath(path)
        if not Path(path).is_file():
            raise UserError(f'{name!r} does not exist or is not a file; give a file of volo-seg export')
        self.metadata = OnnxMetadata.from_metadata(self._open(Path(path), device=device, threads=threads), name=name)
        self._check_graph(name)
        super().__init__(
            self.metadata.classes,
            self.metadata.palette,
            reading=self.metadata.reading,
            batch_size=batch_size,
            confidence=confidence,
            probabilities=probabilities,
        )

    @abstractmethod
    def _open(self, path: Path, *, device: str, threads: int) -> dict[str, str]:
        """Open the file, and return the entries of its metadata."""

    @abstractmethod
    def _run(self, image: np.ndarray) -> np.ndarray:
        """The output for an input (B, 3, H, W); see :attr:`metadata`."""

    def _check_graph(self, name: str) -> None:
        """Raise UserError if the network does not fit :attr:`metadata`."""

    def _prepare(self, image: np.ndarray) -> tuple[Hashable, Any]:
        resized = resize_image(self.metadata.resize, image)
        return resized.shape[:2], (resized, image.shape[:2])

    def _segment(self, batch: list[Any], *, confidence: bool, probabilities: bool) -> list[Prediction]:
        if self.metadata.output.kind == 'labels':
            if confidence or probabilities:
                raise UserError(
                    f'this {self.kind} file gives labels only, no confidence and no probabilities: export it without '
                    '--argmax'
                )
            labels = self.run(self.make_input([image for image, _ in batch]))
            return [
                Prediction(
                    one if one.shape == size else cv2.resize(one, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
                )
                for one, (_, size) in zip(labels, batch, strict=True)
            ]
        return [
            prediction_from_logits(
                logits,
                size,
                classes=len(self.classes),
                align_corners=self.metadata.output.align_corners,
                threshold=self.metadata.output.threshold,
                confidence=confidence,
                probabilities=probabilities,
            )
            for logits, (_, size) in zip(self._logits([image for image, _ in batch]), batch, strict=True)
        ]

    def make_input(self, images: list[np.ndarray]) -> np.ndarray:
        """The input of the graph for resized ``images`` of one size; see :func:`network_input`."""
        return network_input(self.metadata.input, images)

    def run(self, image: np.ndarray) -> np.ndarray:
        """Run the graph on an input (B, 3, H, W).

        Raises:
            UserError: The runtime fails, or the output does not match the metadata of the file.
        """
        try:
            output = self._run(image)
        except Exception as error:  # runtimes raise exceptions of their own, without a common class
            if isinstance(error, (UserError, MemoryError)):
                raise
            size = ' x '.join(map(str, image.shape))
            raise UserError(f'{self.runtime} cannot run the network on {size} values ({short(error)})') from error
        batch, _, *sides = image.shape
        found = f'{getattr(output, "dtype", type(output).__name__)} {getattr(output, "shape", "")}'
        if self.metadata.output.kind == 'logits':
            channels = 1 if self.metadata.output.threshold is not None else len(self.classes)
            valid = getattr(output, 'shape', None) == (batch, channels, *sides) and output.dtype.kind == 'f'
        else:
            valid = getattr(output, 'shape', None) == (batch, *sides) and output.dtype.kind in 'iu'
            valid = valid and output.min() >= 0 and output.max() < len(self.classes)
        if not valid:
            raise UserError(
                f'this {self.kind} file gives {found}, not its {self.metadata.output.kind}: export it again'
            )
        return output

    def _logits(self, images: list[np.ndarray]) -> Iterator[np.ndarray]:
        """Logits (C, h, w) of each of ``images`` of one size (h, w)."""
        if self.metadata.windows is None:
            yield from self.run(self.make_input(images))
            return
        for image in images:
            yield self._averaged(image, self.metadata.windows)

    def _averaged(self, image: np.ndarray, windows: WindowSpec) -> np.ndarray:
        """Logits (C, h, w) of ``image``, averaged over windows."""
        size = image.shape[:2]
        grid = WindowGrid(size, crop_size=windows.crop_size, stride=windows.stride)
        window, positions = grid.size, list(grid)
        weights = [
            # along a side that the image is shorter than there is one window, which counts alone
            np.asarray(values if len(values) == length else [1.0] * length, np.float32)
            for values, length in zip((windows.down, windows.across), window, strict=True)
        ]
        weight = weights[0][:, None] * weights[1]
        total = np.zeros(0, np.float32)
        for first in range(0, len(positions), self.batch_size):
            batch = positions[first : first + self.batch_size]
            crops = [image[y : y + window[0], x : x + window[1]] for y, x in batch]
            for (y, x), logits in zip(batch, self.run(self.make_input(crops)), strict=True):
                total = total if total.size else np.zeros((len(logits), *size), np.float32)
                total[:, y : y + window[0], x : x + window[1]] += logits * weight
        down, across = (_cover(*axis) for axis in zip((grid.tops, grid.lefts), weights, size, strict=True))
        total /= down[:, None] * across
        return total


def short(error: Exception) -> str:
    """The message of ``error`` on one line."""
    return ' '.join(str(error).split())[:200]


def resize_image(spec: ResizeSpec | None, image: np.ndarray) -> np.ndarray:
    """Resize ``image`` (H, W, 3) uint8 as the test pipeline of MMSegmentation does."""
    if spec is None:
        return image
    height, width = image.shape[:2]
    if spec.scale is not None:
        across, down = spec.scale
    else:
        assert spec.scale_factor is not None
        across, down = (
            max(1, int(side * factor + 0.5)) for side, factor in zip((width, height), spec.scale_factor, strict=True)
        )
    size = fitted_size((height, width), (down, across)) if spec.keep_ratio else (down, across)
    if size[0] * size[1] > MOST_PIXELS:
        raise UserError(f'this file resizes {width}x{height} to {size[1]}x{size[0]} pixels: export it again')
    return image if size == (height, width) else cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)


def network_input(spec: InputSpec, images: list[np.ndarray]) -> np.ndarray:
    """The input (B, 3, H, W) of the graph for ``images`` (H, W, 3) uint8, BGR, of one size."""
    stacked = np.stack(images)
    if spec.channels == 'RGB':
        stacked = stacked[..., ::-1]
    if spec.dtype == 'uint8':
        return np.ascontiguousarray(stacked.transpose(0, 3, 1, 2))
    mean, std = (np.asarray(values, np.float32)[:, None, None] for values in (spec.mean, spec.std))
    pixels = np.ascontiguousarray(stacked.transpose(0, 3, 1, 2), np.float32)
    pixels -= mean
    pixels /= std
    return pixels


def _cover(starts: list[int], profile: np.ndarray, length: int) -> np.ndarray:
    """Sum of the weights of all windows for each pixel along an axis."""
    total = np.zeros(length, np.float32)
    for start in starts:
        total[start : start + len(profile)] += profile
    return total

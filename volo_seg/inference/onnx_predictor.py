"""Prediction with an exported ONNX file; needs onnxruntime and NumPy only."""

from __future__ import annotations

import mmap
from collections.abc import Hashable, Iterator
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

MOST_PIXELS = 2**28
"""Largest number of pixels of a resized image."""
_EXTERNAL = b'\x0a\x08location'
"""Protocol buffer of the key 'location', which names the file of a tensor's external data."""


class OnnxPredictor(BasePredictor):
    """Segments images with a file of ``volo-seg export``, with the same results as :class:`Predictor`.

    Needs neither PyTorch nor MMSegmentation. The metadata of the file define how images are resized and normalized,
    and whether they are predicted whole or in windows.

    A file with the argmax inside gives labels at the size of the network input. For an image that was resized, labels
    are resized by nearest neighbour, which differs from the other predictors at the borders of objects. Such a file
    has no confidence, no probabilities and no windows.

    Args:
        path: The ``.onnx`` file.
        device: ``'auto'`` (CUDA if onnxruntime has it), ``'cpu'``, ``'cuda'``, ``'cuda:N'``.
        batch_size: Largest number of images of equal size, or of windows, in one run of the graph.
        confidence, probabilities: See :class:`BasePredictor`.
        threads: CPU threads of onnxruntime; 0 means its default.

    Raises:
        UserError: onnxruntime, the file or the device is missing, or the file was not exported by this project.
    """

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
        self.session = open_session(path, device=device, threads=threads)
        self.metadata = OnnxMetadata.from_metadata(_metadata(self.session, name=fspath(path)), name=fspath(path))
        _check_graph(self.session, self.metadata, name=fspath(path))
        super().__init__(
            self.metadata.classes,
            self.metadata.palette,
            reading=self.metadata.reading,
            batch_size=batch_size,
            confidence=confidence,
            probabilities=probabilities,
        )

    def _prepare(self, image: np.ndarray) -> tuple[Hashable, Any]:
        resized = resize_image(self.metadata.resize, image)
        return resized.shape[:2], (resized, image.shape[:2])

    def _segment(self, batch: list[Any], *, confidence: bool, probabilities: bool) -> list[Prediction]:
        if self.metadata.output.kind == 'labels':
            if confidence or probabilities:
                raise UserError(
                    'this ONNX file gives labels only, no confidence and no probabilities: export it without --argmax'
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
            UserError: onnxruntime fails, or the output does not match the metadata of the file.
        """
        try:
            output = self.session.run([self.metadata.output.name], {self.metadata.input.name: image})[0]
        except Exception as error:  # onnxruntime raises its own exception classes
            if not type(error).__module__.startswith('onnxruntime'):
                raise
            size = ' x '.join(map(str, image.shape))
            raise UserError(f'onnxruntime cannot run the network on {size} values ({_short(error)})') from error
        batch, _, *sides = image.shape
        found = f'{getattr(output, "dtype", type(output).__name__)} {getattr(output, "shape", "")}'
        if self.metadata.output.kind == 'logits':
            channels = 1 if self.metadata.output.threshold is not None else len(self.classes)
            valid = getattr(output, 'shape', None) == (batch, channels, *sides) and output.dtype.kind == 'f'
        else:
            valid = getattr(output, 'shape', None) == (batch, *sides) and output.dtype.kind in 'iu'
            valid = valid and output.min() >= 0 and output.max() < len(self.classes)
        if not valid:
            raise UserError(f'this ONNX file gives {found}, not its {self.metadata.output.kind}: export it again')
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


def open_session(path: str | PathLike[str], *, device: str = 'auto', threads: int = 0) -> Any:
    """Open an onnxruntime session for the file ``path``.

    Raises:
        UserError: See :class:`OnnxPredictor`.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError("ONNX files need the package onnxruntime: pip install 'volo-seg[onnx]'") from error
    name = fspath(path)
    if not Path(path).is_file():
        raise UserError(f'{name!r} does not exist or is not a file; give an .onnx file of volo-seg export')
    _refuse_other_files(Path(path))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(
            name, options, providers=_providers(device, onnxruntime.get_available_providers())
        )
    except UserError:
        raise
    except Exception as error:
        raise UserError(f'{name!r} is not an ONNX file that onnxruntime opens ({_short(error)})') from error


def _refuse_other_files(path: Path) -> None:
    """Check that all weights are in the file itself.

    Raises:
        UserError: The file refers to other files, or cannot be read.
    """
    try:
        with path.open('rb') as file:
            if path.stat().st_size:
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                    if content.find(_EXTERNAL) >= 0:
                        raise UserError(f'{str(path)!r} keeps weights in other files: export it as one file')
    except OSError as error:
        raise UserError(f'{str(path)!r} cannot be read ({error.strerror}): check its permissions') from error


def _metadata(session: Any, *, name: str) -> dict[str, str]:
    try:
        return session.get_modelmeta().custom_metadata_map
    except UnicodeDecodeError as error:
        raise UserError(f'{name} has metadata that is not text ({error.reason}): export it again') from error


def _check_graph(session: Any, metadata: OnnxMetadata, *, name: str) -> None:
    """Raise UserError if the graph lacks the input or output that ``metadata`` names, or has other channels."""
    outputs = {output.name: output.shape for output in session.get_outputs()}
    if metadata.input.name not in {i.name for i in session.get_inputs()} or metadata.output.name not in outputs:
        missing = f'input {metadata.input.name[:80]!r} or no output {metadata.output.name[:80]!r}'
        raise UserError(f'{name} has no {missing}: export it again')
    shape = outputs[metadata.output.name]
    channels = shape[1] if metadata.output.kind == 'logits' and len(shape) == 4 else None
    if isinstance(channels, int) and (
        max(channels, 2) != len(metadata.classes) or (channels == 1 and metadata.output.threshold is None)
    ):
        raise UserError(f'{name} gives {channels} channels and names {len(metadata.classes)} classes: export it again')


def _providers(device: str, available: list[str]) -> list[Any]:
    kind, _, index = device.partition(':')
    if kind not in ('auto', 'cpu', 'cuda') or (index and not (kind == 'cuda' and index.isdigit())):
        raise UserError(f'device {device!r} is not auto, cpu, cuda or cuda:N')
    has_cuda = 'CUDAExecutionProvider' in available
    if kind == 'cuda' and not has_cuda:
        raise UserError(
            f'device {device!r} needs onnxruntime-gpu; this onnxruntime has {", ".join(available)}; use cpu'
        )
    if kind == 'cpu' or not has_cuda:
        return ['CPUExecutionProvider']
    return [('CUDAExecutionProvider', {'device_id': int(index or 0)}), 'CPUExecutionProvider']


def _short(error: Exception) -> str:
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
        raise UserError(f'this ONNX file resizes {width}x{height} to {size[1]}x{size[0]} pixels: export it again')
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

"""Segment images by an exported ONNX file, with onnxruntime and NumPy alone."""

from __future__ import annotations

import mmap
from collections.abc import Hashable, Iterator
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from volo_seg.errors import UserError
from volo_seg.inference.base import BasePredictor, Scores
from volo_seg.inference.logits import scores_from_logits
from volo_seg.inference.onnx_card import Input, OnnxCard, Resize, Windows
from volo_seg.inference.resizing import fitted_size, resize_to
from volo_seg.windows import Size, WindowGrid

_EXTERNAL = b'\x0a\x08location'
"""Protocol buffer of a key 'location': the file of a tensor's data. onnxruntime itself stays in the file's folder."""
MOST_PIXELS = 2**28
"""Of an image as the network sees it."""


class OnnxPredictor(BasePredictor):
    """A file of ``volo-seg export`` that takes images and gives labels at their own size, as :class:`Predictor` does.

    Neither PyTorch nor MMSegmentation is needed. The file's own metadata says how images are resized and normalised,
    and whether the network sees them whole or in windows.

    A file with the argmax inside gives labels at the network's input size: for an image that was resized they are
    resized as they are (nearest), which differs from the other predictors at the borders of objects; such a file knows
    neither confidence nor probabilities, and no windows.

    Args:
        path: The ``.onnx`` file.
        device: ``'auto'`` (CUDA where onnxruntime has it), ``'cpu'``, ``'cuda'``, ``'cuda:N'``.
        batch_size: Images of equal size, or windows, that go through the network together.
        confidence, probabilities: What each result has beside its labels.
        threads: CPU threads of onnxruntime; 0 leaves the number to it.

    Raises:
        UserError: No onnxruntime, no such file or device, or a file that was not exported by this project.
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
        self.card = OnnxCard.from_metadata(_metadata(self.session, name=fspath(path)), name=fspath(path))
        _check_graph(self.session, self.card, name=fspath(path))
        super().__init__(
            self.card.classes,
            self.card.palette,
            batch_size=batch_size,
            confidence=confidence,
            probabilities=probabilities,
        )

    def _prepare(self, image: np.ndarray) -> tuple[Hashable, Any]:
        resized = resized_by(self.card.resize, image)
        return resized.shape[:2], (resized, image.shape[:2])

    def _segment(self, batch: list[Any], *, confidence: bool, probabilities: bool) -> list[Scores]:
        if self.card.output.kind == 'labels':
            if confidence or probabilities:
                raise UserError(
                    'this ONNX file gives labels alone, no confidence and no probabilities: export it without --argmax'
                )
            labels = self.run(self.make_input([image for image, _ in batch]))
            return [Scores(_nearest(one, size)) for one, (_, size) in zip(labels, batch, strict=True)]
        return [
            scores_from_logits(
                logits,
                size,
                classes=len(self.classes),
                align_corners=self.card.output.align_corners,
                threshold=self.card.output.threshold,
                confidence=confidence,
                probabilities=probabilities,
            )
            for logits, (_, size) in zip(self._logits([image for image, _ in batch]), batch, strict=True)
        ]

    def make_input(self, images: list[np.ndarray]) -> np.ndarray:
        """The graph's input for resized ``images`` of one size; see :func:`network_input`."""
        return network_input(self.card.input, images)

    def run(self, image: np.ndarray) -> np.ndarray:
        """The graph's output for its input (B, 3, H, W).

        Raises:
            UserError: onnxruntime fails on it, or the output is not what the file's metadata says.
        """
        try:
            output = self.session.run([self.card.output.name], {self.card.input.name: image})[0]
        except Exception as error:  # onnxruntime has classes of errors of its own
            if not type(error).__module__.startswith('onnxruntime'):
                raise
            size = ' x '.join(map(str, image.shape))
            raise UserError(f'onnxruntime cannot run the network on {size} values ({_short(error)})') from error
        batch, _, *sides = image.shape
        found = f'{getattr(output, "dtype", type(output).__name__)} {getattr(output, "shape", "")}'
        if self.card.output.kind == 'logits':
            channels = 1 if self.card.output.threshold is not None else len(self.classes)
            right = getattr(output, 'shape', None) == (batch, channels, *sides) and output.dtype.kind == 'f'
        else:
            right = getattr(output, 'shape', None) == (batch, *sides) and output.dtype.kind in 'iu'
            right = right and output.min() >= 0 and output.max() < len(self.classes)
        if not right:
            raise UserError(f'this ONNX file gives {found}, not its {self.card.output.kind}: export it again')
        return output

    def _logits(self, images: list[np.ndarray]) -> Iterator[np.ndarray]:
        """(C, h, w) of each of ``images`` of one size (h, w)."""
        if self.card.windows is None:
            yield from self.run(self.make_input(images))
            return
        for image in images:
            yield self._averaged(image, self.card.windows)

    def _averaged(self, image: np.ndarray, windows: Windows) -> np.ndarray:
        """Logits (C, h, w) of ``image``, averaged over windows."""
        size = image.shape[:2]
        grid = WindowGrid(size, crop_size=windows.crop_size, stride=windows.stride)
        window, spots = grid.size, list(grid)
        weights = [_profile(*axis) for axis in zip((windows.down, windows.across), window, strict=True)]
        weight = weights[0][:, None] * weights[1]
        total = np.zeros(0, np.float32)
        for first in range(0, len(spots), self.batch_size):
            batch = spots[first : first + self.batch_size]
            crops = [image[y : y + window[0], x : x + window[1]] for y, x in batch]
            for (y, x), logits in zip(batch, self.run(self.make_input(crops)), strict=True):
                total = total if total.size else np.zeros((len(logits), *size), np.float32)
                total[:, y : y + window[0], x : x + window[1]] += logits * weight
        down, across = (_cover(*axis) for axis in zip((grid.tops, grid.lefts), weights, size, strict=True))
        total /= down[:, None] * across
        return total


def open_session(path: str | PathLike[str], *, device: str = 'auto', threads: int = 0) -> Any:
    """An onnxruntime session for the file ``path``.

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
    """Refuse a graph whose weights lie in other files, as an entry with the key ``location`` says.

    Raises:
        UserError: It does, or it cannot be read.
    """
    try:
        with path.open('rb') as file:
            if path.stat().st_size:
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                    if content.find(_EXTERNAL) >= 0:
                        raise UserError(f'{str(path)!r} keeps weights in other files: export it as one file')
    except OSError as error:
        raise UserError(f'{str(path)!r} cannot be read ({error.strerror}): mend its permissions') from error


def _metadata(session: Any, *, name: str) -> dict[str, str]:
    try:
        return session.get_modelmeta().custom_metadata_map
    except UnicodeDecodeError as error:
        raise UserError(f'{name} has metadata that are no text ({error.reason}): export it again') from error


def _check_graph(session: Any, card: OnnxCard, *, name: str) -> None:
    """Raise UserError unless the graph has the input and output that ``card`` names, with a channel for each class."""
    outputs = {output.name: output.shape for output in session.get_outputs()}
    if card.input.name not in {i.name for i in session.get_inputs()} or card.output.name not in outputs:
        raise UserError(
            f'{name} has no input {card.input.name[:80]!r} or no output {card.output.name[:80]!r}: export it again'
        )
    shape = outputs[card.output.name]
    channels = shape[1] if card.output.kind == 'logits' and len(shape) == 4 else None
    if isinstance(channels, int) and (
        max(channels, 2) != len(card.classes) or (channels == 1 and card.output.threshold is None)
    ):
        raise UserError(f'{name} gives {channels} channels and names {len(card.classes)} classes: export it again')


def _providers(device: str, available: list[str]) -> list[Any]:
    kind, _, index = device.partition(':')
    if kind not in ('auto', 'cpu', 'cuda') or (index and not (kind == 'cuda' and index.isdigit())):
        raise UserError(f'device {device!r} is not auto, cpu, cuda or cuda:N')
    there = 'CUDAExecutionProvider' in available
    if kind == 'cuda' and not there:
        raise UserError(
            f'device {device!r} needs onnxruntime-gpu; this onnxruntime has {", ".join(available)}; use cpu'
        )
    if kind == 'cpu' or not there:
        return ['CPUExecutionProvider']
    return [('CUDAExecutionProvider', {'device_id': int(index or 0)}), 'CPUExecutionProvider']


def _short(error: Exception) -> str:
    return ' '.join(str(error).split())[:200]


def resized_by(rule: Resize | None, image: np.ndarray) -> np.ndarray:
    """``image`` (H, W, 3) uint8 as the network sees it, resized as MMSegmentation's test pipeline does."""
    if rule is None:
        return image
    height, width = image.shape[:2]
    if rule.scale is not None:
        across, down = rule.scale
    else:
        assert rule.scale_factor is not None
        across, down = (
            max(1, int(side * factor + 0.5)) for side, factor in zip((width, height), rule.scale_factor, strict=True)
        )
    size = fitted_size((height, width), (down, across)) if rule.keep_ratio else (down, across)
    if size[0] * size[1] > MOST_PIXELS:
        raise UserError(f'this ONNX file resizes {width}x{height} to {size[1]}x{size[0]} pixels: export it again')
    return resize_to(image, size)


def network_input(rule: Input, images: list[np.ndarray]) -> np.ndarray:
    """The graph's input (B, 3, H, W) for ``images`` (H, W, 3) uint8, BGR, of one size."""
    stacked = np.stack(images)
    if rule.channels == 'RGB':
        stacked = stacked[..., ::-1]
    if rule.dtype == 'uint8':
        return np.ascontiguousarray(stacked.transpose(0, 3, 1, 2))
    mean, std = (np.asarray(values, np.float32)[:, None, None] for values in (rule.mean, rule.std))
    pixels = np.ascontiguousarray(stacked.transpose(0, 3, 1, 2), np.float32)
    pixels -= mean
    pixels /= std
    return pixels


def _profile(values: tuple[float, ...], length: int) -> np.ndarray:
    """Weights of ``length`` pixels; of a window cut short by the image there is only one, which counts alone."""
    return np.asarray(values if len(values) == length else [1.0] * length, np.float32)


def _cover(starts: list[int], profile: np.ndarray, length: int) -> np.ndarray:
    """Sum of the weights of all windows for each pixel along an axis."""
    total = np.zeros(length, np.float32)
    for start in starts:
        total[start : start + len(profile)] += profile
    return total


def _nearest(labels: np.ndarray, size: Size) -> np.ndarray:
    return labels if labels.shape == size else cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)

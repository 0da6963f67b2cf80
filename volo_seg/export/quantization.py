"""8-bit ONNX files by onnxruntime's static quantization."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from volo_seg.errors import UserError
from volo_seg.export.onnx_export import foreign_operators, quiet, require_onnx
from volo_seg.export.parity import open_session
from volo_seg.image_files import SUFFIXES
from volo_seg.imageio import read_image
from volo_seg.inference.exported_predictor import network_input, resize_image
from volo_seg.inference.onnx_metadata import OnnxMetadata
from volo_seg.inference.onnx_predictor import OnnxPredictor
from volo_seg.io import atomic_path, find_files
from volo_seg.windows import WindowGrid

OPERATORS = ('Conv', 'MatMul')
"""Operators that are quantized where one factor is a weight. Products of two activations (attention, interpolation)
stay in float32, because 8 bits round their small softmax weights to zero."""
IMAGES = 32


def quantize(
    source: str | Path, target: str | Path, images: Sequence[Path], *, held_back: Sequence[Path], most: float = 1.0
) -> float:
    """Write the exported file ``source`` with 8-bit weights and activations to ``target``.

    Weights get one scale an output channel; activations get the range that they take on ``images``, which are read,
    resized and normalized as for a prediction. Quantized values stand between ``QuantizeLinear`` and
    ``DequantizeLinear`` (QDQ format), so that a runtime can fuse them or compute in float32.

    Returns:
        The share of the labels of ``held_back``, images that were not used for calibration, that differ, in [0, 1].

    Raises:
        UserError: ``source`` was not written by volo-seg, an image cannot be read, more than the share ``most`` of the
            labels differ, or ``target`` cannot be written.
    """
    require_onnx()
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    model = onnx.load(source)
    metadata = OnnxMetadata.from_metadata({entry.key: entry.value for entry in model.metadata_props}, name=str(source))
    with tempfile.TemporaryDirectory() as folder, quiet():
        ready, done = Path(folder, 'ready.onnx'), Path(folder, 'int8.onnx')
        quant_pre_process(str(source), ready, skip_symbolic_shape=True)
        quantize_static(
            ready,
            done,
            _reader(metadata, images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(OPERATORS),
            nodes_to_exclude=_without_weights(onnx.load(ready)),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        result = onnx.load(done)
    _tidy(result, model, metadata, images=len(images))
    foreign = foreign_operators(result)
    assert not foreign, foreign
    open_session(result)
    with atomic_path(target) as part:
        part.write_bytes(result.SerializeToString())
        changed = 1 - equal_labels(source, part, held_back)
        if changed > most:
            raise UserError(
                f'in int8, {100 * changed:.2f}% of the labels of {len(held_back)} images differ from float32, more '
                f'than {100 * most:g}%: nothing was written; give more images like those to segment, or --max-changed'
            )
    return changed


def equal_labels(first: str | Path, second: str | Path, images: Sequence[Path]) -> float:
    """Share of the pixels of ``images`` with equal labels in both files, in [0, 1]."""
    files = [OnnxPredictor(path, device='cpu') for path in (first, second)]
    equal = [np.equal(*(file(path).labels for file in files)) for path in images]
    return sum(int(same.sum()) for same in equal) / sum(same.size for same in equal)


def calibration_images(folder: str | Path, *, count: int = IMAGES) -> tuple[list[Path], list[Path]]:
    """Choose ``count`` images below ``folder``, evenly spread over their sorted names, and at most as many others.

    Where there are fewer than twice ``count``, half of the images calibrate; a single one does both.

    Raises:
        UserError: ``folder`` is not a folder or holds no image.
    """
    if not Path(folder).is_dir():
        raise UserError(f'--int8 {str(folder)!r} is not a folder: give a folder with images like those to segment')
    found = find_files(folder, suffixes=SUFFIXES)
    if not found:
        raise UserError(f'--int8 {str(folder)!r} holds no image: give a folder with images like those to segment')
    chosen = [found[i * len(found) // (2 * count)] for i in range(2 * count)] if len(found) > 2 * count else found
    return chosen[::2], chosen[1::2] or chosen


def calibration_inputs(metadata: OnnxMetadata, images: Iterable[Path]) -> Iterator[np.ndarray]:
    """Network inputs for ``images``: each image as a whole, or its windows."""
    for path in images:
        image = resize_image(metadata.resize, read_image(path, reading=metadata.reading))
        if metadata.windows is None:
            yield network_input(metadata.input, [image])
            continue
        grid = WindowGrid(image.shape[:2], crop_size=metadata.windows.crop_size, stride=metadata.windows.stride)
        height, width = grid.size
        for top, left in grid:
            yield network_input(metadata.input, [image[top : top + height, left : left + width]])


def _reader(metadata: OnnxMetadata, images: Sequence[Path]) -> Any:
    """Wrap the inputs in onnxruntime's ``CalibrationDataReader``."""
    from onnxruntime.quantization import CalibrationDataReader
    from rich.progress import track

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.inputs = calibration_inputs(metadata, track(images, 'calibrating'))

        def get_next(self) -> dict[str, np.ndarray] | None:
            found = next(self.inputs, None)
            return None if found is None else {metadata.input.name: found}

    return Reader()


def _without_weights(model: Any) -> list[str]:
    """Names of the nodes that multiply two activations."""
    weights = {weight.name for weight in model.graph.initializer}
    return [n.name for n in model.graph.node if n.op_type in OPERATORS and not weights & set(n.input)]


def _tidy(result: Any, model: Any, metadata: OnnxMetadata, *, images: int) -> None:
    """Copy metadata and header of the float file to ``result``; remove operator sets that no node uses."""
    used = {node.domain for node in result.graph.node}
    kept = [entry for entry in result.opset_import if entry.domain in used]
    del result.opset_import[:]
    result.opset_import.extend(kept)
    result.ir_version = model.ir_version
    result.producer_name, result.producer_version = model.producer_name, model.producer_version
    int8 = {'format': 'QDQ', 'activations': 'uint8, min to max', 'weights': 'int8 per channel', 'images': images}
    metadata = dataclasses.replace(metadata, source={**metadata.source, 'int8': int8})
    del result.metadata_props[:]
    for key, value in metadata.to_metadata().items():
        result.metadata_props.add(key=key, value=value)

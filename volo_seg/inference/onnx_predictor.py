"""Prediction with an exported ONNX file; needs onnxruntime and NumPy only."""

from __future__ import annotations

import mmap
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np

from volo_seg.errors import UserError
from volo_seg.inference.exported_predictor import ExportedPredictor, short
from volo_seg.inference.onnx_metadata import OnnxMetadata

_EXTERNAL = b'\x0a\x08location'
"""Protocol buffer of the key 'location', which names the file of a tensor's external data."""


class OnnxPredictor(ExportedPredictor):
    """Segments images with an ``.onnx`` file by onnxruntime; needs neither PyTorch nor MMSegmentation."""

    kind, runtime = 'ONNX', 'onnxruntime'

    def _open(self, path: Path, *, device: str, threads: int) -> dict[str, str]:
        self.session = open_session(path, device=device, threads=threads)
        return _metadata(self.session, name=fspath(path))

    def _run(self, image: np.ndarray) -> np.ndarray:
        return self.session.run([self.metadata.output.name], {self.metadata.input.name: image})[0]

    def _check_graph(self, name: str) -> None:
        _check_graph(self.session, self.metadata, name=name)


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
        raise UserError(f'{name!r} is not an ONNX file that onnxruntime opens ({short(error)})') from error


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
    if kind not in ('auto', 'cpu', 'cuda', 'tensorrt') or (index and not (kind == 'cuda' and index.isdigit())):
        raise UserError(f'device {device!r} is not auto, cpu, cuda, cuda:N or tensorrt')
    if kind == 'tensorrt' and 'TensorrtExecutionProvider' in available:
        return ['TensorrtExecutionProvider', 'CUDAExecutionProvider', 'CPUExecutionProvider']
    has_cuda = 'CUDAExecutionProvider' in available
    if kind == 'tensorrt' or (kind == 'cuda' and not has_cuda):
        raise UserError(
            f'device {device!r} needs onnxruntime-gpu; this onnxruntime has {", ".join(available)}; use cpu'
        )
    if kind == 'cpu' or not has_cuda:
        return ['CPUExecutionProvider']
    return [('CUDAExecutionProvider', {'device_id': int(index or 0)}), 'CPUExecutionProvider']

"""Prediction with an exported OpenVINO file; needs openvino and NumPy only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from volo_seg.errors import UserError
from volo_seg.inference.exported_predictor import ExportedPredictor, short
from volo_seg.inference.onnx_metadata import OnnxMetadata

SECTION = 'volo_seg'
"""The section of the runtime information that holds the metadata."""


class OpenVinoPredictor(ExportedPredictor):
    """Segments images with an OpenVINO file (``.xml`` and ``.bin`` beside it) on the CPU, in float32.

    By itself, OpenVINO would choose bfloat16 where the CPU has it.
    """

    kind = runtime = 'OpenVINO'

    def _open(self, path: Path, *, device: str, threads: int) -> dict[str, str]:
        if device not in ('auto', 'cpu'):
            raise UserError(f'device {device!r} is not auto or cpu, on which OpenVINO files run')
        self.model, entries = read_openvino(path)
        self.compiled = compile_openvino(self.model, threads=threads)
        return entries

    def _run(self, image: np.ndarray) -> np.ndarray:
        return self.compiled([image])[self.metadata.output.name]

    def _check_graph(self, name: str) -> None:
        inputs, outputs = (
            {n for port in ports for n in port.names} for ports in (self.model.inputs, self.model.outputs)
        )
        if self.metadata.input.name not in inputs or self.metadata.output.name not in outputs:
            raise UserError(f'{name} has not the input and output that its metadata name: export it again')


def read_openvino(path: Path) -> tuple[Any, dict[str, str]]:
    """Read the network and the entries of its metadata.

    Raises:
        UserError: openvino is missing, or does not open the file.
    """
    try:
        import openvino
    except ImportError as error:
        raise UserError("OpenVINO files need the package openvino: pip install 'volo-seg[openvino]'") from error
    weights = path.with_suffix('.bin')
    if not weights.is_file():
        raise UserError(f'{str(weights)!r} is missing; keep the .bin file beside its .xml file')
    try:
        model = openvino.Core().read_model(path, weights)
        keys = ('format', *OnnxMetadata.__dataclass_fields__)
        found = {key: [SECTION, key] for key in keys if model.has_rt_info([SECTION, key])}
        return model, {key: model.get_rt_info(place).astype(str) for key, place in found.items()}
    except RuntimeError as error:
        raise UserError(f'{str(path)!r} is not a file that OpenVINO opens ({short(error)})') from error


def compile_openvino(model: Any, *, threads: int = 0, precision: str = 'f32') -> Any:
    """Prepare ``model`` for the CPU; ``precision`` is ``'f32'`` or ``'bf16'``."""
    import openvino

    settings = {'INFERENCE_PRECISION_HINT': precision, 'PERFORMANCE_HINT': 'LATENCY'}
    if threads:
        settings['INFERENCE_NUM_THREADS'] = str(threads)
    return openvino.Core().compile_model(model, 'CPU', settings)

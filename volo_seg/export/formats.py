"""The formats of ``volo-seg export`` beside ONNX; a file is read back and compared with PyTorch before it is kept."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from volo_seg import __version__
from volo_seg.errors import UserError
from volo_seg.export.metadata import make_metadata
from volo_seg.export.onnx_export import make_graph, quiet, require_onnx
from volo_seg.export.parity import SHAPES, TRACED, Agreement, Shape, check_parity, example_input
from volo_seg.export.whole_image import WholeImage
from volo_seg.inference.exported_predictor import short
from volo_seg.inference.loaded_model import LoadedModel
from volo_seg.inference.onnx_metadata import OnnxMetadata
from volo_seg.inference.openvino_predictor import SECTION, compile_openvino, read_openvino
from volo_seg.inference.torch_program_predictor import ENTRY, load_program, runnable
from volo_seg.io import check_writable

Run = Callable[[np.ndarray], Sequence[np.ndarray]]
"""A file that was read back: an input to all outputs."""


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        suffix: How its files end.
        runtime: What runs them, for messages.
        write: Writes a network and the entries of its metadata to a path.
        read: Reads the file back.
        needs: Packages, and the extra of this package that has them.
    """

    suffix: str
    runtime: str
    write: Callable[[WholeImage, Mapping[str, str], Path], None]
    read: Callable[[Path], Run]
    needs: tuple[str, str] = ('torch', '')


def export_file(
    network: LoadedModel,
    path: str | Path,
    *,
    kind: str,
    normalize: bool = False,
    argmax: bool = False,
    shapes: Sequence[Shape] = SHAPES,
    source: Mapping[str, Any] | None = None,
) -> list[Agreement]:
    """Write ``network`` in the format ``kind``, for images of any batch size, height and width.

    Args:
        network: A trained segmentor.
        path: The file to write; an existing file is replaced. OpenVINO's weights go beside it, into a ``.bin`` file.
        kind: A name in :data:`FORMATS`.
        normalize: Include the normalization: the input is uint8 pixels in BGR.
        argmax: Include the argmax: the output is labels.
        shapes: (B, H, W) at which the file must agree with PyTorch before it is put in its place.
        source: What the file was made from, for its metadata.

    Returns:
        The agreement at each of ``shapes``.

    Raises:
        UserError: A package is missing, the network cannot be exported, or the file gives other values.
    """
    chosen, path = FORMATS[kind], Path(path)
    package, extra = chosen.needs
    if find_spec(package) is None:
        raise UserError(f"--format {kind} needs the package {package}: pip install 'volo-seg[{extra}]'")
    made_by = {**(source or {}), 'volo_seg': __version__, 'torch': str(torch.__version__), 'format': kind}
    metadata: OnnxMetadata = make_metadata(network, normalize=normalize, argmax=argmax, source=made_by)
    exported = WholeImage(network.model, normalize=normalize, argmax=argmax)
    check_writable(path.parent)
    with tempfile.TemporaryDirectory(prefix=f'.{path.name}.', dir=path.parent) as folder, quiet():
        part = Path(folder, path.name)
        try:
            chosen.write(exported, metadata.to_metadata(), part)
        except Exception as error:  # the exporters' errors have no common base class
            if isinstance(error, (UserError, OSError, MemoryError)):
                raise
            raise UserError(
                f'the network cannot be exported as {kind} ({short(error)}): nothing was written; try --format onnx'
            ) from error
        found = check_parity(_Session(chosen.read(part)), exported, shapes=shapes, runtime=chosen.runtime)
        for file in sorted(Path(folder).iterdir(), key=lambda file: file.suffix != '.bin'):  # weights first
            os.replace(file, path.with_name(file.name))
    return found


class _Session:
    """A file that was read back, with the interface of onnxruntime's session."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def run(self, names: Sequence[str], inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return list(self._run(inputs['image']))[: len(names)]


def _trace(network: WholeImage) -> tuple[torch.Tensor]:
    return (example_input(network, TRACED),)


def _write_program(network: WholeImage, entries: Mapping[str, str], path: Path) -> None:
    free = torch.export.Dim.DYNAMIC
    with torch.no_grad():
        program = torch.export.export(network, _trace(network), dynamic_shapes=({0: free, 2: free, 3: free},))
    torch.export.save(program, path, extra_files={ENTRY: json.dumps(entries)})


def _write_torchscript(network: WholeImage, entries: Mapping[str, str], path: Path) -> None:
    with torch.no_grad():
        traced = torch.jit.trace(network, _trace(network), check_trace=False)
    torch.jit.save(torch.jit.freeze(traced.eval()), str(path), _extra_files={ENTRY: json.dumps(entries)})


def _read_program(path: Path) -> Run:
    module = runnable(load_program(path)[0])

    def run(image: np.ndarray) -> Sequence[np.ndarray]:
        with torch.no_grad():
            outputs = module(torch.from_numpy(image))
        return [output.numpy() for output in (outputs if isinstance(outputs, (tuple, list)) else (outputs,))]

    return run


def _write_openvino(network: WholeImage, entries: Mapping[str, str], path: Path) -> None:
    import openvino

    require_onnx()
    model = openvino.Core().read_model(make_graph(network).SerializeToString())
    for key, text in entries.items():
        model.set_rt_info(text, [SECTION, key])
    openvino.save_model(model, path, compress_to_fp16=False)


def _read_openvino(path: Path) -> Run:
    compiled = compile_openvino(read_openvino(path)[0])
    return lambda image: list(compiled([image]).values())


FORMATS = {
    'openvino': Format('.xml', 'OpenVINO', _write_openvino, _read_openvino, ('openvino', 'openvino')),
    'pt2': Format('.pt2', 'the program of torch.export', _write_program, _read_program),
    'torchscript': Format('.ts', 'TorchScript', _write_torchscript, _read_program),
}
"""The formats, by name."""

"""Export of a segmentor as an ONNX file whose batch size, height and width are free."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from volo_seg import __version__
from volo_seg.errors import UserError
from volo_seg.export.metadata import make_metadata
from volo_seg.export.parity import (
    SHAPES,
    TRACED,
    Agreement,
    Shape,
    check_parity,
    example_input,
    open_session,
    require_provider,
)
from volo_seg.export.whole_image import WholeImage
from volo_seg.inference.loaded_model import LoadedModel
from volo_seg.inference.onnx_metadata import OnnxMetadata
from volo_seg.io import atomic_write

OPSET = 18
"""The operator set that torch's exporter writes without a version conversion."""
AXES = {'logits': ('batch', None, 'height', 'width'), 'labels': ('batch', 'height', 'width')}


def export_onnx(
    network: LoadedModel,
    path: str | Path,
    *,
    normalize: bool = False,
    argmax: bool = False,
    shapes: Sequence[Shape] = SHAPES,
    source: Mapping[str, Any] | None = None,
    provider: str = 'CPUExecutionProvider',
) -> list[Agreement]:
    """Write ``network`` as an ONNX file that takes images of any batch size, height and width.

    Args:
        network: A trained segmentor.
        path: The file to write; an existing file is replaced.
        normalize: Include the normalization: the input is uint8 pixels in BGR.
        argmax: Include the argmax: the output is labels.
        shapes: (B, H, W) at which onnxruntime must agree with PyTorch before the file is written.
        source: What the file was made from, for its metadata.
        provider: The execution provider of onnxruntime that must agree.

    Returns:
        The agreement at each of ``shapes``.

    Raises:
        UserError: The network cannot be exported, the graph gives other values, or the file cannot be written.
    """
    require_onnx()
    require_provider(provider)
    made_by = {**(source or {}), 'volo_seg': __version__, 'torch': str(torch.__version__), 'opset': OPSET}
    metadata = make_metadata(network, normalize=normalize, argmax=argmax, source=made_by)
    exported = WholeImage(network.model, normalize=normalize, argmax=argmax)
    return write_checked(make_graph(exported), exported, metadata, path, shapes=shapes, provider=provider)


def make_graph(network: WholeImage) -> Any:
    """Export ``network`` as an ONNX ``ModelProto`` with operators of the ONNX standard only.

    Raises:
        UserError: A package for ONNX files is not installed.
    """
    require_onnx()
    free = torch.export.Dim.DYNAMIC
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            network,
            (example_input(network, TRACED),),
            dynamo=True,
            dynamic_shapes=({0: free, 2: free, 3: free},),
            input_names=['image'],
            output_names=['logits', 'labels'] if network.argmax else ['logits'],
            opset_version=OPSET,
            optimize=True,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def write_checked(
    model: Any,
    network: WholeImage,
    metadata: OnnxMetadata,
    path: str | Path,
    *,
    shapes: Sequence[Shape] = SHAPES,
    provider: str = 'CPUExecutionProvider',
) -> list[Agreement]:
    """Write the graph ``model`` with the metadata of ``metadata`` if it agrees with ``network``."""
    foreign = foreign_operators(model)
    if foreign:
        raise UserError(f'the graph needs {", ".join(foreign)}, which many runtimes lack: nothing was written')
    found = check_parity(open_session(model, provider=provider), network, shapes=shapes)
    atomic_write(path, with_metadata(model, metadata).SerializeToString())
    return found


def foreign_operators(model: Any) -> list[str]:
    """List the operators of ``model`` outside the ONNX standard, and Col2Im, which many runtimes lack."""
    return sorted(
        {
            f'{node.domain}::{node.op_type}' if node.domain not in ('', 'ai.onnx') else node.op_type
            for node in _nodes(model.graph)
            if node.domain not in ('', 'ai.onnx') or node.op_type == 'Col2Im'
        }
        | {f'{function.domain}::{function.name}' for function in model.functions}
    )


def _nodes(graph: Any) -> Iterator[Any]:
    """All nodes of ``graph`` and of its subgraphs."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for part in (attribute.g, *attribute.graphs):
                yield from _nodes(part)


def with_metadata(model: Any, metadata: OnnxMetadata) -> Any:
    """Copy ``model`` with named axes, the metadata of ``metadata``, and without paths and names of this machine."""
    done = type(model)()
    done.CopyFrom(model)
    for node in done.graph.node:
        node.ClearField('metadata_props')
        node.ClearField('doc_string')
    for field in ('value_info', 'metadata_props', 'doc_string'):
        done.graph.ClearField(field)
    kept = [output for output in done.graph.output if output.name == metadata.output.name]
    del done.graph.output[:]
    done.graph.output.extend(kept)
    for value in (*done.graph.input, *done.graph.output):
        axes = AXES.get(value.name, ('batch', None, 'height', 'width'))
        for axis, dim in zip(axes, value.type.tensor_type.shape.dim, strict=True):
            if axis:
                dim.dim_param = axis
    done.producer_name, done.producer_version = 'volo-seg', __version__
    del done.metadata_props[:]
    for key, text in metadata.to_metadata().items():
        done.metadata_props.add(key=key, value=text)
    return done


def require_onnx() -> None:
    """Raise UserError if a package for ONNX files is not installed."""
    missing = [name for name in ('onnx', 'onnxscript', 'onnxruntime') if find_spec(name) is None]
    if missing:
        raise UserError(f"exporting needs the package {missing[0]}: pip install 'volo-seg[onnx]'")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide warnings and log lines of the exporter and the quantizer about parts that are not used here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(before)

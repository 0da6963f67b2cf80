"""From a network to a file, through the gate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from volo_seg import __version__
from volo_seg.errors import UserError
from volo_seg.export.card import make_card
from volo_seg.export.graph import Graph, make_graph
from volo_seg.export.opset import LOWEST, check_opset
from volo_seg.export.parity import SHAPES, Agreement, Shape, check_parity
from volo_seg.export.whole_image import WholeImage
from volo_seg.inference.network import Network
from volo_seg.inference.onnx_card import OnnxCard
from volo_seg.io import write_whole

AXES = {'logits': ('batch', None, 'height', 'width'), 'labels': ('batch', 'height', 'width')}


def export_onnx(
    network: Network,
    path: str | Path,
    *,
    opset: int = LOWEST,
    normalize: bool = False,
    argmax: bool = False,
    shapes: Sequence[Shape] = SHAPES,
    source: Mapping[str, Any] | None = None,
) -> list[Agreement]:
    """Write ``network`` as an ONNX file that takes images of any batch, height and width.

    Args:
        network: A trained segmentor.
        path: The file; one that is there is replaced.
        opset: Version of ONNX's operators.
        normalize: Put the normalisation inside: the file takes uint8 pixels in BGR.
        argmax: Put the argmax inside: the file gives labels.
        shapes: (B, H, W) at which onnxruntime must agree with PyTorch before anything is written.
        source: What the file was made from, for its metadata.

    Returns:
        How well they agree at each of ``shapes``.

    Raises:
        UserError: The network cannot be exported, or the graph gives something else, or the disk refuses the file.
    """
    check_opset(opset)
    made_by = {**(source or {}), 'volo_seg': __version__, 'torch': str(torch.__version__), 'opset': opset}
    card = make_card(network, normalize=normalize, argmax=argmax, source=made_by)
    graph = make_graph(WholeImage(network.model, normalize=normalize, argmax=argmax), opset=opset)
    return write_checked(graph, card, path, shapes=shapes)


def write_checked(
    graph: Graph, card: OnnxCard, path: str | Path, *, shapes: Sequence[Shape] = SHAPES
) -> list[Agreement]:
    """Write ``graph`` with the metadata of ``card``, if it passes the gate; see :func:`export_onnx`."""
    foreign = foreign_operators(graph.model)
    if foreign:
        raise UserError(f'the graph needs {", ".join(foreign)}, which many runtimes lack, so nothing was written')
    found = check_parity(graph, shapes=shapes)
    write_whole(path, finished(graph.model, card).SerializeToString())
    return found


def foreign_operators(model: Any) -> list[str]:
    """Operators of ``model`` that are not of the standard, or that runtimes without it fold by themselves."""
    return sorted(
        {
            f'{node.domain}::{node.op_type}' if node.domain not in ('', 'ai.onnx') else node.op_type
            for node in _nodes(model.graph)
            if node.domain not in ('', 'ai.onnx') or node.op_type == 'Col2Im'
        }
        | {f'{function.domain}::{function.name}' for function in model.functions}
    )


def _nodes(graph: Any) -> Iterator[Any]:
    """All nodes, those of subgraphs too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for part in (attribute.g, *attribute.graphs):
                yield from _nodes(part)


def finished(model: Any, card: OnnxCard) -> Any:
    """A copy of ``model`` for others: its axes named, metadata of ``card``, no traces of this machine."""
    done = type(model)()
    done.CopyFrom(model)
    for node in done.graph.node:
        node.ClearField('metadata_props')
        node.ClearField('doc_string')
    for field in ('value_info', 'metadata_props', 'doc_string'):
        done.graph.ClearField(field)
    kept = [output for output in done.graph.output if output.name == card.output.name]
    del done.graph.output[:]
    done.graph.output.extend(kept)
    for value in (*done.graph.input, *done.graph.output):
        axes = AXES.get(value.name, ('batch', None, 'height', 'width'))
        for axis, dim in zip(axes, value.type.tensor_type.shape.dim, strict=True):
            if axis:
                dim.dim_param = axis
    done.producer_name, done.producer_version = 'volo-seg', __version__
    del done.metadata_props[:]
    for key, value in card.to_metadata().items():
        done.metadata_props.add(key=key, value=value)
    return done

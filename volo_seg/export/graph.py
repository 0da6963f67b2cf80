"""From a network to an ONNX graph whose batch, height and width are free."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

from volo_seg.errors import UserError
from volo_seg.export.opset import NATIVE, lower
from volo_seg.export.whole_image import WholeImage

TRACED = (2, 160, 192)
"""Batch, height and width of the example; a batch of one would be taken for a fixed size."""


@dataclass(frozen=True)
class Graph:
    """An ONNX model, the network that it was made from, and the PyTorch graph that lies between the two.

    Names of values in ``model`` are those of the nodes of ``program`` that compute them.
    """

    model: Any
    network: WholeImage
    program: torch.export.ExportedProgram


def make_graph(network: WholeImage, *, opset: int) -> Graph:
    """Export ``network`` with operators of the ONNX standard alone, in their form of ``opset``.

    Raises:
        UserError: The packages for it are missing, or they do not know ``opset``.
    """
    require_onnx()
    example = example_input(network, TRACED)
    free = torch.export.Dim.DYNAMIC
    names = ['logits', 'labels'] if network.argmax else ['logits']
    with quiet(), torch.no_grad():
        done = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            dynamic_shapes=({0: free, 2: free, 3: free},),
            input_names=['image'],
            output_names=names,
            opset_version=max(opset, NATIVE),
            optimize=True,
            verbose=False,
        )
    assert done is not None and done.exported_program is not None
    model = done.model_proto
    reached = {entry.domain: entry.version for entry in model.opset_import}.get('')
    if opset > NATIVE and reached != opset:
        raise UserError(f'--opset {opset} is not known to this PyTorch, which reaches {reached}')
    return Graph(lower(model, opset) if opset < NATIVE else model, network, done.exported_program)


def example_input(network: WholeImage, shape: tuple[int, int, int], *, seed: int = 0) -> torch.Tensor:
    """Random pixels (B, 3, H, W) as ``network`` takes them; ``shape`` is (B, H, W)."""
    batch, height, width = shape
    generator = torch.Generator().manual_seed(seed)
    if network.normalize:
        return torch.randint(0, 256, (batch, 3, height, width), generator=generator, dtype=torch.uint8)
    return torch.randn(batch, 3, height, width, generator=generator)


def require_onnx() -> None:
    """Raise UserError where a package for ONNX files is missing."""
    missing = [name for name in ('onnx', 'onnxscript', 'onnxruntime') if find_spec(name) is None]
    if missing:
        raise UserError(f"exporting needs the package {missing[0]}: pip install 'volo-seg[onnx]'")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide what exporter and quantiser say about parts of themselves that play no role here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(before)

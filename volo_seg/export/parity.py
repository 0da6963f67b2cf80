"""The gate: a file is written only if onnxruntime gives what PyTorch gives, at sizes that were not traced too."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from volo_seg.errors import UserError
from volo_seg.export.first_difference import first_difference
from volo_seg.export.graph import TRACED, Graph, example_input, quiet

Shape = tuple[int, int, int]
SHAPES: tuple[Shape, ...] = (
    TRACED,
    (1, 160, 192),
    (1, 96, 272),
    (2, 97, 131),
    (1, 33, 47),
    (1, 250, 333),
    (1, 256, 256),
)
"""(B, H, W): the traced size, one image, other ratios, sides that 16 does not divide, smaller and larger ones."""
MAX_ERROR = 1e-4
"""Of the largest logit."""
MIN_EQUAL = 0.999
"""Share of the labels."""


@dataclass(frozen=True)
class Agreement:
    """One shape (B, H, W): largest absolute difference, largest absolute logit, share of equal labels in [0, 1]."""

    shape: Shape
    error: float
    scale: float
    equal: float

    @property
    def good(self) -> bool:
        """Whether it is within the limits; never with values that are not finite."""
        return self.error <= MAX_ERROR * self.scale and self.equal >= MIN_EQUAL


def check_parity(graph: Graph, *, shapes: Sequence[Shape] = SHAPES) -> list[Agreement]:
    """Run ``graph`` in onnxruntime and in PyTorch at each of ``shapes``.

    Raises:
        UserError: They differ; the message holds the table and names the first operator that does.
    """
    with _failures('cannot open the graph'):
        session = open_model(graph.model)
    found = []
    for seed, shape in enumerate(shapes):
        image = example_input(graph.network, shape, seed=seed)
        with _failures(f'fails at {shape_text(shape)}'):
            found.append(compare(graph, session, image))
    bad = [a for a in found if not a.good]
    if bad:
        smallest = min(bad, key=lambda a: np.prod(a.shape))
        image = example_input(graph.network, smallest.shape, seed=found.index(smallest))
        raise UserError(
            f'onnxruntime differs from PyTorch, so nothing was written; {first_difference(graph, image)}\n'
            + table(found)
        )
    return found


@contextlib.contextmanager
def _failures(what: str) -> Iterator[None]:
    """Turn an error of onnxruntime, which has classes of its own, into one sentence."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith('onnxruntime'):
            raise
        reason = ' '.join(str(error).split())
        raise UserError(f'onnxruntime {what}, so nothing was written: {reason}') from error


def compare(graph: Graph, session: Any, image: torch.Tensor) -> Agreement:
    """The agreement of one input."""
    with torch.no_grad():
        expected = graph.network(image)
    expected = [x.numpy() for x in (expected if isinstance(expected, tuple) else (expected,))]
    got = session.run(['logits', 'labels'][: len(expected)], {'image': image.numpy()})
    shape = (image.shape[0], image.shape[2], image.shape[3])
    if any(a.shape != b.shape for a, b in zip(got, expected, strict=True)):
        return Agreement(shape, float('inf'), 1.0, 0.0)
    if len(expected) == 1:
        got, expected = ([x[0], labels_of(x[0])] for x in (got, expected))
    error = float(np.abs(got[0].astype(np.float64) - expected[0]).max())
    return Agreement(shape, error, float(np.abs(expected[0]).max()), float((got[1] == expected[1]).mean()))


def labels_of(logits: np.ndarray) -> np.ndarray:
    """Labels of (B, C, H, W) logits; of one channel, its sign."""
    return logits.argmax(1) if logits.shape[1] > 1 else logits[:, 0] > 0


def open_model(model: Any, *, optimize: bool = True) -> Any:
    """A CPU session for a model in memory."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    with quiet():
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=['CPUExecutionProvider'])


def table(found: Sequence[Agreement]) -> str:
    """The agreements as a text table."""
    lines = [f'{"batch x height x width":<24}{"max error":>12}{"of the largest":>16}{"equal labels":>14}']
    for a in found:
        share = a.error / a.scale if a.scale else float('inf')
        mark = '' if a.good else '   differs'
        lines.append(f'{shape_text(a.shape):<24}{a.error:>12.1e}{share:>16.1e}{100 * a.equal:>13.3f}%{mark}')
    return '\n'.join(lines)


def shape_text(shape: Shape) -> str:
    """``1 x 97 x 131``."""
    return ' x '.join(map(str, shape))

"""The parity check: a file is kept only if its runtime agrees with PyTorch, also at sizes not traced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from volo_seg.errors import UserError
from volo_seg.export.whole_image import WholeImage

Shape = tuple[int, int, int]
TRACED: Shape = (2, 160, 192)
"""(B, H, W) of the example that is traced; the exporter would take a batch of one for a fixed size."""
SHAPES: tuple[Shape, ...] = (
    TRACED,
    (1, 160, 192),
    (1, 96, 272),
    (2, 97, 131),
    (1, 33, 47),
    (1, 250, 333),
    (1, 256, 256),
)
"""(B, H, W): the traced size, one image, other aspect ratios, sides not divisible by 16, smaller and larger sizes."""
MAX_ERROR = 1e-4
"""Largest allowed difference of a logit, as a share of the largest absolute logit."""
MIN_EQUAL = 0.999
"""Smallest allowed share of equal labels."""


@dataclass(frozen=True)
class Agreement:
    """Agreement at one shape (B, H, W).

    Attributes:
        error: Largest absolute difference of a logit.
        scale: Largest absolute logit of PyTorch.
        equal: Share of equal labels, in [0, 1].
    """

    shape: Shape
    error: float
    scale: float
    equal: float

    @property
    def good(self) -> bool:
        """Whether the limits hold; False for values that are not finite."""
        return self.error <= MAX_ERROR * self.scale and self.equal >= MIN_EQUAL


def check_parity(
    model: Any, network: WholeImage, *, shapes: Sequence[Shape] = SHAPES, runtime: str = 'onnxruntime'
) -> list[Agreement]:
    """Run ``model``, an ONNX graph or an open session, and ``network`` in PyTorch at each of ``shapes``.

    Raises:
        UserError: ``runtime`` fails, or they differ; the message names the size, the error and the share of equal
            labels.
    """
    try:
        session = model if hasattr(model, 'run') else open_session(model)
        found = [
            compare(network, session, example_input(network, shape, seed=seed)) for seed, shape in enumerate(shapes)
        ]
    except Exception as error:  # runtimes' errors have no common base class
        if isinstance(error, (UserError, MemoryError)):
            raise
        reason = ' '.join(str(error).split())
        raise UserError(f'{runtime} cannot run the graph ({reason}): nothing was written') from error
    bad = [agreement for agreement in found if not agreement.good]
    if bad:
        worst = max(bad, key=lambda a: a.error / a.scale if a.scale else float('inf'))
        raise UserError(
            f'{runtime} differs from PyTorch at {len(bad)} of {len(found)} sizes, most at '
            f'{shape_text(worst.shape)} (error {worst.error:.1e}, {100 * worst.equal:.3f}% equal labels): '
            f'nothing was written\n{table(found)}'
        )
    return found


def example_input(network: WholeImage, shape: Shape, *, seed: int = 0) -> torch.Tensor:
    """Random pixels (B, 3, H, W) as ``network`` takes them: uint8 if it normalizes, else float32."""
    batch, height, width = shape
    generator = torch.Generator().manual_seed(seed)
    if network.normalize:
        return torch.randint(0, 256, (batch, 3, height, width), generator=generator, dtype=torch.uint8)
    return torch.randn(batch, 3, height, width, generator=generator)


def compare(network: WholeImage, session: Any, image: torch.Tensor) -> Agreement:
    """Compare ``session`` with ``network`` on ``image`` (B, 3, H, W)."""
    with torch.no_grad():
        output = network(image)
    expected = [x.numpy() for x in (output if isinstance(output, tuple) else (output,))]
    got = session.run(['logits', 'labels'][: len(expected)], {'image': image.numpy()})
    shape = (image.shape[0], image.shape[2], image.shape[3])
    if any(a.shape != b.shape for a, b in zip(got, expected, strict=True)):
        return Agreement(shape, float('inf'), 1.0, 0.0)
    if len(expected) == 1:  # of one channel, the label is the sign of the logit
        got, expected = ([x[0], x[0].argmax(1) if x[0].shape[1] > 1 else x[0][:, 0] > 0] for x in (got, expected))
    error = float(np.abs(got[0].astype(np.float64) - expected[0]).max())
    return Agreement(shape, error, float(np.abs(expected[0]).max()), float((got[1] == expected[1]).mean()))


def open_session(model: Any, *, provider: str = 'CPUExecutionProvider') -> Any:
    """Open an onnxruntime session for the ``ModelProto`` ``model``."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[provider])


def require_provider(provider: str) -> None:
    """Raise UserError if onnxruntime has no such provider."""
    import onnxruntime

    if provider not in onnxruntime.get_available_providers():
        raise UserError(
            f'this onnxruntime has no {provider} (it has {", ".join(onnxruntime.get_available_providers())}): install '
            'onnxruntime-gpu and TensorRT on a machine with a GPU'
        )


def table(found: Sequence[Agreement]) -> str:
    """Format the agreements as a text table."""
    lines = [f'{"batch x height x width":<24}{"max error":>12}{"of the largest":>16}{"equal labels":>14}']
    for a in found:
        share = a.error / a.scale if a.scale else float('inf')
        mark = '' if a.good else '   differs'
        lines.append(f'{shape_text(a.shape):<24}{a.error:>12.1e}{share:>16.1e}{100 * a.equal:>13.3f}%{mark}')
    return '\n'.join(lines)


def shape_text(shape: Shape) -> str:
    """Format (B, H, W) as ``1 x 97 x 131``."""
    return ' x '.join(map(str, shape))

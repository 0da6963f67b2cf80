"""The UPerNet head: VOLOUPerHead against MMSegmentation's UPerHead, both pyramids, 512x512, 512 channels.

Maps have the channels of d1 and arrive as the backbone gives them: NHWC in memory, seen as NCHW. A step is forward,
a scalar, and backward to every parameter and map.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from _measure import Report, largest_difference, parser, settings
from torch import Tensor, nn

from volo_seg.models import VOLOUPerHead

from mmseg.models.decode_heads import UPerHead  # isort: skip

IN_CHANNELS = (192, 384, 384, 384)
PYRAMIDS = ((8, 16, 16, 16), (4, 8, 16, 32))


def heads(device: str, channels: int) -> dict[str, nn.Module]:
    """Both heads with the same weights."""
    options = {
        'in_channels': list(IN_CHANNELS),
        'in_index': [0, 1, 2, 3],
        'channels': channels,
        'num_classes': 150,
        'norm_cfg': {'type': 'BN'},
        'dropout_ratio': 0.0,
    }
    pair = {'mmseg': UPerHead(**options), 'ours': VOLOUPerHead(**options)}
    pair['ours'].load_state_dict(pair['mmseg'].state_dict())
    return {name: head.to(device) for name, head in pair.items()}


def maps(
    strides: Sequence[int],
    size: int,
    batch: int,
    device: str,
    *,
    record: bool,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """Random maps of an image of ``size`` x ``size``."""
    shapes = [(batch, size // s, size // s, c) for c, s in zip(IN_CHANNELS, strides, strict=True)]
    random = (torch.randn(shape, device=device, dtype=dtype).permute(0, 3, 1, 2) for shape in shapes)
    return [tensor.requires_grad_(record) for tensor in random]


def step(head: nn.Module, inputs: list[Tensor]) -> Callable[[], Tensor]:
    """A training step that returns the gradient of the first map."""

    def run() -> Tensor:
        for tensor in (*inputs, *head.parameters()):
            tensor.grad = None
        head(inputs).square().mean().backward()
        return inputs[0].grad.clone()

    return run


def compare(report: Report, strides: Sequence[int], *, size: int, channels: int) -> None:
    """Inference on one image and a step on two."""
    device = report.settings.device
    pair = heads(device, channels)
    pair = {name: head.eval() for name, head in pair.items()}
    inputs = maps(strides, size, 1, device, record=False)
    with torch.inference_mode():
        peers = {name: lambda head=head: head(inputs) for name, head in pair.items()}
        error = largest_difference(peers['ours'](), peers['mmseg']())
        report.compare(f'{tuple(strides)} inference', peers, errors={'ours': error})
    exact = maps(strides, size // 4, 2, device, record=True, dtype=torch.float64)
    gradients = {name: step(copy.deepcopy(head).double().train(), exact)() for name, head in pair.items()}
    error = largest_difference(gradients['ours'], gradients['mmseg'])
    inputs = maps(strides, size, 2, device, record=True)
    peers = {name: step(head.train(), inputs) for name, head in pair.items()}
    report.compare(f'{tuple(strides)} step, batch 2', peers, errors={'ours': error})


def main(argv: Sequence[str] | None = None) -> None:
    """Both pyramids."""
    report = Report('UPerNet head at 512x512, 512 channels', settings(parser(__doc__).parse_args(argv)))
    for strides in PYRAMIDS:
        quick = report.settings.quick
        compare(report, strides, size=128 if quick else 512, channels=64 if quick else 512)
    report.remark(
        "error, relative to mmseg's largest value: of the logits (inference, float32), and of the first map's gradient "
        '(step, in float64 on an image of a quarter of the side; in float32 both are equally far from it)'
    )
    report.finish()


if __name__ == '__main__':
    main()

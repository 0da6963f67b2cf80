"""Sliding windows and whole images to labels: VOLOSegmentor against MMSegmentation's EncoderDecoder.

Both get the same network, a single convolution of stride 8 in place of backbone and head, so that what is measured is
everything around the network: cutting windows, enlarging and averaging logits, and labels. The image is 1024x2048.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence

import torch
from _measure import Report, parser, settings
from mmengine.config import ConfigDict
from torch import Tensor, nn

import volo_seg.models  # noqa: F401  fills the registry

from mmseg.registry import MODELS  # isort: skip
from mmseg.structures import SegDataSample  # isort: skip

SIZE = (1024, 2048)
CASES = {
    'windows of 512, stride 341': {'mode': 'slide', 'crop_size': (512, 512), 'stride': (341, 341)},
    'windows of 1024, stride 768': {'mode': 'slide', 'crop_size': (1024, 1024), 'stride': (768, 768)},
    'whole': {'mode': 'whole'},
}


@MODELS.register_module()
class OneConvolution(nn.Module):
    """A stand-in for a backbone: 16 channels at stride 8."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.conv(x),)


def segmentor(kind: str, classes: int, test_cfg: dict, device: str) -> nn.Module:
    """A segmentor of ``kind`` around the stand-in, in evaluation mode, always with the same weights."""
    head = {'in_channels': 16, 'in_index': 0, 'channels': 16, 'num_convs': 0, 'concat_input': False}
    config = {
        'type': kind,
        'backbone': {'type': 'OneConvolution'},
        'decode_head': {'type': 'FCNHead', 'num_classes': classes, **head},
        'test_cfg': ConfigDict(test_cfg),
    }
    model = MODELS.build(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    return model.to(device).eval()


def compare(report: Report, case: str, classes: int, test_cfg: dict, size: tuple[int, int]) -> None:
    """One table row a segmentor; the error is the share of pixels whose labels differ."""
    device = report.settings.device
    image = torch.randn(1, 3, *size, device=device)
    sample = SegDataSample()
    sample.set_metainfo({'ori_shape': size, 'img_shape': size, 'pad_shape': size})
    models = {
        'mmseg': segmentor('EncoderDecoder', classes, test_cfg, device),
        'ours': segmentor('VOLOSegmentor', classes, test_cfg, device),
    }

    def labels(name: str) -> Tensor:
        return models[name].predict(image, [copy.deepcopy(sample)])[0].pred_sem_seg.data

    wrong = (labels('mmseg') != labels('ours')).float().mean().item()
    peers = {name: lambda name=name: labels(name) for name in models}
    report.compare(f'{classes} classes, {case}', peers, errors={'ours': wrong})


def main(argv: Sequence[str] | None = None) -> None:
    """Run all cases."""
    flags: argparse.ArgumentParser = parser(__doc__)
    report = Report('Sliding windows and whole images to labels, 1024x2048', settings(flags.parse_args(argv)))
    with torch.inference_mode():
        for classes in (19, 150):
            for case, test_cfg in CASES.items():
                compare(report, case, classes, test_cfg, (256, 512) if report.settings.quick else SIZE)
    report.remark('The network is one convolution of stride 8; error is the share of pixels whose labels differ.')
    report.finish()


if __name__ == '__main__':
    main()

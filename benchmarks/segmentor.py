"""VOLO-d1 + UPerNet as a whole against Swin-T and ConvNeXt-T under mmseg's UPerNet, and timm's VOLO-d1 under it.

    python benchmarks/segmentor.py [--case inference step] [--side 512]

Each network maps one image to the logits of 150 classes by a head of 512 channels, as the ADE20K configs have it, with
BatchNorm; auxiliary heads are left out. Swin-T is mmseg's, ConvNeXt-T timm's.
"""

from collections.abc import Sequence

import torch
from _measure import Report, parser, settings
from _peers import TimmVOLO, training_step
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from torch import Tensor, nn


class Network(nn.Module):
    """A backbone and a head."""

    def __init__(self, backbone: nn.Module, head: str, channels: list[int]) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = MODELS.build(
            dict(
                type=head,
                in_channels=channels,
                in_index=[0, 1, 2, 3],
                channels=512,
                num_classes=150,
                dropout_ratio=0.1,
                norm_cfg=dict(type='BN'),
                align_corners=False,
            )
        )

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) to logits at the head's resolution."""
        return self.head(self.backbone(image))


def build(side: int) -> dict[str, Network]:
    """The peers; the first is the baseline."""
    init_default_scope('mmseg')
    swin = dict(type='SwinTransformer', embed_dims=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), window_size=7)
    convnext = dict(type='TIMMBackbone', model_name='convnext_tiny', features_only=True, pretrained=False)
    widths, volo = [96, 192, 384, 768], [192, 384, 384, 384]
    return {
        'Swin-T + UPerHead': Network(MODELS.build(swin), 'UPerHead', widths),
        'ConvNeXt-T + UPerHead': Network(MODELS.build(convnext), 'UPerHead', widths),
        "timm's d1 + UPerHead": Network(TimmVOLO('d1', (side, side), naive=False), 'UPerHead', volo),
        'd1 + VOLOUPerHead (ours)': Network(MODELS.build(dict(type='VOLO', img_size=side)), 'VOLOUPerHead', volo),
    }


def compare(report: Report, peers: dict[str, Network], case: str, side: int) -> None:
    """Inference of one image; a step of two, as PPM's 1x1 maps need two values for batch normalisation."""
    image = torch.randn(1 if case == 'inference' else 2, 3, side, side, device=report.settings.device)
    name = f'{side}x{side}, {case} of {image.shape[0]}'
    for model in peers.values():
        model.train(case == 'step')
    if case == 'step':
        report.compare(name, {k: (lambda m=m: training_step(m, image)) for k, m in peers.items()})
        return
    with torch.inference_mode():
        report.compare(name, {k: (lambda m=m: m(image)) for k, m in peers.items()})


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    flags = parser(__doc__)
    flags.add_argument('--case', nargs='+', default=['inference', 'step'], choices=['inference', 'step'])
    flags.add_argument('--side', type=int, default=512, help='side of the image in pixels (default 512)')
    args = flags.parse_args(argv)
    report = Report('Whole networks, one image, 150 classes', settings(args))
    side = 64 if args.quick else args.side
    peers = {key: model.to(args.device) for key, model in build(side).items()}
    for case in args.case:
        compare(report, peers, case, side)
    report.finish()


if __name__ == '__main__':
    main()

"""VOLO's backbone against the published code and against timm's, which adds scaled-dot-product attention.

    python benchmarks/backbone.py [--arch d1 d2] [--case inference step] [--size 224 512 512x1024]

Peers have the same weights; `published` and `timm` are timm's modules built for the one size, the former with naive
self-attention. `ours, folded` has the stem's batch normalisation folded (volo_seg.models.fuse).
"""

import copy
from collections.abc import Sequence

import torch
from _measure import Report, largest_difference, parser, settings
from _peers import TimmVOLO, copy_weights, training_step

from volo_seg.models import VOLO, fuse


def build(arch: str, size: tuple[int, int], device: str) -> dict[str, torch.nn.Module]:
    """The peers, with one set of weights."""
    torch.manual_seed(0)
    timm_volo = TimmVOLO(arch, size, naive=False)
    published = TimmVOLO(arch, size, naive=True)
    published.load_state_dict(timm_volo.state_dict())
    ours = VOLO(arch, img_size=size)
    copy_weights(ours, timm_volo)
    return {key: model.to(device) for key, model in dict(published=published, timm=timm_volo, ours=ours).items()}


def compare(report: Report, arch: str, size: tuple[int, int], case: str) -> None:
    """One row a peer: inference without gradients, or forward and backward."""
    device = report.settings.device
    image = torch.randn(1, 3, *size, device=device)
    peers = build(arch, size, device)
    name = f'{arch} {size[0]}x{size[1]} {case}'
    if case == 'step':
        modules = {key: model.train() for key, model in peers.items()}
        report.compare(name, {k: (lambda m=m: training_step(m, image)) for k, m in modules.items()})
        return
    modules = {key: model.eval() for key, model in peers.items()}
    modules['ours, folded'] = fuse(copy.deepcopy(peers['ours']))
    with torch.inference_mode():
        expected = modules['published'](image)[0]
        # the first map of ours before its output norm
        errors = {'timm': largest_difference(modules['timm'](image)[0], expected)}
        for key in ('ours', 'ours, folded'):
            padded = modules[key].stages(image)[0].permute(0, 3, 1, 2)
            errors[key] = largest_difference(padded, expected)
        report.compare(name, {k: (lambda m=m: m(image)) for k, m in modules.items()}, errors=errors)


def read_size(text: str) -> tuple[int, int]:
    """``512`` or ``512x1024`` (height x width)."""
    sides = [int(side) for side in text.split('x')]
    return sides[0], sides[-1]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    flags = parser(__doc__)
    flags.add_argument('--arch', nargs='+', default=['d1'], help='variants (default d1)')
    flags.add_argument('--size', nargs='+', default=['224', '512', '512x1024'], help='sides in pixels, or HxW')
    flags.add_argument('--case', nargs='+', default=['inference', 'step'], choices=['inference', 'step'])
    args = flags.parse_args(argv)
    report = Report('VOLO backbone, one image', settings(args))
    sizes = [(64, 64)] if args.quick else [read_size(text) for text in args.size]
    for arch in args.arch:
        for size in sizes:
            for case in args.case:
                compare(report, arch, size, case)
    report.finish()


if __name__ == '__main__':
    main()

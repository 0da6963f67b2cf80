"""Write a model that others can load: safetensors, plain config, classes, scores, model card."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from volo_seg.commands.flags import make_parser


def build_parser() -> argparse.ArgumentParser:
    """The flags of ``volo-seg publish``."""
    parser = make_parser('publish', __doc__)
    parser.add_argument('config', help='config file, or the name of a shipped config')
    parser.add_argument('checkpoint', help='trained weights (.pth or .safetensors)')
    parser.add_argument('folder', help='new folder to write; its name is the model name')
    parser.add_argument('--metrics', metavar='FILE', help='metrics.json of volo-seg test, for the model card')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Publish; see ``volo-seg publish --help``."""
    args = build_parser().parse_args(argv)
    from volo_seg.export.publish import publish

    folder = publish(args.config, args.checkpoint, args.folder, metrics=args.metrics)
    for path in sorted(folder.iterdir()):
        print(f'{path.stat().st_size:>12,}  {path}')
    print(f'loaded again, equal labels; use it by Predictor.from_pretrained({str(folder)!r})')
    return 0

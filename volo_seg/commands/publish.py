"""Write a model that others can load: safetensors, plain config, classes, scores, model card."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from volo_seg.commands.flags import make_parser
from volo_seg.errors import UserError


def build_parser() -> argparse.ArgumentParser:
    """The flags of ``volo-seg publish``."""
    parser = make_parser('publish', __doc__)
    parser.add_argument('config', help='config file, or the name of a shipped config')
    parser.add_argument('checkpoint', help='trained weights: a file, or a name of volo-seg weights list')
    parser.add_argument('target', help='new folder, whose name is the model name, or NAME.safetensors for one file')
    parser.add_argument('--metrics', metavar='FILE', help='metrics.json of volo-seg test, for the model card')
    one_file = parser.add_argument_group('NAME.safetensors', 'one file with config and classes inside, and NAME.md')
    one_file.add_argument('--half', action='store_true', help='round matrices to float16, for half the size')
    one_file.add_argument('--notes', metavar='FILE', help='Markdown to include in the model card')
    one_file.add_argument('--overwrite', action='store_true', help='replace an existing file')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Publish; see ``volo-seg publish --help``."""
    args = build_parser().parse_args(argv)
    from volo_seg.export.publish import publish, publish_file

    if args.target.endswith('.safetensors'):
        options = {'half': args.half, 'notes': args.notes, 'overwrite': args.overwrite}
        file = publish_file(args.config, args.checkpoint, args.target, metrics=args.metrics, **options)
        written, use = [file, file.with_suffix('.md')], f'Predictor.from_checkpoint({str(file)!r})'
    elif args.half or args.notes or args.overwrite:
        raise UserError(
            f'--half, --notes and --overwrite are for one file, and {args.target!r} does not end in .safetensors'
        )
    else:
        folder = publish(args.config, args.checkpoint, args.target, metrics=args.metrics)
        written, use = sorted(folder.iterdir()), f'Predictor.from_pretrained({str(folder)!r})'
    for path in written:
        print(f'{path.stat().st_size:>12,}  {path}')
    print(f'loaded again, equal labels; use it by {use}')
    return 0

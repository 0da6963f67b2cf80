"""Generate the Toyscapes data set: street scenes with labels, in the layout of Cityscapes, ready to train on."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from volo_seg.commands.flags import make_parser, progress_bar


def build_parser() -> argparse.ArgumentParser:
    """The flags of ``volo-seg toyscapes``."""
    parser = make_parser('toyscapes', __doc__)
    parser.add_argument('out_dir', help='folder of the data set: new, empty, or a Toyscapes to be completed')
    parser.add_argument('--train', type=int, default=300, metavar='N', help='training scenes (default 300)')
    parser.add_argument('--val', type=int, default=60, metavar='N', help='validation scenes (default 60)')
    parser.add_argument(
        '--size', type=int, nargs=2, default=(256, 512), metavar=('H', 'W'), help='pixels (default 256 512)'
    )
    parser.add_argument('--seed', type=int, default=0, help='another seed gives other scenes (default 0)')
    parser.add_argument(
        '--style',
        choices=('random', 'plain'),
        default='random',
        help='random: everything varies widely, for models that meet real photos (default); plain: tidy streets',
    )
    parser.add_argument('--nproc', type=int, default=1, help='processes (default 1)')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Generate the missing scenes; see ``volo-seg toyscapes --help``."""
    args = build_parser().parse_args(argv)
    from volo_seg.datasets.toyscapes import write_toyscapes

    started, size = time.monotonic(), (args.size[0], args.size[1])
    counts = {'train': args.train, 'val': args.val}
    made = write_toyscapes(
        args.out_dir,
        **counts,
        size=size,
        seed=args.seed,
        style=args.style,
        nproc=args.nproc,
        progress=lambda scenes, total: progress_bar(scenes, 'scenes', total),
    )
    what = f'{args.train} training and {args.val} validation scenes of {size[0]}x{size[1]}'
    if not made:
        print(f'{args.out_dir}: {what} exist')
    else:
        seconds = time.monotonic() - started
        print(f'{args.out_dir}: {what}; {made} made in {seconds:.1f} s ({made / seconds:.1f} per second)')
    return 0

"""Convert official or timm weights, or a trained segmentor, to a file with the backbone only."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from volo_seg.commands.flags import make_parser


def build_parser() -> argparse.ArgumentParser:
    """The flags of ``volo-seg volo2mmseg``."""
    parser = make_parser('volo2mmseg', __doc__)
    parser.add_argument('src', help='weights: a path, an http(s) URL or a short name such as volo_d1_224')
    parser.add_argument('dst', help='file to write: .pth or .safetensors')
    parser.add_argument('--force', action='store_true', help='overwrite DST if it exists')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Convert, and print what was written and what was dropped.

    Raises:
        UserError: SRC cannot be read or recognised, or is incomplete; DST exists or cannot be written.
    """
    args = build_parser().parse_args(argv)
    from volo_seg.checkpoints import check_destination, count_groups, read_backbone, save_file

    check_destination(args.dst, overwrite=args.force)
    weights = read_backbone(args.src)
    save_file(weights.state_dict, args.dst, metadata={'origin': weights.origin}, overwrite=args.force)
    print(f'{args.src}: {weights.origin}')
    print(f'dropped: {count_groups(weights.dropped) or "nothing"}')
    print(f'wrote {len(weights.state_dict)} tensors to {args.dst}')
    return 0

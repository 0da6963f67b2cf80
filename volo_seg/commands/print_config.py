"""Print the config that `volo-seg train` runs with the same flags."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from volo_seg.commands import load_stack
from volo_seg.commands.flags import add_training_flags, bare_amp, make_parser


def build_parser() -> argparse.ArgumentParser:
    """Return the parser, with the flags of ``volo-seg train``."""
    parser = make_parser('print_config', __doc__)
    add_training_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print; see ``volo-seg print_config --help``."""
    args = build_parser().parse_args(bare_amp(sys.argv[1:] if argv is None else argv))
    load_stack()
    from volo_seg.commands.apply_flags import training_config, weigh_classes
    from volo_seg.config.checks import check_config, check_run
    from volo_seg.config.load import datasets
    from volo_seg.engine.launch import prepare_launch

    config = training_config(args)
    splits = ('train', 'val') if config.get('val_dataloader') else ('train',)
    parts = [part for split in splits for _, part in datasets(config[f'{split}_dataloader'].dataset, split)]
    absent = [root for root in (part.get('data_root') or '.' for part in parts) if not Path(root).is_dir()]
    if absent:
        print(
            f'{absent[0]!r} does not exist; the number of classes, which the data determines, is not set',
            file=sys.stderr,
        )
        check_config(config, splits)
    else:
        check_run(config, splits)
    if args.class_weights:
        weigh_classes(config, args.class_weights)
    prepare_launch(config, args.launcher, args.local_rank)
    print(config.pretty_text)
    return 0

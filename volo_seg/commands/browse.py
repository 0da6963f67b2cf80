"""Draw augmented samples with their labels, and how often each class occurs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volo_seg.commands import load_stack
from volo_seg.commands.flags import add_config_flags, add_data_flags, make_parser, progress_bar
from volo_seg.errors import UserError
from volo_seg.io import atomic_write, check_writable

if TYPE_CHECKING:
    from mmengine.config import Config


def build_parser() -> argparse.ArgumentParser:
    """The flags of ``volo-seg browse``."""
    parser = make_parser('browse', __doc__)
    add_config_flags(parser)
    parser.add_argument('out_dir', type=Path, metavar='OUT_DIR', help='folder for the images')
    add_data_flags(parser)
    parser.add_argument('--split', choices=('train', 'val', 'test'), default='train', help='default train')
    parser.add_argument('--count', type=int, default=12, metavar='N', help='samples, evenly spread (default 12)')
    parser.add_argument('--seed', type=int, default=0, metavar='N', help='of the augmentation (default 0)')
    parser.add_argument('--overwrite', action='store_true', help='replace existing images')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Draw; see ``volo-seg browse --help``."""
    args = build_parser().parse_args(argv)
    if args.count < 1:
        raise UserError(f'--count {args.count} is not a number of samples; give 1 or more')
    targets = [args.out_dir / f'{args.split}_{name}.png' for name in ('samples', 'class_frequency')]
    for target in targets:
        if target.exists() and not args.overwrite:
            raise UserError(f'{str(target)!r} exists; add --overwrite, or name another folder')
    check_writable(args.out_dir)
    load_stack()
    from volo_seg.commands.apply_flags import set_data
    from volo_seg.config.checks import check_run
    from volo_seg.config.load import load_config

    config = load_config(args.config, args.cfg_options)
    set_data(config, args)
    check_run(config, (args.split,))
    for target, draw in zip(targets, (draw_samples, draw_frequencies), strict=True):
        atomic_write(target, draw(config, args))
        print(target)
    return 0


def draw_samples(config: Config, args: argparse.Namespace) -> bytes:
    """The contact sheet of samples of the split, after its pipeline."""
    import random

    import numpy as np
    from mmengine.registry import init_default_scope
    from mmseg.registry import DATASETS

    from volo_seg.datasets.inspection.browse import sample_sheet
    from volo_seg.engine.data_files import unreadable_file

    init_default_scope(config.get('default_scope', 'mmseg'))
    dataset = DATASETS.build(config[f'{args.split}_dataloader'].dataset)
    random.seed(args.seed)
    np.random.seed(args.seed)  # noqa: NPY002 (what the transforms draw from)
    count = min(args.count, len(dataset))
    try:
        samples: list[dict[str, Any]] = [dataset[i * len(dataset) // count] for i in range(count)]
    except Exception as error:
        explained = unreadable_file(error, [dataset])
        if explained is None:
            raise
        raise explained from error
    return sample_sheet(samples, dataset.metainfo['classes'], dataset.metainfo['palette'])


def draw_frequencies(config: Config, args: argparse.Namespace) -> bytes:
    """The plot of class frequencies of the label files."""
    from volo_seg.datasets.inspection.browse import frequency_plot
    from volo_seg.datasets.inspection.check import label_counts
    from volo_seg.datasets.inspection.frequencies import count_classes
    from volo_seg.datasets.inspection.splits import read_splits

    splits = list(read_splits(config, args.split))
    counts = []
    for split in splits:
        seen = label_counts(
            split,
            processes=1,
            progress=lambda seen, total, name: progress_bar(seen, f'labels of {name}', total),
        )
        counts.append(count_classes(split, seen))
    return frequency_plot(splits, counts)

"""Train a segmentor."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from volo_seg.commands import load_stack
from volo_seg.commands.flags import add_training_flags, bare_amp, make_parser

if TYPE_CHECKING:
    from mmengine.config import Config


def build_parser() -> argparse.ArgumentParser:
    """Return the parser: the flags of MMSegmentation's tools/train.py and those of this package."""
    parser = make_parser('train', __doc__)
    add_training_flags(parser)
    parser.add_argument('--no-check', action='store_true', help='do not check a sample of the data files first')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Train; see ``volo-seg train --help``."""
    args = build_parser().parse_args(bare_amp(sys.argv[1:] if argv is None else argv))
    load_stack()
    config = prepare(args)
    from mmseg.registry import RUNNERS

    from volo_seg.datasets.inspection.sizes import fit_crop
    from volo_seg.engine.hooks.checkpoint_hook import OTHER_WORK_DIR
    from volo_seg.engine.hooks.console_hook import console_of
    from volo_seg.engine.launch import is_first_process, lock_for_all

    with lock_for_all(config.work_dir, what='work dir', fix=OTHER_WORK_DIR):
        sizes = fit_crop(config)
        runner = RUNNERS.build(config)
        if sizes:
            runner.logger.info(sizes)
        with console_of(runner):
            runner.train()
    if is_first_process():
        print(f'checkpoints and logs: {runner.work_dir}')
    return 0


def prepare(args: argparse.Namespace) -> Config:
    """Return the config of the run, checked against the data and adapted to the launcher.

    Raises:
        UserError: The config, a flag or the data is invalid.
    """
    from volo_seg.commands.apply_flags import training_config, weigh_classes
    from volo_seg.config.checks import check_run, check_weights
    from volo_seg.datasets.inspection.check import quick_check
    from volo_seg.engine.launch import check_amp, check_batch_size, is_first_process, prepare_launch

    config = training_config(args)
    check_run(config, ('train', 'val') if config.get('val_dataloader') else ('train',))
    check_weights(config)
    if args.class_weights:
        weigh_classes(config, args.class_weights)
    if not args.no_check and is_first_process():
        quick_check(config)
    prepare_launch(config, args.launcher, args.local_rank)
    check_batch_size(config)
    check_amp(config)
    return config

"""Train a segmentor."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from volo_seg.commands import load_stack
from volo_seg.commands.flags import (
    add_config_flags,
    add_recipe_flags,
    add_reproduction_flags,
    add_run_flags,
    add_watch_flags,
    bare_amp,
    make_parser,
)
from volo_seg.errors import UserError

if TYPE_CHECKING:
    from mmengine.config import Config


def build_parser() -> argparse.ArgumentParser:
    """The flags of ``volo-seg train``, those of MMSegmentation's tools/train.py and ``--data-root``."""
    parser = make_parser('train', __doc__)
    add_config_flags(parser)
    add_run_flags(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from CHECKPOINT, or from the last one of the work dir',
    )
    parser.add_argument('--no-check', action='store_true', help='do not look at some of the data files first')
    add_reproduction_flags(parser)
    add_recipe_flags(parser)
    add_watch_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Train; see ``volo-seg train --help``."""
    args = build_parser().parse_args(bare_amp(sys.argv[1:] if argv is None else argv))
    load_stack()
    from mmseg.registry import RUNNERS

    from volo_seg.engine.hooks.checkpoint_hook import OTHER_WORK_DIR
    from volo_seg.engine.hooks.console_hook import console_of
    from volo_seg.engine.launch import is_first_process, lock_for_all

    config = prepare(args)
    with lock_for_all(config.work_dir, what='work dir', fix=OTHER_WORK_DIR):
        runner = RUNNERS.build(config)
        with console_of(runner):
            runner.train()
    if is_first_process():
        print(f'checkpoints and logs: {runner.work_dir}')
    return 0


def prepare(args: argparse.Namespace) -> Config:
    """Turn the command line into the checked config of a run."""
    from volo_seg.config.checks import check_run
    from volo_seg.config.load import load_config, set_data_root
    from volo_seg.datasets.inspection.check import quick_check
    from volo_seg.engine.launch import check_batch_size, is_first_process, prepare_launch
    from volo_seg.engine.randomness import set_randomness

    config = load_config(args.config, args.cfg_options)
    config.setdefault('runner_type', 'SafeRunner')
    config.work_dir = args.work_dir or config.get('work_dir') or str(Path('work_dirs', Path(args.config).stem))
    if args.data_root:
        set_data_root(config, args.data_root)
    change_recipe(config, args)
    watch(config, args)
    set_randomness(config, seed=args.seed, deterministic=args.deterministic)
    config.fsdp = args.fsdp or config.get('fsdp', False)
    set_resume(config, args.resume)
    check_run(config, ('train', 'val') if config.get('val_dataloader') else ('train',))
    if args.class_weights:
        weigh_classes(config, args.class_weights)
    if not args.no_check and is_first_process():
        quick_check(config)
    prepare_launch(config, args.launcher, args.local_rank)
    check_batch_size(config)
    return config


def change_recipe(config: Config, args: argparse.Namespace) -> None:
    """Apply the flags of the recipe to ``config``."""
    from volo_seg.engine.recipe import apply_recipe

    apply_recipe(
        config,
        amp=args.amp,
        accumulated=args.accumulate,
        scale_lr=args.auto_scale_lr,
        layer_decay=args.layer_decay,
        ema=args.ema,
        patience=args.patience,
        hard_pixels=args.ohem,
        compiled=args.compile,
    )


def watch(config: Config, args: argparse.Namespace) -> None:
    """Let ``config`` show and send what the flags ask for."""
    from volo_seg.engine.hooks.console_hook import show_on_console
    from volo_seg.engine.logging.vis_backends import log_to

    show_on_console(config, how=args.console)
    log_to(config, args.log_to)


def weigh_classes(config: Config, how: str) -> None:
    """Put class weights into the losses: a file's, or those of the training labels.

    Raises:
        UserError: ``how`` is neither a method nor a file of weights, or no loss takes weights.
    """
    from volo_seg.config.losses import WEIGHT_SUFFIXES, read_class_weights, set_class_weights
    from volo_seg.datasets.inspection.frequencies import METHODS, training_weights
    from volo_seg.engine.launch import is_first_process

    if how not in METHODS and not how.endswith(WEIGHT_SUFFIXES):
        files = ' or '.join(WEIGHT_SUFFIXES)
        raise UserError(f'--class-weights {how!r} is neither {" nor ".join(METHODS)} nor a {files} file')
    if how not in METHODS:
        set_class_weights(config, read_class_weights(how))
        return
    shared = int(os.environ.get('WORLD_SIZE', os.environ.get('SLURM_NTASKS', '1')))
    weights = training_weights(config, how, processes=max(1, (os.cpu_count() or 1) // shared))
    set_class_weights(config, weights)
    if is_first_process():
        print(f'class weights ({how} frequency): {", ".join(f"{weight:.3g}" for weight in weights)}')


def set_resume(config: Config, resume: str | None) -> None:
    """Name in ``config`` the checkpoint that ``--resume`` means.

    Raises:
        UserError: The named checkpoint does not exist, or the work dir holds none.
    """
    from volo_seg.engine.hooks.checkpoint_hook import last_checkpoint

    if resume is None:
        return
    config.resume = True
    if resume != 'auto':
        if not Path(resume).is_file():
            raise UserError(f'--resume {resume!r} is not a file')
        config.load_from = resume
        return
    checkpoint = last_checkpoint(config.work_dir)
    if checkpoint is None:
        raise UserError(f'--resume: {config.work_dir!r} holds no checkpoint to go on from; train without --resume')
    config.load_from = str(checkpoint)

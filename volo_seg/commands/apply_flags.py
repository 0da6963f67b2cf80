"""Applies the flags of :mod:`.flags` to a config; imported after :func:`.load_stack`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from mmengine.config import Config

from volo_seg.config.checks import named_weights
from volo_seg.config.extra_data import add_extra_data
from volo_seg.config.load import load_config, set_data_root, set_mask_template
from volo_seg.config.losses import WEIGHT_SUFFIXES, read_class_weights, set_class_weights
from volo_seg.datasets.inspection.frequencies import METHODS, training_weights
from volo_seg.engine.hooks.checkpoint_hook import RESCUED, last_checkpoint, recorded_checkpoint
from volo_seg.engine.launch import is_first_process
from volo_seg.engine.logging.vis_backends import log_to
from volo_seg.engine.recipe import apply_recipe, set_randomness
from volo_seg.engine.schedule import check_schedule
from volo_seg.errors import UserError


def set_data(config: Config, args: argparse.Namespace) -> None:
    """Apply the flags of :func:`.add_data_flags`.

    Raises:
        UserError: A template is given for another data set than ``FolderDataset``.
    """
    if args.data_root:
        set_data_root(config, args.data_root)
    if args.mask_template:
        set_mask_template(config, args.mask_template)


def training_config(args: argparse.Namespace) -> Config:
    """Load the config of :func:`.add_training_flags` and apply the flags, but those that need the data.

    Raises:
        UserError: The config or a flag is wrong.
    """
    config = load_config(args.config, args.cfg_options)
    config.setdefault('runner_type', 'SafeRunner')
    config.work_dir = args.work_dir or config.get('work_dir') or str(Path('work_dirs', Path(args.config).stem))
    set_data(config, args)
    for words in args.extra_data:
        add_extra_data(config, words)
    set_start(config, args.load_from, from_scratch=args.from_scratch)
    mismatch = None if args.iters else check_schedule(config)
    if mismatch and is_first_process():
        print(f'warning: {mismatch}', file=sys.stderr)
    apply_recipe(
        config,
        iterations=args.iters,
        batch_size=args.batch_size,
        rate=args.lr,
        crop=args.crop and tuple(args.crop),
        scale=args.scale and tuple(args.scale),
        amp=args.amp,
        accumulated=args.accumulate,
        scale_lr=args.auto_scale_lr,
        layer_decay=args.layer_decay,
        ema=args.ema,
        patience=args.patience,
        loss=args.loss,
        rare_sampling=args.sampling == 'rare',
        sampling_temperature=args.sampling_temperature,
        copy_paste=args.copy_paste,
        compiled=args.compile,
        teacher=args.teacher,
        temperature=args.temperature,
        teacher_weight=args.teacher_weight,
    )
    set_console(config, how=args.console)
    log_to(config, args.log_to)
    set_randomness(config, seed=args.seed, deterministic=args.deterministic)
    config.fsdp = args.fsdp or config.get('fsdp', False)
    if args.load_from and args.resume:
        raise UserError(f'--load-from {args.load_from} starts a run and --resume continues one; give one of the two')
    set_resume(config, args.resume)
    return config


def set_start(config: Config, source: str | None, *, from_scratch: bool) -> None:
    """Apply ``--load-from`` and ``--from-scratch`` to ``config``.

    Raises:
        UserError: Both flags are given.
    """
    if source and from_scratch:
        raise UserError(f'--load-from {source!r} and --from-scratch both say what training starts from; give one')
    if source or from_scratch:
        config.load_from = None if from_scratch or source == 'none' else source
    if from_scratch:
        config.merge_from_dict({place.removesuffix('.checkpoint'): None for place, _ in named_weights(config)})


def set_console(config: Config, *, how: str | None, tables: bool = False) -> None:
    """Apply ``--console`` to ``config``: ``live`` and ``plain`` set the hook, ``mmengine`` removes it, None keeps it.

    With ``tables``, a hook that is in the config also prints log messages of several lines.

    Raises:
        UserError: ``custom_hooks`` is not a list.
    """
    hooks = config.get('custom_hooks') or []
    if not isinstance(hooks, (list, tuple)):
        raise UserError(f'custom_hooks={hooks!r} is not a list of hooks; write custom_hooks=[dict(type=…)]')
    found = [hook for hook in hooks if isinstance(hook, dict) and hook.get('type') == 'ConsoleHook']
    others = [hook for hook in hooks if hook not in found]
    if how in ('live', 'plain') or (how is None and found):
        hook: dict[str, Any] = dict(*found[:1], type='ConsoleHook')
        hook.update({'plain': how == 'plain'} if how else {}, **({'tables': True} if tables else {}))
        config.custom_hooks = [*others, hook]
    elif found:
        config.custom_hooks = others


def weigh_classes(config: Config, how: str) -> None:
    """Put class weights into the losses: a file's, or those of the training labels.

    Raises:
        UserError: ``how`` is neither a method nor a file of weights, or no loss takes weights.
    """
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
        print(f'class weights ({how}): {", ".join(f"{weight:.3g}" for weight in weights)}')


def set_resume(config: Config, resume: str | None) -> None:
    """Name in ``config`` the checkpoint that ``--resume`` means.

    Raises:
        UserError: The named checkpoint does not exist, or the work dir holds none.
    """
    if resume is None:
        return
    config.resume = True
    remote = recorded_checkpoint(config.work_dir)
    if resume == 'auto' and '://' in remote:  # of checkpoint.out_dir with a storage backend
        resume = remote
    if resume != 'auto':
        if '://' not in resume and not Path(resume).is_file():
            raise UserError(f'--resume {resume!r} is not a file')
        config.load_from = resume
        return
    checkpoint = last_checkpoint(config.work_dir)
    rescued = last_checkpoint(config.work_dir, record=RESCUED)
    if checkpoint is None:
        fix = f'the last save failed, and its copy is resumed by --resume {rescued}' if rescued else 'train without it'
        raise UserError(f'--resume: {config.work_dir!r} holds no checkpoint to resume from; {fix}')
    if rescued is not None and is_first_process():
        print(f'resuming from {str(checkpoint)!r}; a later save failed, and its copy is resumed by --resume {rescued}')
    config.load_from = str(checkpoint)

"""Evaluate a checkpoint on the test split of a config."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volo_seg.commands import load_stack
from volo_seg.commands.flags import add_config_flags, add_console_flags, add_run_flags, make_parser
from volo_seg.errors import UserError
from volo_seg.inference.exported_predictor import PREDICTORS

if TYPE_CHECKING:
    from mmengine.config import Config


def build_parser() -> argparse.ArgumentParser:
    """Return the parser: the flags of MMSegmentation's tools/test.py and those of this package."""
    parser = make_parser('test', __doc__)
    add_config_flags(parser)
    parser.add_argument(
        'checkpoint', help='trained weights: a file, or a name of volo-seg weights list; or an exported file'
    )
    add_run_flags(parser)
    parser.add_argument('--out', metavar='DIR', help='also write the predicted label images there')
    parser.add_argument('--show', action='store_true', help='show each prediction in a window')
    parser.add_argument('--show-dir', metavar='DIR', help='also draw the predictions, below the work dir')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds each window stays open')
    parser.add_argument('--tta', action='store_true', help='average over scales and flips (test-time augmentation)')
    add_console_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate; see ``volo-seg test --help``."""
    args = build_parser().parse_args(argv)
    load_stack()
    if Path(args.checkpoint).suffix in PREDICTORS:
        return evaluate_exported(args)
    config = prepare(args)
    from mmseg.registry import RUNNERS

    from volo_seg.engine.hooks.console_hook import console_of
    from volo_seg.engine.launch import lock_for_all

    with lock_for_all(args.out, what='output folder', fix='give another by --out'):
        runner = RUNNERS.build(config)
        with console_of(runner):
            metrics = runner.test()
    print('  '.join(f'{name} {metrics[name]:.2f}' for name in ('mIoU', 'mAcc', 'aAcc') if name in metrics))
    print(f'log and metrics: {runner.log_dir}')
    return 0


def evaluate_exported(args: argparse.Namespace) -> int:
    """Evaluate an exported file, which reads and resizes images as its own metadata say.

    Raises:
        UserError: The config, the data or the file is invalid, or a flag needs a network of PyTorch.
    """
    from volo_seg.commands.apply_flags import set_data
    from volo_seg.config.checks import check_run
    from volo_seg.config.load import load_config
    from volo_seg.export.accuracy import LabelledImages, score
    from volo_seg.inference.load import load_predictor

    for flag in ('out', 'show', 'show_dir', 'tta'):
        if getattr(args, flag):
            raise UserError(f'--{flag.replace("_", "-")} is for checkpoints, not for an exported file; leave it out')
    config = load_config(args.config, args.cfg_options)
    set_data(config, args)
    check_run(config, ('test',))
    found = score({'': load_predictor(args.checkpoint)}, LabelledImages(config))['']
    print(f'{found.images} images, median {1000 * found.seconds:.0f} ms')
    print(f'mIoU {100 * found.mean_iou:.2f}  aAcc {100 * found.pixel_accuracy:.2f}')
    return 0


def prepare(args: argparse.Namespace) -> Config:
    """Return the config of the evaluation, checked against the data and adapted to the launcher.

    Raises:
        UserError: The config, a flag or the data is invalid.
    """
    from volo_seg.commands.apply_flags import set_console, set_data
    from volo_seg.config.checks import check_run
    from volo_seg.config.load import load_config
    from volo_seg.engine.launch import prepare_launch

    config = load_config(args.config, args.cfg_options)
    config.setdefault('runner_type', 'SafeRunner')
    config.work_dir = args.work_dir or config.get('work_dir') or str(Path('work_dirs', Path(args.config).stem))
    config.load_from, config.resume = args.checkpoint, False
    set_data(config, args)
    set_console(config, how=args.console, tables=True)
    if args.show or args.show_dir:
        draw_predictions(config, args)
    check_run(config, ('test',))
    if args.out:
        write_predictions(config, args.out)
    if args.tta:
        use_tta(config)
    prepare_launch(config, args.launcher, args.local_rank)
    return config


def write_predictions(config: Config, folder: str) -> None:
    """Let each metric that can write label images write them into ``folder``.

    All are in one folder if their sorted names have the order of the data set, because MMSegmentation's
    ``confusion_matrix.py`` reads them in this order; otherwise the subfolders of the images are kept.

    Raises:
        UserError: No metric of ``test_evaluator`` can.
    """
    from mmseg.registry import DATASETS

    from volo_seg.config.load import datasets
    from volo_seg.config.validation import accepted_keys, find_type, walk

    settings: dict[str, Any] = {'output_dir': folder, 'keep_results': True}
    names: list[str] = []
    for _, dataset in datasets(config.test_dataloader.dataset, 'test_dataloader.dataset'):
        if hasattr(find_type(dataset['type']), 'METAINFO'):
            built = DATASETS.build({**dataset, 'pipeline': []})
            names += [Path(built.get_data_info(index)['img_path']).stem + '.png' for index in range(len(built))]
            images = Path(dataset.get('data_root') or '.', (dataset.get('data_prefix') or {}).get('img_path', ''))
            settings.setdefault('img_dir', str(images))
    if names == sorted(set(names)):
        settings.pop('img_dir', None)
    written = 0
    metric: Any
    for _, metric in walk(config.get('test_evaluator'), 'test_evaluator'):
        accepted = accepted_keys(find_type(metric['type']))
        if 'output_dir' in accepted:
            metric.update({key: value for key, value in settings.items() if key in accepted})
            written += 1
    if not written:
        raise UserError('--out: no metric of test_evaluator writes label images; use ExactIoUMetric or IoUMetric')


def draw_predictions(config: Config, args: argparse.Namespace) -> None:
    """Turn on MMSegmentation's visualization hook as its tools/test.py does."""
    hook = config.default_hooks.setdefault('visualization', dict(type='SegVisualizationHook'))
    hook.draw = True
    if args.show:
        hook.show, hook.wait_time = True, args.wait_time
    if args.show_dir:
        config.visualizer.save_dir = args.show_dir


def use_tta(config: Config) -> None:
    """Replace model and test pipeline by ``tta_model`` and ``tta_pipeline`` of the config.

    Raises:
        UserError: The config lacks one of them.
    """
    for key in ('tta_pipeline', 'tta_model'):
        if key not in config:
            raise UserError(f'--tta needs {key}, and the config has none; add it, or remove the flag')
    config.test_dataloader.dataset.pipeline = config.tta_pipeline
    config.model = dict(**config.tta_model, module=config.model)

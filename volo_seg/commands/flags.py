"""Flags and the progress bar that several commands share."""

from __future__ import annotations

import argparse
import itertools
import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import TypeVar

from volo_seg.commands import COMMANDS

T = TypeVar('T')


def make_parser(
    name: str, description: str | None, *, notes: str = '', usage: str | None = None
) -> argparse.ArgumentParser:
    """The argument parser of the command ``name``; its help ends with ``notes`` and the example of the command."""
    return argparse.ArgumentParser(
        prog=f'volo-seg {name}',
        usage=usage,
        description=description,
        epilog=f'{notes.strip()}\n\nexample:\n  volo-seg {name} {COMMANDS[name].example}'.strip(),
        formatter_class=HelpFormatter,
    )


class HelpFormatter(argparse.HelpFormatter):
    """Fills paragraphs; indented lines stay separate, and what does not fit continues below the last column."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        blocks = []
        for plain, lines in itertools.groupby(text.splitlines(), lambda line: bool(line) and line[0] != ' '):
            if plain:
                blocks.append(textwrap.fill(' '.join(lines), width, initial_indent=indent, subsequent_indent=indent))
                continue
            for line in lines:
                column = max((gap.end() for gap in re.finditer(r' {2,}', line)), default=0)
                blocks.append(textwrap.fill(line, width, subsequent_indent=' ' * column, break_on_hyphens=False))
        return '\n'.join(blocks)


def add_config_flags(parser: argparse.ArgumentParser) -> None:
    """Add the positional ``config`` and ``--cfg-options`` of every command with a config."""
    parser.add_argument('config', help='config file, or the name of a shipped config')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        metavar='KEY=VALUE',
        help='override settings of the config, e.g. train_cfg.max_iters=100 model.backbone.init_cfg=None',
    )


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Add where the data is; :func:`.set_data` applies them."""
    parser.add_argument('--data-root', help='folder of the data set, instead of the one in the config')
    parser.add_argument(
        '--mask-template',
        metavar='PATH',
        help="masks of one's own images, e.g. '{folder}/../labels/{stem}_mask.png'",
    )


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Add what training and evaluation share: where the data is, where results go, which launcher."""
    parser.add_argument('--work-dir', help='folder for logs, metrics, checkpoints (default work_dirs/<config name>)')
    add_data_flags(parser)
    parser.add_argument('--launcher', choices=('none', 'pytorch', 'slurm', 'mpi'), default='none', help='job launcher')
    # old launchers pass the rank as a flag
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def add_reproduction_flags(parser: argparse.ArgumentParser) -> None:
    """Add what makes two runs equal, and what shards one over processes."""
    parser.add_argument('--seed', type=int, metavar='N', help='seed of all random numbers (default: a new one)')
    parser.add_argument(
        '--deterministic', action='store_true', help='ordered algorithms only: two runs with one seed are equal'
    )
    parser.add_argument(
        '--fsdp', action='store_true', help='shard weights, gradients and optimizer state over the processes'
    )


def add_recipe_flags(parser: argparse.ArgumentParser) -> None:
    """Add what changes the recipe of a training run; ``--amp`` as in MMSegmentation's tools/train.py."""
    recipe = parser.add_argument_group('recipe')
    recipe.add_argument(
        '--load-from',
        metavar='CHECKPOINT',
        help="start from this file, name of volo-seg weights list, or 'none'; default: as the config says",
    )
    recipe.add_argument('--from-scratch', action='store_true', help='start from random weights, in the backbone too')
    recipe.add_argument(
        '--iters',
        type=int,
        metavar='N',
        help='N optimizer steps; warm-up, schedule, validations, checkpoints and averaging keep their share of the run',
    )
    recipe.add_argument('--batch-size', type=int, metavar='N', help='images in a batch of one process')
    recipe.add_argument('--lr', type=float, metavar='LR', help='highest learning rate')
    recipe.add_argument('--crop', type=int, nargs=2, metavar=('H', 'W'), help='size of training crops in pixels')
    recipe.add_argument(
        '--scale',
        type=int,
        nargs=2,
        metavar=('W', 'H'),
        help='resize images to fit into W x H pixels, in training before the random factor (default: see the config)',
    )
    recipe.add_argument(
        '--amp',
        nargs='?',
        const='auto',
        choices=('auto', 'bf16', 'fp16'),
        metavar='bf16|fp16',
        help='train in mixed precision (default fp16 on a GPU, bf16 on a CPU)',
    )
    recipe.add_argument(
        '--accumulate',
        type=int,
        metavar='N',
        help='N batches an optimizer step, in as many optimizer steps as the config says (N times the iterations)',
    )
    recipe.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate to the images of an optimizer step: batch size x GPUs x accumulated batches',
    )
    recipe.add_argument(
        '--layer-decay', type=float, metavar='RATE', help='each layer learns by RATE slower than the one above it'
    )
    recipe.add_argument(
        '--ema',
        nargs='?',
        const=True,
        type=float,
        metavar='MOMENTUM',
        help='evaluate and save a moving average of the weights (default momentum: that of AveragedWeightsHook)',
    )
    recipe.add_argument('--patience', type=int, metavar='N', help='stop after N evaluations without a better mIoU')
    recipe.add_argument(
        '--class-weights',
        nargs='?',
        const='inverse',
        metavar='inverse|median|sqrt|FILE',
        help='weigh the classes in the loss: by their share of the training labels, or by a file (.json, .txt, .npy)',
    )
    recipe.add_argument(
        '--loss',
        choices=('ce', 'ohem', 'focal', 'dice', 'lovasz', 'ce+dice', 'ce+lovasz', 'boundary'),
        metavar='LOSS',
        help='the losses of the heads: ce, ohem (cross entropy of hard pixels), focal, dice, lovasz, ce+dice, '
        'ce+lovasz, boundary (added to cross entropy)',
    )
    recipe.add_argument('--ohem', dest='loss', action='store_const', const='ohem', help='short for --loss ohem')
    recipe.add_argument(
        '--sampling', choices=('rare',), help='rare: draw images with rare classes more often, and crops that hold one'
    )
    recipe.add_argument(
        '--sampling-temperature',
        type=float,
        metavar='T',
        help='temperature of --sampling rare (default 0.01); larger values prefer rare classes less',
    )
    recipe.add_argument(
        '--copy-paste', action='store_true', help='paste regions of rare classes from other images with their labels'
    )
    recipe.add_argument(
        '--extra-data',
        nargs='+',
        action='append',
        default=[],
        metavar='IMAGES MASKS [WEIGHT]',
        help='also train on the pairs of two folders, each drawn WEIGHT (default 1) times as often as the others',
    )
    recipe.add_argument(
        '--teacher',
        nargs=2,
        metavar=('CONFIG', 'CHECKPOINT'),
        help='also learn from the soft labels of a trained network of the same classes (distillation)',
    )
    recipe.add_argument(
        '--temperature', type=float, metavar='T', help='divisor of the logits for --teacher (default 2)'
    )
    recipe.add_argument('--teacher-weight', type=float, metavar='W', help='factor of the loss of --teacher (default 1)')
    recipe.add_argument('--compile', action='store_true', help='compile the backbone (torch.compile)')


def add_console_flags(parser: argparse.ArgumentParser) -> None:
    """Add what the console shows of a run."""
    parser.add_argument(
        '--console',
        choices=('live', 'plain', 'mmengine'),
        help='live view (plain lines in a pipe), plain lines, or all that MMEngine logs; default: as the config says',
    )
    parser.add_argument(
        '--plain', dest='console', action='store_const', const='plain', help='short for --console plain'
    )


def add_watch_flags(parser: argparse.ArgumentParser) -> None:
    """Add what the console shows of a training run, and which trackers log it."""
    add_console_flags(parser)
    parser.add_argument(
        '--log-to',
        nargs='+',
        default=[],
        metavar='TRACKER',
        help='also log to tensorboard, wandb, mlflow (each an extra to install)',
    )


def add_training_flags(parser: argparse.ArgumentParser) -> None:
    """Add all flags that change the config of a training run: those of ``volo-seg train`` and ``print_config``."""
    add_config_flags(parser)
    add_run_flags(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='resume from CHECKPOINT, or from the last one of the work dir',
    )
    add_reproduction_flags(parser)
    add_recipe_flags(parser)
    add_watch_flags(parser)


def bare_amp(words: Sequence[str]) -> list[str]:
    """Replace a bare ``--amp`` by ``--amp=auto``, so that argparse does not take the config after it for a format."""
    spelled = []
    for word, following in zip(words, [*words[1:], ''], strict=True):
        spelled.append('--amp=auto' if word == '--amp' and following not in ('auto', 'bf16', 'fp16') else word)
    return spelled


def progress_bar(items: Iterable[T], description: str = 'files', total: int | None = None) -> Iterable[T]:
    """Yield ``items`` with a progress bar on stderr."""
    from rich.console import Console
    from rich.progress import track

    return track(items, description, total, console=Console(stderr=True))

"""Flags and the progress bar that several commands share."""

from __future__ import annotations

import argparse
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
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_config_flags(parser: argparse.ArgumentParser) -> None:
    """Add the positional ``config`` and ``--cfg-options`` of every command with a config."""
    parser.add_argument('config', help='config file, or the name of a shipped config')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        metavar='KEY=VALUE',
        help='override settings of the config, e.g. train_cfg.max_iters=100 model.backbone.init_cfg=None',
    )


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Add what training and evaluation share: where the data is, where results go, which launcher."""
    parser.add_argument('--work-dir', help='folder for logs, metrics, checkpoints (default work_dirs/<config name>)')
    parser.add_argument('--data-root', help='folder of the data set, instead of the one in the config')
    parser.add_argument('--launcher', choices=('none', 'pytorch', 'slurm', 'mpi'), default='none', help='job launcher')
    # old launchers pass the rank as a flag
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def add_reproduction_flags(parser: argparse.ArgumentParser) -> None:
    """Add what makes two runs equal, and what splits one over processes."""
    parser.add_argument('--seed', type=int, metavar='N', help='seed of all random numbers (default: a new one)')
    parser.add_argument(
        '--deterministic', action='store_true', help='ordered algorithms only: two runs with one seed are equal'
    )
    parser.add_argument(
        '--fsdp', action='store_true', help='split weights, gradients and optimizer state over the processes'
    )


def add_recipe_flags(parser: argparse.ArgumentParser) -> None:
    """Add what changes the recipe of a training run; ``--amp`` as in MMSegmentation's tools/train.py."""
    recipe = parser.add_argument_group('recipe')
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
        const=2e-4,
        type=float,
        metavar='MOMENTUM',
        help='evaluate and save a moving average of the weights (default momentum 0.0002)',
    )
    recipe.add_argument('--patience', type=int, metavar='N', help='stop after N evaluations without a better mIoU')
    recipe.add_argument(
        '--class-weights',
        nargs='?',
        const='inverse',
        metavar='inverse|median|FILE',
        help='weigh the classes in the loss: by their share of the training labels, or by a file (.json, .txt, .npy)',
    )
    recipe.add_argument('--ohem', action='store_true', help='learn from the pixels that the network finds hard')
    recipe.add_argument('--compile', action='store_true', help='compile the backbone (torch.compile)')


def add_console_flags(parser: argparse.ArgumentParser) -> None:
    """Add what the console shows of a run."""
    parser.add_argument(
        '--console',
        choices=('live', 'plain', 'mmengine'),
        default='live',
        help='live view (plain lines in a pipe), plain lines, or all that MMEngine logs; the log file has it all',
    )
    parser.add_argument(
        '--plain', dest='console', action='store_const', const='plain', help='short for --console plain'
    )


def add_watch_flags(parser: argparse.ArgumentParser) -> None:
    """Add how a training is watched: what the console shows, and who else is told."""
    add_console_flags(parser)
    parser.add_argument(
        '--log-to',
        nargs='+',
        default=[],
        metavar='TRACKER',
        help='also log to tensorboard, wandb, mlflow (each an extra to install)',
    )


def bare_amp(words: Sequence[str]) -> list[str]:
    """``words`` with a bare ``--amp`` spelled out, so that it does not take the config behind it for a format."""
    spelled = []
    for word, following in zip(words, [*words[1:], ''], strict=True):
        spelled.append('--amp=auto' if word == '--amp' and following not in ('auto', 'bf16', 'fp16') else word)
    return spelled


def progress_bar(items: Iterable[T], description: str = 'files', total: int | None = None) -> Iterable[T]:
    """Yield ``items`` with a progress bar on stderr."""
    from rich.console import Console
    from rich.progress import track

    return track(items, description, total, console=Console(stderr=True))

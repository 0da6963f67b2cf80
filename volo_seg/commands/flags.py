"""Flags that several commands share."""

from __future__ import annotations

import argparse


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

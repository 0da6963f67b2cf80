"""Print a table of one or several runs, and plot their loss, learning rate and mIoU."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from volo_seg.commands.flags import make_parser
from volo_seg.errors import UserError
from volo_seg.io import atomic_write, check_writable


def build_parser() -> argparse.ArgumentParser:
    """The flags of ``volo-seg analyze_logs``."""
    parser = make_parser('analyze_logs', __doc__)
    parser.add_argument('runs', nargs='+', metavar='RUN', help='work dir, a log folder in it, or a scalars.json')
    parser.add_argument('--out', metavar='FILE', help='the plot to write (.png, .svg or .pdf)')
    parser.add_argument('--keys', nargs='+', metavar='KEY', help='values to plot (default: loss lr mIoU, if logged)')
    parser.add_argument('--overwrite', action='store_true', help='replace an existing plot')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and write the plot; see ``volo-seg analyze_logs --help``."""
    args = build_parser().parse_args(argv)
    from volo_seg.reports.plots import FORMATS, check_keys, draw_curves
    from volo_seg.reports.runs import read_run, run_table

    out = None if args.out is None else Path(args.out)
    if out is not None and out.suffix.lower()[1:] not in FORMATS:
        raise UserError(f'--out {args.out!r} must end in .{", .".join(FORMATS)}')
    if out is not None and out.exists() and not args.overwrite:
        raise UserError(f'{args.out!r} exists; add --overwrite, or name another file')
    if out is not None:
        check_writable(out.parent)
    runs = [read_run(path) for path in args.runs]
    keys = args.keys or [key for key in ('loss', 'lr', 'mIoU') if any(run.curve(key)[0] for run in runs)]
    check_keys(runs, keys)
    print(run_table(runs))
    damaged = sum(run.damaged for run in runs)
    if damaged:
        print(f'{damaged} damaged line(s) of the logs are left out')
    if out is not None:
        atomic_write(out, draw_curves(runs, keys, format=out.suffix.lower()[1:]))
        print(f'plot: {out}')
    return 0

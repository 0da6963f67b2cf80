"""Write one HTML page about a run: curves, classes, confusion, worst images, contact sheets, record."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from volo_seg.commands.flags import make_parser
from volo_seg.errors import UserError
from volo_seg.io import atomic_write, check_writable


def build_parser() -> argparse.ArgumentParser:
    """The flags of ``volo-seg report``."""
    parser = make_parser('report', __doc__)
    parser.add_argument('work_dir', metavar='WORK_DIR', help='work dir of volo-seg train and volo-seg test')
    parser.add_argument('--out', metavar='FILE', help='the HTML file to write (default WORK_DIR/report.html)')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page; see ``volo-seg report --help``."""
    args = build_parser().parse_args(argv)
    from volo_seg.reports.page import build_page, is_report

    work_dir = Path(args.work_dir)
    out = Path(args.out) if args.out else work_dir / 'report.html'
    if out.exists() and not is_report(out):
        raise UserError(f'{str(out)!r} exists and was not written by volo-seg report; name another file with --out')
    check_writable(out.parent)
    page = build_page(work_dir).encode('utf-8', 'replace')
    atomic_write(out, page)
    print(f'report: {out} ({len(page) / 2**20:.1f} MiB)'.encode('utf-8', 'replace').decode())
    return 0

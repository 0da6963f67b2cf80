"""Pack predictions for a test server, or say what is wrong with an archive before the server does."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from volo_seg.commands.flags import make_parser
from volo_seg.errors import UserError

if TYPE_CHECKING:
    from volo_seg.evaluation.submission.archive import ServerRule

T = TypeVar('T')
MOST_LINES = 20


def build_parser() -> argparse.ArgumentParser:
    """The flags of ``volo-seg submit``."""
    parser = make_parser('submit', __doc__)
    parser.add_argument('pred_dir', type=Path, nargs='?', metavar='PRED_DIR', help='folder of predicted PNGs')
    parser.add_argument('archive', type=Path, nargs='?', metavar='OUT.zip', help='archive to write; must be new')
    parser.add_argument('--validate', type=Path, metavar='ZIP', help='check this archive instead of writing one')
    parser.add_argument('--dataset', choices=('cityscapes', 'ade20k'), required=True, help='which server')
    parser.add_argument('--images', type=Path, metavar='DIR', help='test images; then names and sizes are compared')
    parser.add_argument(
        '--pred-ids',
        choices=('train', 'label'),
        help="numbering of the predictions: classes from 0, or the data set's own labels (default, as "
        'volo-seg test --out writes: train for Cityscapes, label for ADE20K)',
    )
    parser.add_argument('--pred-suffix', metavar='END', default='.png', help='how names of predictions end')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Pack or check; see ``volo-seg submit --help``. Exit status 1: the archive has errors."""
    args = build_parser().parse_args(argv)
    if (args.validate is None) != (args.pred_dir is not None and args.archive is not None):
        raise UserError('give PRED_DIR and OUT.zip to write an archive, or --validate ZIP to check one')
    if args.validate is not None and args.pred_dir is not None:
        raise UserError('--validate checks an archive and writes none; leave out PRED_DIR and OUT.zip')
    rule, table = server(args)
    if args.validate is not None:
        return check(args.validate, rule, args.images)
    from volo_seg.evaluation.submission.archive import image_frames, write_submission

    frames = None if args.images is None else image_frames(args.images, rule)
    count = write_submission(
        args.pred_dir,
        args.archive,
        rule,
        table=table,
        suffix=args.pred_suffix,
        frames=frames,
        progress=watched,
    )
    print(f'{args.archive}: {count} predictions for {rule.name}')
    return check(args.archive, rule, args.images)


def server(args: argparse.Namespace) -> tuple[ServerRule, dict[int, int]]:
    """The server's rule, and the table from the predictions' values to the server's."""
    from volo_seg.evaluation.submission.archive import ade20k_rule, cityscapes_rule

    if args.dataset == 'ade20k':
        shift = {i: i + 1 for i in range(150)}
        return ade20k_rule(), shift if args.pred_ids == 'train' else {i: i for i in range(1, 151)}
    from volo_seg.datasets.cityscapes_labels import LABELS, TRAIN_LABELS

    ids = [label.id for label in TRAIN_LABELS]
    rule = cityscapes_rule([label.id for label in LABELS], ids)
    return rule, {i: i for i in ids} if args.pred_ids == 'label' else dict(enumerate(ids))


def check(archive: Path, rule: ServerRule, images: Path | None) -> int:
    """Print the findings; 1 if one of them is an error."""
    from volo_seg.evaluation.submission.archive import image_frames
    from volo_seg.evaluation.submission.check import check_submission

    frames = None if images is None else image_frames(images, rule)
    findings = sorted(check_submission(archive, rule, images=frames, progress=watched), key=lambda f: f.level)
    for finding in findings[:MOST_LINES]:
        print(finding)
    if len(findings) > MOST_LINES:
        print(f'and {len(findings) - MOST_LINES} more')
    errors = sum(finding.level == 'error' for finding in findings)
    print(f'{archive}: {errors} errors, {len(findings) - errors} warnings for the server of {rule.name}')
    return 1 if errors else 0


def watched(items: Sequence[T]) -> Iterable[T]:
    """The items, with a progress bar on stderr."""
    from rich.console import Console
    from rich.progress import track

    return track(items, 'files', console=Console(stderr=True))

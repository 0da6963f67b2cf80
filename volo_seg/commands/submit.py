"""Pack predictions for a test server, or check an archive against the requirements of the server."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from volo_seg.commands.flags import make_parser, progress_bar
from volo_seg.errors import UserError

if TYPE_CHECKING:
    from volo_seg.evaluation.submission.archive import ServerRule

MAX_LINES = 20


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
    """Pack or check; see ``volo-seg submit --help``. The exit status is 1 if the archive has errors."""
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
        args.pred_dir, args.archive, rule, table=table, suffix=args.pred_suffix, frames=frames, progress=progress_bar
    )
    print(f'{args.archive}: {count} predictions for {rule.name}')
    return check(args.archive, rule, args.images)


def server(args: argparse.Namespace) -> tuple[ServerRule, dict[int, int]]:
    """The requirements of the server, and the table from the values of the predictions to those of the server."""
    from volo_seg.evaluation.submission.archive import ade20k_rule, cityscapes_rule

    if args.dataset == 'ade20k':
        shift = {i: i + 1 for i in range(150)}
        return ade20k_rule(), shift if args.pred_ids == 'train' else {i: i for i in range(1, 151)}
    from volo_seg.datasets.cityscapes_labels import LABELS, TRAIN_LABELS

    ids = [label.id for label in TRAIN_LABELS]
    rule = cityscapes_rule([label.id for label in LABELS], ids)
    return rule, {i: i for i in ids} if args.pred_ids == 'label' else dict(enumerate(ids))


def check(archive: Path, rule: ServerRule, images: Path | None) -> int:
    """Print the problems of ``archive``; return 1 if one is an error, else 0."""
    from volo_seg.evaluation.submission.archive import image_frames
    from volo_seg.evaluation.submission.check import check_submission

    frames = None if images is None else image_frames(images, rule)
    problems = check_submission(archive, rule, images=frames, progress=progress_bar)
    problems.sort(key=lambda problem: problem.level)
    for problem in problems[:MAX_LINES]:
        print(problem)
    if len(problems) > MAX_LINES:
        print(f'and {len(problems) - MAX_LINES} more')
    errors = sum(problem.level == 'error' for problem in problems)
    print(f'{archive}: {errors} errors, {len(problems) - errors} warnings for the server of {rule.name}')
    return 1 if errors else 0

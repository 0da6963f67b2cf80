"""Score label images (PNGs) of any model against the ground truth, exactly."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from volo_seg.commands.flags import make_parser, progress_bar
from volo_seg.errors import UserError

if TYPE_CHECKING:
    import re

    from volo_seg.evaluation.folders import Table
    from volo_seg.evaluation.tally import Tally

CITYSCAPES_SUFFIXES = ('_gtFine_labelTrainIds.png', '_gtFine_labelIds.png')


@dataclass(frozen=True)
class Rule:
    """Names and values of the files of a data set; the tables map values to classes."""

    classes: tuple[str, ...]
    ignore_index: int
    truth_suffix: str
    truth_table: Table | None = None
    prediction_table: Table | None = None
    frame: re.Pattern[str] | None = None


NOTES = """
A prediction that equals the ignored value counts as a miss; any other value out of range is an error. Files are paired
by their path below the two folders, or by their name.
"""


def build_parser() -> argparse.ArgumentParser:
    """The flags of ``volo-seg eval``."""
    parser = make_parser('eval', __doc__, notes=NOTES)
    parser.add_argument('pred_dir', type=Path, metavar='PRED_DIR', help='folder of predicted label PNGs')
    parser.add_argument('gt_dir', type=Path, metavar='GT_DIR', help='folder of ground-truth label PNGs')
    parser.add_argument('--dataset', choices=('cityscapes', 'ade20k'), help='names, numbering and file names')
    parser.add_argument('--classes', nargs='+', metavar='NAME', help='class names, 0 first, for other data')
    parser.add_argument('--classes-file', type=Path, metavar='FILE', help='a list of them, see FolderDataset')
    parser.add_argument('--ignore-index', type=int, metavar='N', help='value that is not scored (default 255)')
    parser.add_argument(
        '--reduce-zero-label', action='store_true', help='0 means none and classes count from 1, in both folders'
    )
    parser.add_argument(
        '--label-map',
        nargs='+',
        metavar='OLD:NEW',
        help='value in both folders and its class, for values that differ, e.g. 255:1 for masks of 0 and 255',
    )
    parser.add_argument(
        '--pred-ids',
        choices=('train', 'label'),
        help="numbering of the predictions: classes from 0, or the data set's own labels (default, as "
        'volo-seg test --out writes: train for Cityscapes, label for ADE20K)',
    )
    parser.add_argument('--gt-suffix', metavar='END', help='how names of label files end (default .png)')
    parser.add_argument('--pred-suffix', metavar='END', default='.png', help='the same for predictions')
    parser.add_argument(
        '--definition',
        choices=('mmseg', 'ade', 'gt_classes'),
        default='mmseg',
        help='mean IoU over classes in truth or prediction (mmseg), all classes (ade), classes in the truth',
    )
    parser.add_argument('--boundary', action='store_true', help='also boundary IoU')
    parser.add_argument('--json', type=Path, metavar='OUT', help='write all figures and the confusion matrix there')
    parser.add_argument('--out-dir', type=Path, metavar='DIR', help='write metrics.json, .csv and a figure there')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Score; see ``volo-seg eval --help``."""
    args = build_parser().parse_args(argv)
    rule = rule_of(args)
    from volo_seg.evaluation.folders import pair_files, score_folders
    from volo_seg.evaluation.report import check_json, check_report_folder

    if args.json is not None:
        check_json(args.json)
    if args.out_dir is not None:
        check_report_folder(args.out_dir)
    pairs, extra = pair_files(
        args.pred_dir, args.gt_dir, truth_suffix=rule.truth_suffix, prediction_suffix=args.pred_suffix, frame=rule.frame
    )
    tally = score_folders(
        progress_bar(pairs, 'scoring'),
        num_classes=len(rule.classes),
        ignore_index=rule.ignore_index,
        truth_table=rule.truth_table,
        prediction_table=rule.prediction_table,
        boundary=args.boundary,
    )
    show(tally, rule, args, extra)
    return 0


def rule_of(args: argparse.Namespace) -> Rule:
    """The rule that the flags define.

    Raises:
        UserError: The classes are not given, or flags contradict each other.
    """
    given = [args.dataset is not None, args.classes is not None, args.classes_file is not None]
    if sum(given) != 1:
        raise UserError('give one of --dataset, --classes and --classes-file, so that the classes are known')
    if args.dataset is None:
        return own_rule(args)
    if args.ignore_index is not None or args.reduce_zero_label or args.label_map:
        raise UserError(f'--dataset {args.dataset} fixes the numbering; leave out --ignore-index and its like')
    return cityscapes_rule(args) if args.dataset == 'cityscapes' else ade20k_rule(args)


def own_rule(args: argparse.Namespace) -> Rule:
    """The rule for labels that are class numbers, or class numbers + 1 with ``--reduce-zero-label``."""
    from volo_seg.datasets.class_lists import check_class_names, read_class_list
    from volo_seg.evaluation.folders import shift_table

    if args.pred_ids is not None:
        raise UserError('--pred-ids belongs to --dataset; other predictions are numbered as their labels are')
    if args.classes and len(args.classes) == 1 and Path(args.classes[0]).is_file():
        raise UserError(f'--classes {args.classes[0]!r} is a file and not a class name; use --classes-file')
    names = check_class_names(args.classes) if args.classes else read_class_list(args.classes_file)[0]
    classes = tuple(names)
    ignore = 255 if args.ignore_index is None else args.ignore_index
    table = shift_table(len(classes), ignore_index=ignore) if args.reduce_zero_label else None
    if args.label_map:
        known = table or {ignore: ignore} | {label: label for label in range(len(classes))}
        table = known | label_map(args.label_map, count=len(classes), ignore_index=ignore)
    return Rule(classes, ignore, args.gt_suffix or '.png', table, table)


def label_map(words: Sequence[str], *, count: int, ignore_index: int) -> dict[int, int]:
    """The table of ``--label-map`` for ``count`` classes.

    Raises:
        UserError: A word is not of the form OLD:NEW, or NEW is neither a class nor the ignored value.
    """
    table = {}
    for word in words:
        old, _, new = word.partition(':')
        if not (old.isdecimal() and new.isdecimal() and (int(new) < count or int(new) == ignore_index)):
            raise UserError(
                f'--label-map {word!r} is not OLD:NEW with a class 0..{count - 1} or {ignore_index} (ignored) as NEW; '
                'write 255:1, for example'
            )
        table[int(old)] = int(new)
    return table


def cityscapes_rule(args: argparse.Namespace) -> Rule:
    """The rule for Cityscapes; the ground truth is ``labelTrainIds`` if such files exist, else ``labelIds``."""
    from volo_seg.datasets.cityscapes_labels import IGNORE, LABELS, train_names
    from volo_seg.evaluation.folders import CITYSCAPES_FRAME
    from volo_seg.io import find_files

    ids = {IGNORE: IGNORE} | {label.id: max(label.train_id, -1) for label in LABELS if label.id >= 0}
    found = (end for end in CITYSCAPES_SUFFIXES if find_files(args.gt_dir, suffixes=(end,), any_case=False))
    suffix = args.gt_suffix or next(found, CITYSCAPES_SUFFIXES[-1])
    truth = None if 'labelTrainIds' in suffix else ids
    prediction = ids if args.pred_ids == 'label' else None
    return Rule(train_names(), IGNORE, suffix, truth, prediction, CITYSCAPES_FRAME)


def ade20k_rule(args: argparse.Namespace) -> Rule:
    """The rule for ADE20K; the ground truth has 0 (ignored) and 1..150."""
    from mmseg.utils import get_classes

    from volo_seg.evaluation.folders import shift_table

    table = shift_table(150, ignore_index=255)
    prediction = None if args.pred_ids == 'train' else table
    return Rule(tuple(get_classes('ade20k')), 255, args.gt_suffix or '.png', table, prediction)


def show(tally: Tally, rule: Rule, args: argparse.Namespace, extra: Sequence[Path]) -> None:
    """Print the tables, and write the files of ``--json`` and ``--out-dir``."""
    from volo_seg.evaluation.report import (
        class_table,
        report_content,
        sorted_worst_first,
        summary,
        write_json,
        write_report,
    )
    from volo_seg.evaluation.scores import compute_scores, unique_names

    scores = compute_scores(tally, unique_names(rule.classes))
    print(class_table(scores.classes))
    print(f'\nworst first:\n{class_table(sorted_worst_first(scores.classes))}\n')
    print(summary(scores, definition=args.definition))
    counted, missed = int(tally.matrix.sum()), int(tally.matrix[:, -1].sum())
    print(f'{tally.images} images, {counted} pixels scored, {tally.ignored} ignored (no ground truth)')
    print(f'{missed} pixels ({missed / counted:.2%}) are predicted as the ignored value and count as misses')
    if len(rule.classes) <= 2 and rule.truth_table is None and tally.ignored and not tally.matrix[1:, :].any():
        print(
            f'warning: the ground truth holds 0 and the ignored value {rule.ignore_index} alone, as 8-bit binary '
            f'masks do; --label-map {rule.ignore_index}:1 reads {rule.ignore_index} as class 1'
        )
    if extra:
        print(f'{len(extra)} predictions have no ground truth and were left out, the first is {extra[0]}')
    if args.json is not None:
        content = report_content(tally, scores, definition=args.definition, ignore_index=rule.ignore_index)
        write_json(args.json, content)
    if args.out_dir is not None:
        write_report(args.out_dir, tally, scores, definition=args.definition, ignore_index=rule.ignore_index)

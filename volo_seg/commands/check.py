"""Check the data of a config: files, sizes, label values, classes, duplicates."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from volo_seg.commands import load_stack
from volo_seg.commands.flags import add_config_flags, add_data_flags, make_parser
from volo_seg.errors import UserError
from volo_seg.io import atomic_write, check_writable

if TYPE_CHECKING:
    from mmengine.config import Config

    from volo_seg.datasets.inspection.check import Checked
    from volo_seg.datasets.inspection.findings import Finding
    from volo_seg.datasets.inspection.observation import Observation

FILES_SHOWN = 3


def build_parser() -> argparse.ArgumentParser:
    """The flags of ``volo-seg check``."""
    notes = 'Exit status: 0 if training can start, 1 if not, 2 if the command itself is wrong.'
    parser = make_parser('check', __doc__, notes=notes)
    add_config_flags(parser)
    add_data_flags(parser)
    parser.add_argument('--nproc', type=int, metavar='N', help='processes (default: as many as cores)')
    parser.add_argument('--fast', action='store_true', help='do not decode images (truncated ones stay unnoticed)')
    parser.add_argument('--all-files', action='store_true', help='list all files of a finding')
    parser.add_argument(
        '--class-weights',
        choices=('inverse', 'median', 'sqrt'),
        help='also compute class weights from the training labels, and write them for class_weight of the loss',
    )
    parser.add_argument(
        '--weights-file', type=Path, metavar='FILE', help='file for them (default class_weights_<config>.json)'
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Check; see ``volo-seg check --help``."""
    args = build_parser().parse_args(argv)
    processes = process_count(args.nproc)
    target = weights_file(args)
    load_stack()
    from volo_seg.commands.apply_flags import set_data
    from volo_seg.config.load import load_config

    config = load_config(args.config, args.cfg_options)
    set_data(config, args)
    from volo_seg.datasets.inspection.check import check_splits

    findings = config_findings(config)
    checked, broken = check_splits(config, processes=processes, fast=args.fast, progress=show_progress)
    known = {found.sentence for found in findings}
    findings += [found for found in broken if found.sentence not in known]
    findings += [found for one in checked for found in one.findings]
    for one in checked:
        print(split_line(one))
    print(f'\n{class_table(checked)}\n')
    for found in findings:
        print(finding_text(found, len(found.paths) if args.all_files else FILES_SHOWN))
    if target is not None:
        write_weights(checked, args.class_weights, target)
    return conclude(findings)


def process_count(asked: int | None) -> int:
    """The number of processes: ``asked``, or the number of available cores.

    Raises:
        UserError: It is less than 1.
    """
    if asked is not None and asked < 1:
        raise UserError(f'--nproc {asked} is not a number of processes; give 1 or more')
    return asked or (len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1)


def weights_file(args: argparse.Namespace) -> Path | None:
    """The file for class weights, None without ``--class-weights``.

    Raises:
        UserError: The file exists, is not a .json file, or is given without ``--class-weights``.
    """
    if args.class_weights is None:
        if args.weights_file is not None:
            raise UserError('--weights-file needs --class-weights inverse, median or sqrt')
        return None
    target = args.weights_file or Path(f'class_weights_{Path(args.config).stem}.json')
    if target.suffix != '.json':
        raise UserError(f'--weights-file {str(target)!r} is not a .json file; the loss reads weights from .json')
    if target.exists():
        raise UserError(f'{str(target)!r} exists; name another file by --weights-file')
    check_writable(target.parent, fix='name another file by --weights-file')
    return target


def config_findings(config: Config) -> list[Finding]:
    """The findings of the check before a run: config, folders and numbers of classes."""
    from volo_seg.config.checks import check_run
    from volo_seg.datasets.inspection.findings import Finding

    findings: dict[str, Finding] = {}
    names = [name for name in ('train', 'val') if config.get(f'{name}_dataloader') is not None]
    for splits in [*([name] for name in names), names]:
        try:
            check_run(config, splits)
        except UserError as error:  # noqa: PERF203
            findings.setdefault(str(error), Finding(splits[-1], 'config', str(error)))
    return list(findings.values())


def show_progress(observations: Iterable[Observation], total: int, name: str) -> Iterable[Observation]:
    """Yield ``observations``, with a progress bar, the rate and the remaining time on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn('{task.fields[rate]}'), TimeRemainingColumn())
    with Progress(TextColumn('{task.description:>8}'), *columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=total, rate='')
        for seen in observations:
            yield seen
            speed = progress.tasks[task].finished_speed or progress.tasks[task].speed
            progress.update(task, advance=1, rate=f'{speed:.0f} pairs/s' if speed else '')


def split_line(checked: Checked) -> str:
    """A line with the number of files of a split and its label values."""
    from volo_seg.datasets.inspection.findings import range_text
    from volo_seg.datasets.inspection.frequencies import count_classes
    from volo_seg.label_png import ranges

    split, pairing = checked.split, checked.split.pairing
    values = sorted({value for seen in checked.observations for value in seen.values})
    counts = count_classes(split, checked.observations)
    total = max(1, int(counts.pixels.sum()) + counts.ignored + counts.out_of_range)
    return (
        f'{split.name}: {len(pairing.pairs)} pairs, {len(pairing.unlabelled)} images without labels, '
        f'{len(pairing.unused)} labels without images; label values {ranges(values) or "none"}: '
        f'{counts.ignored / total:.2%} of pixels ignored, {counts.out_of_range / total:.2%} out of range; '
        f'images: {range_text(checked.observations)}'
    )


def class_table(checked: Sequence[Checked]) -> str:
    """A table of the share of pixels and the number of images of each class in each split."""
    from volo_seg.datasets.inspection.frequencies import count_classes

    if not checked:
        return 'no split to check'
    counts = [count_classes(one.split, one.observations) for one in checked]
    classes = checked[0].split.classes
    width = max((len(name) for name in classes), default=0)
    heads = ''.join(f'{one.split.name + " pixels":>14}{"images":>8}' for one in checked)
    lines = [f'class  {"name":<{width}}{heads}']
    for label, name in enumerate(classes):
        cells = ''.join(
            f'{count.shares[label]:>14.4%}{count.images[label]:>8}' if label < len(count.images) else ' ' * 22
            for count in counts
        )
        lines.append(f'{label:>5}  {name:<{width}}{cells}')
    return '\n'.join(lines)


def finding_text(found: Finding, shown: int) -> str:
    """A line for the finding, and a line for each of the first ``shown`` files that have it."""
    lines = [f'{"error" if found.fatal else "warning"} ({found.split}): {found.sentence}']
    if len(found.paths) > 1:
        lines += [f'    {path}' for path in found.paths[:shown]]
        left = len(found.paths) - shown
        lines += [f'    and {left} more ({len(found.paths)} in all; --all-files lists them)'] if left > 0 else []
    return '\n'.join(lines)


def write_weights(checked: Sequence[Checked], method: str, target: Path) -> None:
    """Write the class weights of the training split to ``target``, and print the option that uses them.

    Raises:
        UserError: There are no training labels.
    """
    import json

    from volo_seg.datasets.inspection.frequencies import class_weights, count_classes

    train = next((one for one in checked if one.split.name == 'train'), None)
    counts = count_classes(train.split, train.observations) if train else None
    if train is None or counts is None or not counts.pixels.any():
        raise UserError('--class-weights: no training label could be counted; fix the findings above first')
    weights = class_weights(counts, method)
    atomic_write(target, (json.dumps(weights) + '\n').encode())
    for name, weight in zip(train.split.classes, weights, strict=True):
        print(f'{weight:>12.4f}  {name}')
    print(f'class weights ({method} frequency): --cfg-options model.decode_head.loss_decode.class_weight={target}')


def conclude(findings: Sequence[Finding]) -> int:
    """Print whether training can start, and return the exit status."""
    fatal = sum(found.fatal and found.split != 'test' for found in findings)
    of_test = sum(found.fatal and found.split == 'test' for found in findings)
    warnings = sum(not found.fatal for found in findings)
    verdict = f'training cannot start: {_number(fatal, "error")}' if fatal else 'training can start: no errors'
    tail = f'; the test split has {_number(of_test, "error")}' if of_test else ''
    print(f'{verdict}, {_number(warnings, "warning")}{tail}')
    return 1 if fatal else 0


def _number(count: int, noun: str) -> str:
    return f'{count} {noun}' + ('' if count == 1 else 's')

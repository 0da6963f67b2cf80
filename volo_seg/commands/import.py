"""Make a data set of folders from annotations: images, label PNGs, classes.txt, split lists and import.json."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from volo_seg.commands.flags import make_parser, progress_bar
from volo_seg.errors import UserError

FORMATS = [
    'auto', 'coco', 'coco-panoptic', 'coco-stuff', 'yolo', 'voc', 'cvat', 'cvat-masks', 'labelme', 'label-studio',
    'roboflow', 'supervisely', 'hf',
]  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    """The flags of ``volo-seg import``."""
    parser = make_parser('import', __doc__)
    parser.add_argument('source', type=Path, help='folder or annotation file; it is only read')
    parser.add_argument('out', type=Path, help='new folder, or that of an interrupted import')
    parser.add_argument(
        '--images', default='', metavar='FOLDER', help='where the images are, if not beside the annotations'
    )
    parser.add_argument('--format', choices=FORMATS, default='auto', metavar='FORMAT', help=', '.join(FORMATS))
    parser.add_argument(
        '--classes', nargs='+', default=[], metavar='NAME', help='classes to keep, in this order (default: all)'
    )
    parser.add_argument(
        '--background',
        default='',
        metavar='NAME|ignore',
        help="class of pixels without annotation, or ignore (default: the format's own; for shapes, background)",
    )
    parser.add_argument(
        '--val', type=float, metavar='SHARE', help='share for validation (default 0.2 or the own split)'
    )
    parser.add_argument('--empty', choices=('background', 'skip'), default='', help='images without annotation')
    parser.add_argument('--boxes', choices=('refuse', 'ignore'), default='refuse', help='bounding boxes')
    parser.add_argument('--crowd', choices=('keep', 'ignore'), default='keep', help='crowds of COCO (default keep)')
    how = parser.add_mutually_exclusive_group()
    how.add_argument('--copy', action='store_true', help='copy images')
    how.add_argument('--link', dest='copy', action='store_false', help='link images (default)')
    parser.add_argument('--nproc', type=int, default=1, metavar='N', help='processes (default 1)')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Import; see ``volo-seg import --help``."""
    args = build_parser().parse_args(argv)
    if args.nproc < 1:
        raise UserError(f'--nproc {args.nproc} is not a number of processes; give 1 or more')
    from volo_seg.datasets.importers.write import Options, import_annotations
    from volo_seg.errors import exit_on_signal

    options = Options(
        form=args.format,
        classes=tuple(args.classes),
        background=args.background,
        boxes=args.boxes,
        crowd=args.crowd,
        empty=args.empty,
        val=args.val,
        copy=args.copy,
        images=args.images,
    )
    with exit_on_signal(f'interrupted; the same command goes on in {str(args.out)!r}'):
        record = import_annotations(
            args.source,
            args.out,
            options,
            processes=min(args.nproc, os.cpu_count() or 1),
            progress=lambda items, total: progress_bar(items, 'images', total),
        )
    print(summary(record, args.out))
    return 0


def summary(record: dict[str, Any], out: Path) -> str:
    """What an import found, as text."""
    counts = ', '.join(f'{count} {split}' for split, count in sorted(record['images'].items()))
    total = max(1, sum(each['pixels'] for each in record['classes'].values()) + record['ignored_pixels'])
    lines = [f'format {record["format"]}: {record["recognised_by"]}', f'images: {counts}', '']
    lines.append(f'{"label":>5}  {"shapes":>8}  {"pixels":>8}  class')
    lines += [
        f'{each["label"]:>5}  {each["shapes"]:>8}  {each["pixels"] / total:>8.2%}  {name}'
        for name, each in record['classes'].items()
    ]
    lines.append(f'{"255":>5}  {"":>8}  {record["ignored_pixels"] / total:>8.2%}  (ignored)')
    lines += ['', *(f'not imported: {count} {reason}' for reason, count in record['ignored'].items())]
    lines += [f'class {name!r} became {target}' for name, target in record['other_classes'].items()]
    train = f'volo-seg train volo-d1_upernet_1xb4-20k_folders-512x512 --data-root {out}'
    return '\n'.join([*lines, f'{out}: train with {train}'])

"""Write Cityscapes' labelTrainIds images and split lists; cityscapesScripts renders the polygons."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from volo_seg.commands.flags import make_parser
from volo_seg.errors import UserError
from volo_seg.io import atomic_path, atomic_write, check_regular, check_writable, find_files

SUFFIX = '_polygons.json'


def build_parser() -> argparse.ArgumentParser:
    """The flags of MMSegmentation's tools/dataset_converters/cityscapes.py."""
    parser = make_parser('cityscapes', __doc__)
    parser.add_argument('cityscapes_path', help='folder that holds gtFine/ and leftImg8bit/')
    parser.add_argument('--gt-dir', default='gtFine', help='folder of the annotations below it (default gtFine)')
    parser.add_argument('-o', '--out-dir', help='folder for train.txt, val.txt, test.txt (default: the data folder)')
    parser.add_argument('--nproc', default=1, type=int, help='processes (default 1)')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Convert; see ``volo-seg cityscapes --help``."""
    args = build_parser().parse_args(argv)
    root = Path(args.cityscapes_path)
    annotations = root / args.gt_dir
    if not annotations.is_dir():
        raise UserError(f'{str(annotations)!r} does not exist; give the folder that holds {args.gt_dir}/')
    polygons = find_files(annotations, suffixes=(SUFFIX,), any_case=False)
    if not polygons:
        raise UserError(f'{str(annotations)!r} holds no *{SUFFIX}; unpack gtFine_trainvaltest.zip there')
    if args.nproc < 1:
        raise UserError(f'--nproc {args.nproc} is not a number of processes; give 1 or more')
    out_dir = Path(args.out_dir or root)
    for folder in (out_dir, annotations):
        check_writable(folder)
    convert(polygons, args.nproc)
    for split in ('train', 'val', 'test'):
        write_split(annotations / split, out_dir / f'{split}.txt')
    return 0


def convert(polygons: Sequence[Path], nproc: int) -> None:
    """Render every file of ``polygons``, in ``nproc`` processes, with a progress bar."""
    from rich.progress import track

    from volo_seg.datasets.inspection.processes import map_in_processes

    renderer()  # a missing package is reported before processes start
    for _ in track(map_in_processes(render, polygons, processes=nproc), 'labelTrainIds', total=len(polygons)):
        pass


def renderer():  # type: ignore[no-untyped-def]
    """The function of cityscapesScripts that draws polygons as a label image."""
    try:
        from cityscapesscripts.preparation.json2labelImg import json2labelImg
    except ImportError as error:
        raise UserError('cityscapesScripts is not installed: pip install "volo-seg[cityscapes]"') from error
    return json2labelImg


def render(polygons: Path) -> None:
    """Write ``*_labelTrainIds.png`` beside ``*_polygons.json``, atomically."""
    target = polygons.with_name(polygons.name.removesuffix(SUFFIX) + '_labelTrainIds.png')
    with atomic_path(target, suffix='.png') as part:
        try:
            check_regular(polygons)
            renderer()(str(polygons), str(part), 'trainIds')
        except (SystemExit, ValueError, KeyError, TypeError, OSError) as error:
            # cityscapesScripts calls sys.exit for a file that it cannot read
            raise UserError(f'cannot render {str(polygons)!r}: {error or "not a Cityscapes annotation"}') from error


def write_split(folder: Path, target: Path) -> None:
    """Write the scenes of ``folder`` to ``target``, one ``city/name`` per line."""
    if not folder.is_dir():
        return
    tail = f'_gtFine{SUFFIX}'
    paths = find_files(folder, suffixes=(SUFFIX,), any_case=False)
    names = sorted(str(path.relative_to(folder)).replace(tail, '').replace(SUFFIX, '') for path in paths)
    atomic_write(target, ''.join(f'{name}\n' for name in names).encode())

"""Segment images: a label image and a colour overlay of each."""

from __future__ import annotations

import argparse
import glob
import sys
from collections.abc import Sequence
from pathlib import Path

from volo_seg.commands.flags import add_config_flags
from volo_seg.errors import UserError


def build_parser() -> argparse.ArgumentParser:
    """The flags of ``volo-seg infer``."""
    parser = argparse.ArgumentParser(prog='volo-seg infer', description=__doc__)
    add_config_flags(parser)
    parser.add_argument('checkpoint', help='trained weights (.pth or .safetensors)')
    parser.add_argument('inputs', nargs='+', metavar='INPUT', help='image files, folders (searched through), globs')
    parser.add_argument('--out-dir', required=True, help='labels/ and overlays/ are written below this folder')
    parser.add_argument('--device', default='auto', help='auto (default), cpu, cuda, cuda:N')
    parser.add_argument('--opacity', type=float, default=0.5, help='of the colours in the overlay (default 0.5)')
    parser.add_argument('--overwrite', action='store_true', help='replace results that are already there')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Segment; see ``volo-seg infer --help``."""
    args = build_parser().parse_args(argv)
    if not 0.0 <= args.opacity <= 1.0:
        raise UserError(f'--opacity {args.opacity} is not in [0, 1]')
    tasks = plan(args.inputs, Path(args.out_dir), args.overwrite)
    from rich.progress import track

    from volo_seg.inference import Predictor
    from volo_seg.inference.images import write_image

    predictor = Predictor(args.config, args.checkpoint, device=args.device, cfg_options=args.cfg_options or ())
    failures = []
    for source, name in track(tasks, 'segmenting'):
        try:
            result = predictor(source)
        except UserError as error:
            failures.append(str(error))
            continue
        write_image(Path(args.out_dir, 'overlays', f'{name}.jpg'), result.overlay(opacity=args.opacity))
        write_image(Path(args.out_dir, 'labels', f'{name}.png'), result.labels)
    print(f'{len(tasks) - len(failures)} of {len(tasks)} images segmented into {args.out_dir}')
    for failure in failures:
        print(f'error: {failure}', file=sys.stderr)
    return 1 if failures else 0


def plan(inputs: Sequence[str], out_dir: Path, overwrite: bool) -> list[tuple[Path, Path]]:
    """(image, result name without suffix) for each input; names and subfolders are kept, no two are equal.

    Raises:
        UserError: Nothing to segment, or results that would be overwritten.
    """
    taken: set[Path] = set()
    tasks = []
    for text in inputs:
        for source, name in find_images(text):
            name = unused(name, taken)
            taken.add(name)
            tasks.append((source, name))
    there = [out_dir / 'labels' / f'{name}.png' for _, name in tasks]
    there = [path for path in there if path.exists()]
    if there and not overwrite:
        raise UserError(f'{str(there[0])!r} ({len(there)} such) is there already; add --overwrite or another --out-dir')
    return tasks


def find_images(text: str) -> list[tuple[Path, Path]]:
    """(image, name) for the file, folder or glob ``text``; a folder's names are relative to it."""
    from volo_seg.inference.images import SUFFIXES

    path = Path(text)
    if path.is_dir():
        found = sorted(p for p in path.rglob('*') if p.suffix.lower() in SUFFIXES and p.is_file())
        names = [p.relative_to(path) for p in found]
    else:
        found = [path] if path.is_file() else sorted(Path(p) for p in glob.glob(text, recursive=True))
        found = [p for p in found if p.is_file()]
        names = [Path(p.name) for p in found]
    if not found:
        raise UserError(f'input {text!r} is no image file, no folder with images, and no glob that matches one')
    return [(source, name.with_suffix('')) for source, name in zip(found, names, strict=True)]


def unused(name: Path, taken: set[Path]) -> Path:
    """``name``, or with ``_2``, ``_3``, … behind it the first that is not in ``taken``."""
    candidate, count = name, 1
    while candidate in taken:
        count += 1
        candidate = name.with_name(f'{name.name}_{count}')
    return candidate

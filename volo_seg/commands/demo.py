"""Generate Toyscapes, train VOLO-nano + UPerNet on it, evaluate, predict, report, and say where everything is."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from volo_seg.errors import UserError

CONFIG = 'volo-nano_upernet_1xb4-600_toyscapes-256x256'


def build_parser() -> argparse.ArgumentParser:
    """The flags of ``volo-seg demo``."""
    parser = argparse.ArgumentParser(prog='volo-seg demo', description=__doc__)
    parser.add_argument('--data-root', default='data/toyscapes', help='where the data goes (default data/toyscapes)')
    parser.add_argument('--work-dir', default='work_dirs/demo', help='where results go (default work_dirs/demo)')
    parser.add_argument('--train', type=int, default=240, help='training scenes (default 240)')
    parser.add_argument('--val', type=int, default=40, help='held-out scenes (default 40)')
    parser.add_argument('--cfg-options', nargs='+', metavar='KEY=VALUE', default=[], help='override the config')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the steps one after another; see ``volo-seg demo --help``."""
    args = build_parser().parse_args(argv)
    work = Path(args.work_dir)
    # three validations on the way, so that the report shows how it learns
    options = ['--cfg-options', 'train_cfg.val_interval=200', *args.cfg_options]
    run = ['--work-dir', args.work_dir, '--data-root', args.data_root]
    images = str(Path(args.data_root, 'leftImg8bit', 'val'))
    start = time.perf_counter()
    step('1/7 data', 'toyscapes', args.data_root, '--train', str(args.train), '--val', str(args.val), '--nproc', '2')
    step('2/7 labels', 'cityscapes', args.data_root, '--nproc', '2')
    step('3/7 training', 'train', CONFIG, '--seed', '0', *run, *options)
    checkpoint = Path((work / 'last_checkpoint').read_text().strip())
    results = work / 'predictions'
    step('4/7 evaluation', 'test', CONFIG, str(checkpoint), *run, *options)
    step('5/7 prediction', 'infer', CONFIG, str(checkpoint), images, '--out-dir', str(results), '--overwrite', *options)
    print('== 6/7 picture', flush=True)
    picture = draw_sheet(Path(args.data_root), results, work / 'demo.png')
    report = work / 'report.html'
    step('7/7 report', 'report', args.work_dir, '--out', str(report))
    print(f'\ndone in {(time.perf_counter() - start) / 60:.1f} minutes')
    for name, path in (
        ('report', report),
        ('picture', picture),
        ('overlays', results / 'overlays'),
        ('label images', results / 'labels'),
        ('metrics', newest(work, 'metrics.json')),
        ('checkpoint', checkpoint),
    ):
        print(f'  {name:<14}{path}')
    return 0


def step(title: str, *words: str) -> None:
    """Run one command in a process of its own, under a title.

    Raises:
        UserError: It failed; what it said stands above.
    """
    print(f'== {title}: volo-seg {" ".join(words)}', flush=True)
    status = subprocess.call([sys.executable, '-m', 'volo_seg', *words])
    if status in (130, -2):
        raise KeyboardInterrupt
    if status:
        raise UserError(f'the step {title!r} ended with status {status}; its message stands above')


def newest(folder: Path, name: str) -> Path:
    """The newest file called ``name`` below ``folder``."""
    return max(folder.rglob(name), key=lambda path: path.stat().st_mtime)


def draw_sheet(data_root: Path, results: Path, target: Path, *, count: int = 4) -> Path:
    """Write ``count`` held-out scenes as rows of image, prediction, truth; return ``target``."""
    import cv2
    import numpy as np

    from volo_seg.inference.images import read_image, write_image

    rows = []
    for overlay in sorted((results / 'overlays').rglob('*.jpg'))[:count]:
        name = overlay.relative_to(results / 'overlays').with_suffix('')
        image = read_image(data_root / 'leftImg8bit' / 'val' / name.with_suffix('.png'))
        stem = name.name.replace('_leftImg8bit', '_gtFine_color.png')
        truth = read_image(data_root / 'gtFine' / 'val' / name.with_name(stem))
        mixed = np.rint(0.5 * image.astype(np.float32) + 0.5 * truth).astype(np.uint8)
        rows.append(np.hstack([image, read_image(overlay), mixed]))
    sheet = np.vstack(rows)
    band = np.full((28, sheet.shape[1], 3), 255, np.uint8)
    for index, word in enumerate(('image', 'prediction', 'truth')):
        place = (index * sheet.shape[1] // 3 + 8, 20)
        cv2.putText(band, word, place, cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 1, cv2.LINE_AA)
    write_image(target, np.vstack([band, sheet]))
    return target

"""Predict with the model that ships, then generate Toyscapes, train VOLO-nano on it, evaluate, predict and report."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from volo_seg.commands.flags import make_parser
from volo_seg.errors import UserError

CONFIG = 'volo-nano_upernet_1xb4-1200_toyscapes-256x256'
SCENE = '2026'
"""Seed of the scene that the shipped model segments; it was trained on others."""


def build_parser() -> argparse.ArgumentParser:
    """The flags of ``volo-seg demo``."""
    parser = make_parser('demo', __doc__)
    parser.add_argument('--data-root', default='data/toyscapes', help='where the data goes (default data/toyscapes)')
    parser.add_argument('--work-dir', default='work_dirs/demo', help='where results go (default work_dirs/demo)')
    parser.add_argument('--train', type=int, default=600, help='training scenes (default 600)')
    parser.add_argument('--val', type=int, default=40, help='held-out scenes (default 40)')
    parser.add_argument('--cfg-options', nargs='+', metavar='KEY=VALUE', default=[], help='override the config')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the steps one after another; see ``volo-seg demo --help``."""
    args = build_parser().parse_args(argv)
    work = Path(args.work_dir)
    # three validations, so that the report shows how it learns
    options = ['--cfg-options', 'train_cfg.val_interval=400', *args.cfg_options]
    run = ['--work-dir', args.work_dir, '--data-root', args.data_root]
    images = str(Path(args.data_root, 'leftImg8bit', 'val'))
    start = time.perf_counter()
    counts = ('--train', str(args.train), '--val', str(args.val))
    scene, shipped = Path(args.work_dir, 'scene'), work / 'shipped'
    step('1/7 a scene', 'toyscapes', str(scene), '--train', '0', '--val', '1', '--seed', SCENE)
    photo = next(scene.rglob('*_leftImg8bit.png'))
    step('1/7 the shipped model', 'infer', str(photo), '--out-dir', str(shipped), '--overwrite')
    # so few images and iterations suffice for the plain style only
    step('2/7 data', 'toyscapes', args.data_root, *counts, '--style', 'plain', '--nproc', '2')
    step('3/7 training', 'train', CONFIG, '--seed', '0', *run, *options)
    checkpoint = Path((work / 'last_checkpoint').read_text().strip())
    results = work / 'predictions'
    step('4/7 evaluation', 'test', CONFIG, str(checkpoint), *run, *options)
    step('5/7 prediction', 'infer', CONFIG, str(checkpoint), images, '--out-dir', str(results), '--overwrite', *options)
    print('== 6/7 picture', flush=True)
    picture = draw_scenes(Path(args.data_root), results, work / 'demo.png')
    report = work / 'report.html'
    step('7/7 report', 'report', args.work_dir, '--out', str(report))
    print(f'\ndone in {(time.perf_counter() - start) / 60:.1f} minutes')
    for name, path in (
        ('report', report),
        ('shipped model', newest(shipped, '*.jpg')),
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


def draw_scenes(data_root: Path, results: Path, target: Path, *, count: int = 4) -> Path:
    """Write ``count`` held-out scenes as rows of image, prediction, truth; return ``target``."""
    from volo_seg.datasets.cityscapes_labels import train_names, train_palette
    from volo_seg.imageio import read_image
    from volo_seg.io import atomic_write
    from volo_seg.label_png import read_labels
    from volo_seg.visualization import draw_sheet, make_row

    rows = []
    for path in sorted((results / 'labels').rglob('*.png'))[:count]:
        name = path.relative_to(results / 'labels').parent / path.stem.removesuffix('_leftImg8bit')
        image = read_image(data_root / 'leftImg8bit' / 'val' / f'{name}_leftImg8bit.png')
        labels = (path, data_root / 'gtFine' / 'val' / f'{name}_gtFine_labelTrainIds.png')
        prediction, truth = (read_labels(file) for file in labels)
        rows.append(make_row(name.name, image=image.transpose(2, 0, 1), labels=(prediction, truth), size=(512, 512)))
    palette = train_palette().tolist()
    atomic_write(target, draw_sheet(rows, title='', classes=train_names(), palette=palette, format='PNG'))
    return target

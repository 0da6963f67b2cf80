"""A folder of images to label images and overlays: MMSegInferencer against volo-seg infer, whole processes.

    python benchmarks/inference_folder.py --rounds 5

Both run the same network (volo-nano, Toyscapes config) with the same weights over the same images of mixed sizes, on
one CPU thread for the network, and write a label PNG and an overlay for each image; MMSegInferencer without class
names drawn into the overlay, because ours draws none. The ``1 -> n`` rows are the difference to a folder with one
image, so they leave out imports and loading. Peak is the most memory that a process held (resident set).
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import torch
from _measure import Report, Row, parser, quartiles, settings
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

import volo_seg.models  # noqa: F401
from volo_seg.config.load import load_config
from volo_seg.datasets.toyscapes.scene import generate_scene

CONFIG = 'volo-nano_upernet_1xb4-1200_toyscapes-256x256'
SIZES = ((256, 512), (360, 480), (480, 640), (512, 512), (720, 1280))
THEIRS = """
import sys
sys.modules['timm'] = None  # mmseg imports it if it is there, which takes seconds, and it is not used here
from mmseg.apis import MMSegInferencer
import volo_seg.models
config, checkpoint, images, out = sys.argv[1:]
inferencer = MMSegInferencer(config, weights=checkpoint, scope='volo_seg', device='cpu')
inferencer(images, out_dir=out, with_labels=False)
"""
OURS = 'import sys; from volo_seg.commands import run; sys.exit(run("infer", sys.argv[1:]))'


class Cost(NamedTuple):
    """Of one process: seconds of wall time and of CPU time, and bytes."""

    wall: float
    cpu: float
    peak: int


def make_images(folder: Path, count: int) -> Path:
    """``count`` Toyscapes images, their sizes in turn those of SIZES."""
    folder.mkdir(parents=True)
    for index in range(count):
        height, width = SIZES[index % len(SIZES)]
        image = generate_scene(0, index, style='plain').image[..., ::-1]
        cv2.imwrite(str(folder / f'{index:03d}.png'), cv2.resize(image, (width, height)))
    return folder


def make_checkpoint(path: Path) -> Path:
    """Weights of a network that was not trained."""
    init_default_scope('mmseg')
    torch.manual_seed(0)
    torch.save({'state_dict': MODELS.build(load_config(CONFIG).model).state_dict()}, path)
    return path


def cost(words: Sequence[str]) -> Cost:
    """Run one process to its end."""
    environment = dict(os.environ, OMP_NUM_THREADS='1', MKL_NUM_THREADS='1')
    with tempfile.TemporaryFile('w+') as said:
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, *words], stdout=said, stderr=said, env=environment)
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise SystemExit(f'error: {words[-1]} was not written:\n{said.read()[-2000:]}')
    return Cost(wall, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)


def rows(case: str, costs: dict[str, list[Cost]], clock: str) -> list[Row]:
    """One comparison as rows of the table; the first peer is the baseline."""
    base = next(iter(costs))
    peaks = {name: max(cost.peak for cost in all_costs) for name, all_costs in costs.items()}
    table = []
    for name, all_costs in costs.items():
        seconds = [getattr(cost, clock) for cost in all_costs]
        ratios = [getattr(old, clock) / new for old, new in zip(costs[base], seconds, strict=True)]
        share = peaks[name] / peaks[base]
        table.append(Row(case, name, clock, quartiles(seconds), quartiles(ratios), peaks[name], share, None))
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    flags = parser(__doc__)
    flags.add_argument('--images', type=int, default=50, help='how many images (default 50)')
    flags.add_argument('--checkpoint', type=Path, help='weights (default: of a network that was not trained)')
    args = flags.parse_args(argv)
    report = Report('Folder of images to files', settings(args))
    count = 5 if report.settings.quick else args.images
    with tempfile.TemporaryDirectory() as work:
        place = Path(work)
        checkpoint = args.checkpoint or make_checkpoint(place / 'nano.pth')
        folders = {n: make_images(place / f'images{n}', n) for n in (1, count)}
        costs: dict[int, dict[str, list[Cost]]] = {n: {'MMSegInferencer': [], 'volo-seg infer': []} for n in folders}
        for turn in range(report.settings.rounds):
            for n, images in folders.items():
                out = str(place / f'out{turn}_{n}')
                theirs = lambda out=out, images=images: cost(  # noqa: E731
                    ['-c', THEIRS, CONFIG, str(checkpoint), str(images), out + 't']
                )
                ours = lambda out=out, images=images: cost(  # noqa: E731
                    ['-c', OURS, CONFIG, str(checkpoint), str(images), '--out-dir', out + 'o', '--device', 'cpu']
                )
                peers = [('MMSegInferencer', theirs), ('volo-seg infer', ours)]
                for name, peer in peers[:: -1 if turn % 2 else 1]:
                    costs[n][name].append(peer())
        written = {path.suffix for path in place.glob('out*o/**/*') if path.is_file()}
        assert written == {'.png', '.jpg'}, written
    for clock in ('cpu', 'wall'):
        report.rows += rows(f'{count} images, {clock} time', costs[count], clock)
        marginal = {
            name: [
                Cost(many.wall - one.wall, many.cpu - one.cpu, many.peak)
                for many, one in zip(costs[count][name], costs[1][name], strict=True)
            ]
            for name in costs[count]
        }
        report.rows += rows(f'1 -> {count} images, {clock} time', marginal, clock)
    report.finish()


if __name__ == '__main__':
    main()

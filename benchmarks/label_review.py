"""Does ``volo-seg review`` find damaged masks: 20 masks of a validation split are damaged, and counted in the ranking.

    python benchmarks/label_review.py checkpoint.pth config.py --data data/camvid --classes 11 --out damaged [--seed 0]

The folder ``--data`` is <data>/{images,annotations}/val. Ten masks get another class in a connected region of at least
1 % of the image, ten are moved by 8 to 25 pixels. ``--out`` gets links to the images, the masks and the review.
"""

import argparse
import csv
import shutil
from pathlib import Path

import cv2
import numpy as np

from volo_seg.commands import run
from volo_seg.label_png import encode_labels, read_labels


def swap(mask: np.ndarray, generator: np.random.Generator, classes: int) -> np.ndarray:
    """``mask`` with another class in one region, in a box of at most half the image's sides."""
    (height, width), least = mask.shape, 0.01 * mask.size
    while True:
        label = int(generator.integers(classes))
        _, parts, boxes, _ = cv2.connectedComponentsWithStats((mask == label).astype(np.uint8), connectivity=4)
        large = [number for number in range(1, len(boxes)) if boxes[number, 4] >= least]
        if not large:
            continue
        number = int(generator.choice(large))
        x, y, w, h = (int(value) for value in boxes[number, :4])
        left, top = (
            start + int(generator.integers(max(1, n - most + 1)))
            for start, n, most in ((x, w, width // 2), (y, h, height // 2))
        )
        region = np.zeros_like(mask, bool)
        region[top : top + height // 2, left : left + width // 2] = True
        region &= parts == number
        if region.sum() >= least:
            other = (label + int(generator.integers(1, classes))) % classes
            return np.where(region, other, mask).astype(np.uint8)


def shift(mask: np.ndarray, generator: np.random.Generator, classes: int) -> np.ndarray:
    """``mask`` moved in a random direction; uncovered pixels get the label ``classes``, which is ignored."""
    angle, distance = generator.uniform(0, 2 * np.pi), generator.integers(8, 26)
    moved = np.array([[1, 0, round(distance * np.cos(angle))], [0, 1, round(distance * np.sin(angle))]], np.float32)
    return cv2.warpAffine(mask, moved, mask.shape[::-1], flags=cv2.INTER_NEAREST, borderValue=classes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint')
    parser.add_argument('config')
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--classes', type=int, required=True, help='number of classes; this label is ignored')
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    generator, folder = np.random.default_rng(args.seed), args.out / 'annotations' / 'val'
    shutil.copytree(args.data / 'annotations' / 'val', folder)
    (args.out / 'images').symlink_to((args.data / 'images').absolute())
    damaged = generator.choice(sorted(folder.glob('*.png')), 20, replace=False)
    for number, path in enumerate(damaged):
        path.write_bytes(encode_labels((shift if number % 2 else swap)(read_labels(path), generator, args.classes)))
    words = [args.checkpoint, args.config, '--data-root', str(args.out), '--out', str(args.out / 'review')]
    if run('review', words):
        raise SystemExit(1)
    with (args.out / 'review' / 'review.csv').open(encoding='utf-8', newline='') as file:
        ranks = {Path(row['image']).stem: int(row['rank']) for row in csv.DictReader(file)}
    found = sorted(ranks[path.stem] for path in damaged)
    print(f'{sum(rank <= 40 for rank in found)} of 20 among the first 40 of {len(ranks)}; ranks: {found}')


if __name__ == '__main__':
    main()

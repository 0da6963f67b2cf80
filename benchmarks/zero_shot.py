"""Score a model of the 19 Cityscapes classes on CamVid, on which it was not trained.

    python benchmarks/zero_shot.py CAMVID [--model volo-nano_toyscapes] [--split val]

CAMVID has images/SPLIT and annotations/SPLIT (0 Sky ... 10 Bicyclist, 11 ignored). Probabilities of the classes that
CamVid merges are added before the largest one is taken.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np

from volo_seg.inference import load_predictor
from volo_seg.progress import Progress

MERGED = {
    'Sky': ('sky',),
    'Building': ('building', 'wall'),
    'Pole': ('pole',),
    'Road': ('road',),
    'Pavement': ('sidewalk',),
    'Tree': ('vegetation', 'terrain'),
    'SignSymbol': ('traffic light', 'traffic sign'),
    'Fence': ('fence',),
    'Car': ('car', 'truck', 'bus', 'train'),
    'Pedestrian': ('person',),
    'Bicyclist': ('rider', 'motorcycle', 'bicycle'),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('camvid', type=Path)
    parser.add_argument('--model', default='volo-nano_toyscapes')
    parser.add_argument('--split', default='val')
    args = parser.parse_args()
    predictor = load_predictor(args.model)
    members = [[predictor.classes.index(name) for name in names] for names in MERGED.values()]
    images = sorted((args.camvid / 'images' / args.split).iterdir())
    counts = np.zeros((len(MERGED), len(MERGED)), dtype=np.int64)
    with Progress(len(images), unit='images') as progress:
        for image, result in zip(images, predictor.stream(images, probabilities=True), strict=True):
            truth = cv2.imread(
                str(args.camvid / 'annotations' / args.split / f'{image.stem}.png'), cv2.IMREAD_UNCHANGED
            )
            merged = np.stack([result.probabilities[group].astype(np.float32).sum(0) for group in members])
            valid = truth < len(MERGED)
            pairs = truth[valid].astype(np.int64) * len(MERGED) + merged.argmax(0)[valid]
            counts += np.bincount(pairs, minlength=counts.size).reshape(counts.shape)
            progress.advance(1)
    hits = np.diag(counts)
    ious = 100 * hits / (counts.sum(0) + counts.sum(1) - hits)
    for name, iou in zip(MERGED, ious, strict=True):
        print(f'{name:<12}{iou:6.1f}')
    print(f'{"mIoU":<12}{ious.mean():6.1f}\n{"accuracy":<12}{100 * hits.sum() / counts.sum():6.1f}')


if __name__ == '__main__':
    main()

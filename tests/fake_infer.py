"""``volo-seg infer`` with a network that takes no time to load: the brightness of a pixel is its class.

    python tests/fake_infer.py CHECKPOINT.pth INPUT ... --out-dir OUT

``FAKE_DELAY`` of the environment: seconds an image.
"""

import os
import sys
import time

import numpy as np

from volo_seg.commands import infer, run
from volo_seg.inference.base import BasePredictor, Prediction

CLASSES = ('dark', 'grey', 'bright')
PALETTE = [(0, 0, 0), (90, 100, 110), (250, 240, 230)]


class Brightness(BasePredictor):
    """Three classes; never more than one image at a time."""

    def __init__(self):
        super().__init__(CLASSES, PALETTE)
        self.seen = 0

    def _segment(self, batch, *, confidence, probabilities):
        time.sleep(float(os.environ.get('FAKE_DELAY', '0')))
        self.seen += len(batch)
        labels = [np.minimum(image.mean(axis=2) // 86, 2).astype(np.uint8) for image in batch]
        sure = [np.stack([plane == index for index in range(3)]).astype(np.float32) for plane in labels]
        return [
            Prediction(
                plane,
                np.ones(plane.shape, np.float32) if confidence else None,
                scores if probabilities else None,
            )
            for plane, scores in zip(labels, sure, strict=True)
        ]


if __name__ == '__main__':
    infer.load_model = lambda *args: Brightness()
    sys.exit(run('infer', sys.argv[1:]))

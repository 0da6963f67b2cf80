"""Random label maps and an ``ExactIoUMetric`` that has counted them, for tests of evaluation and reports."""

import numpy as np
import torch

from volo_seg.evaluation import ExactIoUMetric

NAMES = ('road', 'sidewalk', 'building', 'wall', 'fence')


def maps(seed, *, classes=5, size=(13, 17), ignore=255, right=0.6, present=None):
    """A ground truth with ignored pixels and a prediction that is partly right."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, present or classes, size)
    prediction = np.where(rng.random(size) < right, truth, rng.integers(0, present or classes, size))
    return np.where(rng.random(size) < 0.1, ignore, truth), prediction


def sample(seed, *, path=None, scores=False, **options):
    """What the model and the loader hand to the metric for one image."""
    truth, prediction = (torch.from_numpy(labels)[None] for labels in maps(seed, **options))
    found = {
        'img_path': path or f'images/{seed}.jpg',
        'gt_sem_seg': {'data': truth},
        'pred_sem_seg': {'data': prediction},
    }
    if scores:
        noise = torch.randn(5, *truth.shape[1:], generator=torch.Generator().manual_seed(seed))
        found['seg_logits'] = {'data': noise.scatter(0, prediction, 4.0)}
    return found


def metric(names=NAMES, **options):
    made = ExactIoUMetric(**options)
    made.dataset_meta = {'classes': names}
    return made


def evaluated(samples, **options):
    made = metric(**options)
    made.process({}, samples)
    return made.evaluate(len(samples))

"""Wrong labels are found: swapped classes and shifted masks among the images in which a model errs everywhere a bit."""

import numpy as np

from volo_seg.evaluation.label_review import rank, review_image

CLASSES = 5


def scene(generator, size=(96, 128)):
    """Labels of boxes and thin poles, and the probabilities of a model: blurred edges, poles never seen."""
    labels = np.zeros(size, np.uint8)
    for _ in range(6):
        top, left = generator.integers(0, size[0] - 30), generator.integers(0, size[1] - 40)
        height, width = generator.integers(15, 30), generator.integers(20, 40)
        labels[top : top + height, left : left + width] = generator.integers(0, CLASSES - 1)
    seen = labels.copy()
    for _ in range(5):  # poles: class 4
        left = generator.integers(0, size[1] - 5)
        labels[:, left : left + 4] = CLASSES - 1
    seen = np.roll(seen, generator.integers(-1, 2, 2), (0, 1))
    scores = generator.normal(0, 0.7, (CLASSES, *size)) + 3.0 * (seen == np.arange(CLASSES)[:, None, None])
    exps = np.exp(scores)
    return labels, (exps / exps.sum(0)).astype(np.float32)


def test_damaged_masks_are_among_the_first():
    generator = np.random.default_rng(0)
    scenes = [scene(generator) for _ in range(60)]
    damaged = {}
    for index in generator.choice(60, 12, replace=False):
        labels = scenes[index][0]
        if len(damaged) % 2:
            damaged[int(index)] = 'shift'
            labels[:] = np.roll(labels, (6, -9), (0, 1))
        else:
            damaged[int(index)] = 'region'
            box = labels[20:50, 30:70]
            box[:] = (box + 1) % (CLASSES - 1)
    suspects = rank([review_image(labels, probabilities) for labels, probabilities in scenes])
    first = [one.index for one in suspects[:24]]
    assert sum(index in first for index in damaged) >= 10
    assert sum(one.index in damaged for one in suspects[:8]) >= 6
    shifts = [one.shift for one in suspects if damaged.get(one.index) == 'shift' and one.shift]
    assert len(shifts) >= 4
    assert all(abs(x - 9) <= 2 and abs(y + 6) <= 2 for x, y in shifts)
    region = next(one for one in suspects if damaged.get(one.index) == 'region' and one.regions).regions[0]
    left, top, right, bottom = region.box
    assert left >= 27 and right <= 73 and top >= 17 and bottom <= 53
    assert region.label == (region.predicted + 1) % (CLASSES - 1)


def test_ignored_pixels_and_what_is_always_confused_count_nothing():
    generator = np.random.default_rng(1)
    labels, probabilities = scene(generator)
    found = review_image(np.full_like(labels, 255), probabilities)
    assert not found.regions and found.gain == 0 and not found.labelled.any()
    half = labels.copy()
    half[:, :64] = CLASSES - 2 - probabilities[: CLASSES - 1].argmax(0)[:, :64]
    same = [review_image(half, probabilities) for _ in range(8)]
    alone = rank([same[0], *(review_image(*scene(generator)) for _ in range(7))])
    score = next(one.score for one in alone if one.index == 0)
    assert rank(same)[0].regions[0].score < score / 4

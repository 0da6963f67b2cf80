"""Losses against their papers' formulas in plain loops, gradients, ignored pixels, and MMSegmentation's losses."""

import math

import numpy as np
import pytest
import torch
from mmseg.models.losses import DiceLoss, FocalLoss, LovaszLoss
from mmseg.models.losses.lovasz_loss import lovasz_softmax

from volo_seg.errors import UserError
from volo_seg.models import (
    DistanceBoundaryLoss,
    LovaszSoftmaxLoss,
    SoftDiceLoss,
    SoftmaxFocalLoss,
    WeightedCrossEntropyLoss,
)

KINDS = (SoftmaxFocalLoss, SoftDiceLoss, LovaszSoftmaxLoss, DistanceBoundaryLoss)
OURS = (*KINDS, WeightedCrossEntropyLoss)
CLASSES = 4
each = pytest.mark.parametrize('kind', KINDS, ids=lambda kind: kind.__name__)
each_of_ours = pytest.mark.parametrize('kind', OURS, ids=lambda kind: kind.__name__)


def example(*, size=(2, 5, 6), classes=CLASSES, dtype=torch.float64):
    """Logits, and labels of which a quarter is ignored and class 3 does not occur."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, classes - 1, size, generator=generator)
    labels[torch.rand(size, generator=generator) < 0.25] = 255
    logits = torch.randn(size[0], classes, *size[1:], generator=generator, dtype=dtype)
    return logits.requires_grad_(), labels


def counted(logits, labels):
    """(probabilities, label) of each labelled pixel."""
    rows = logits.detach().softmax(1).permute(0, 2, 3, 1).reshape(-1, logits.shape[1]).tolist()
    return [(row, label) for row, label in zip(rows, labels.flatten().tolist(), strict=True) if label != 255]


def focal(logits, labels, weights):
    pixels = counted(logits, labels)
    return sum(-weights[y] * (1 - p[y]) ** 2 * math.log(p[y]) for p, y in pixels) / len(pixels)


def dice(logits, labels, weights):
    pixels, total, weight = counted(logits, labels), 0.0, 0.0
    for c in {y for _, y in pixels}:
        both = sum(p[c] ** 2 for p, _ in pixels) + sum(y == c for _, y in pixels)
        total += weights[c] * (1 - 2 * sum(p[c] for p, y in pixels if y == c) / both)
        weight += weights[c]
    return total / weight


def lovasz(logits, labels, weights):
    """The Lovasz extension by its definition: sum of m_i * (loss of the i worst pixels - loss of the i - 1 worst)."""
    pixels, total, weight = counted(logits, labels), 0.0, 0.0
    for c in {y for _, y in pixels}:
        errors = sorted(((abs((y == c) - p[c]), y == c) for p, y in pixels), key=lambda pair: -pair[0])
        size, before = sum(truth for _, truth in errors), 0.0
        for i, (error, _) in enumerate(errors, 1):
            wrong = [truth for _, truth in errors[:i]]
            jaccard = 1 - (size - sum(wrong)) / (size + sum(not truth for truth in wrong))
            total += weights[c] * error * (jaccard - before)
            before = jaccard
        weight += weights[c]
    return total / weight


def boundary(logits, labels, weights):
    total, count = 0.0, 0
    for probability, label in zip(logits.detach().softmax(1), labels, strict=True):
        places = [(i, j, int(label[i, j])) for i, j in np.ndindex(*label.shape) if label[i, j] != 255]
        count += len(places)
        for c in {y for _, _, y in places}:
            if len({y for _, _, y in places}) == 1:
                continue
            for i, j, y in places:
                near = min(math.hypot(i - k, j - m) for k, m, z in places if (z == c) != (y == c))
                phi = 1 - near if y == c else near
                total += weights[c] * float(probability[c, i, j]) * phi
    return total / count


FORMULAS = dict(zip(KINDS, (focal, dice, lovasz, boundary), strict=True))


@each
@pytest.mark.parametrize('weights', [None, [1.0, 0.5, 3.0, 2.0]])
def test_a_loss_is_its_formula(kind, weights):
    logits, labels = example()
    loss = kind(class_weight=weights, loss_weight=0.5)(logits, labels)
    # distances are computed in float32
    tolerance = 1e-6 if kind is DistanceBoundaryLoss else 1e-12
    assert loss.item() == pytest.approx(0.5 * FORMULAS[kind](logits, labels, weights or [1.0] * CLASSES), rel=tolerance)


@each_of_ours
def test_gradients_are_right_and_ignored_pixels_have_none(kind):
    logits, labels = example()
    weight = torch.rand(labels.shape, dtype=torch.float64).round(decimals=1)
    for options in ({}, {'weight': weight}):
        assert torch.autograd.gradcheck(lambda x, options=options: kind()(x, labels, **options), logits)
    kind()(logits, labels).backward()
    ignored = (labels == 255)[:, None].expand_as(logits)
    assert (logits.grad[ignored] == 0).all() and logits.grad[~ignored].abs().max() > 0


@each_of_ours
def test_ignored_pixels_do_not_matter(kind):
    logits, labels = example()
    changed = torch.where((labels == 255)[:, None], 9 * torch.rand_like(logits), logits.detach())
    assert torch.equal(kind()(changed, labels), kind()(logits, labels).detach())
    wide = [torch.cat([part, torch.full_like(part, fill)], -1) for part, fill in ((logits, 1.0), (labels, 255))]
    torch.testing.assert_close(kind()(*wide), kind()(logits, labels))
    other = labels.where(labels != 255, 7)
    assert torch.equal(kind()(logits, other, ignore_index=7), kind()(logits, labels))


@each_of_ours
def test_no_labelled_pixel_and_a_single_one(kind):
    logits, labels = example()
    loss = kind()(logits, torch.full_like(labels, 255))
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()
    labels = torch.full_like(labels, 255)
    labels[0, 2, 3] = 1
    p = logits.detach().softmax(1)[0, 1, 2, 3].item()
    wanted = {
        SoftmaxFocalLoss: -((1 - p) ** 2) * math.log(p),
        SoftDiceLoss: 1 - 2 * p / (p * p + 1),
        LovaszSoftmaxLoss: 1 - p,
        DistanceBoundaryLoss: 0.0,
        WeightedCrossEntropyLoss: -math.log(p),
    }
    assert kind()(logits, labels).item() == pytest.approx(wanted[kind], rel=1e-9)


@each_of_ours
def test_one_channel_is_two_classes(kind):
    logits, labels = example(classes=2)
    one = logits[:, 1:].detach().requires_grad_()
    labels = labels.where(labels == 255, torch.rand(labels.shape).round().long())
    two = torch.cat([torch.zeros_like(one), one], 1)
    assert torch.equal(kind(class_weight=[1.0, 3.0])(one, labels), kind(class_weight=[1.0, 3.0])(two, labels))
    assert torch.autograd.gradcheck(lambda x: kind()(x, labels), one)


@each_of_ours
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(kind, dtype):
    logits, labels = example(size=(2, 300, 300), dtype=torch.float32)
    half = logits.detach().to(dtype)
    with torch.autocast('cpu', dtype):
        loss = kind()(half, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, kind()(half.float(), labels))


@each
def test_pixels_of_weight_zero_are_as_ignored_ones(kind):
    logits, labels = example()
    chosen = torch.rand(labels.shape) < 0.6
    torch.testing.assert_close(kind()(logits, labels, weight=chosen.float()), kind()(logits, labels.where(chosen, 255)))


def test_losses_of_single_pixels():
    logits, labels = example()
    losses = SoftmaxFocalLoss()(logits, labels, reduction_override='none')
    assert losses.shape == labels.shape and not losses[labels == 255].any()
    assert (losses.sum() / (labels != 255).sum()).item() == pytest.approx(SoftmaxFocalLoss()(logits, labels).item())
    with pytest.raises(UserError, match='SoftDiceLoss is a loss of regions, and OHEMPixelSampler without thresh'):
        SoftDiceLoss()(logits, labels, reduction_override='none')
    with pytest.raises(ValueError, match='gamma=0.5 is neither 0 nor 1 or more'):
        SoftmaxFocalLoss(gamma=0.5)
    torch.testing.assert_close(SoftmaxFocalLoss(gamma=0)(logits, labels), WeightedCrossEntropyLoss()(logits, labels))


# what MMSegmentation's losses do, and why ours stand beside them


def test_dice_of_mmseg_counts_ignored_pixels_and_adds_classes_up():
    logits, labels = example(dtype=torch.float32)
    theirs = DiceLoss(use_sigmoid=False)
    changed = torch.where((labels == 255)[:, None], 9 * torch.rand_like(logits), logits.detach())
    assert theirs(changed, labels).item() != pytest.approx(theirs(logits, labels).item(), rel=1e-3)
    # one pixel of a class that is missed altogether among 99 right ones
    labels = torch.zeros(1, 10, 10, dtype=torch.long)
    labels[0, 5, 5] = 1
    logits = torch.tensor([9.0, -9.0]).view(1, 2, 1, 1).expand(1, 2, 10, 10)
    assert theirs(logits, labels) < 0.02
    assert SoftDiceLoss()(logits, labels).item() == pytest.approx((1 - 2 * 99 / 199 + 1) / 2, abs=1e-4)


def test_focal_loss_of_mmseg_fails_on_a_cpu():
    logits, labels = example(dtype=torch.float32)
    if torch.cuda.is_available():
        pytest.skip('it computes on a GPU')
    with pytest.raises((AssertionError, RuntimeError, ValueError)):
        FocalLoss()(logits, labels)


def test_lovasz_loss_of_mmseg_is_ours_but_for_few_pixels():
    logits, labels = example(dtype=torch.float32)
    theirs = LovaszLoss(reduction='none')
    torch.testing.assert_close(LovaszSoftmaxLoss()(logits, labels), theirs(logits, labels))
    assert math.isnan(theirs(logits, torch.full_like(labels, 255)).mean().item())
    single = torch.full_like(labels, 255)
    single[0, 2, 3] = 1
    with pytest.raises((RuntimeError, IndexError)):
        lovasz_softmax(logits.softmax(1), single)
    with pytest.raises(RuntimeError):
        lovasz_softmax(logits.double().softmax(1), labels)


def test_boundary_loss_falls_as_a_region_moves_to_its_place():
    labels = torch.zeros(1, 24, 24, dtype=torch.long)
    labels[0, 8:16, 8:16] = 1
    losses = []
    for shift in (6, 4, 2, 0):
        moved = torch.zeros(1, 24, 24, dtype=torch.long)
        moved[0, 8:16, 8 + shift : 16 + shift] = 1
        losses.append(DistanceBoundaryLoss()(20.0 * torch.nn.functional.one_hot(moved, 2).movedim(3, 1), labels).item())
    assert losses == sorted(losses, reverse=True) and losses[0] - losses[-1] > 1e-3

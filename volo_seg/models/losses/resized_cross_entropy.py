"""Cross entropy of bilinearly resized logits in chunks of rows, without logits at the size of the labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from volo_seg.models.resize.matrices import bilinear_blocks

CHUNK_CPU, CHUNK = 2**21, 2**26
"""Bytes of resized logits in a chunk: on a CPU (benchmarks/training_step.py), and estimated for a GPU."""
MIN_ROWS = 8
"""Least number of rows in a chunk, as adjacent chunks need two rows of the small map in common."""


def resized_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    class_weight: Tensor | None = None,
    pixel_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = 255,
    align_corners: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of the cross entropy of ``logits`` resized to the size of ``labels``, and what it is averaged over.

    Equal to ``F.interpolate(mode='bilinear')`` and ``F.cross_entropy``, computed in float32 or wider. The gradient at
    the size of ``logits`` is computed in the same pass, if ``logits`` needs one. The result is twice differentiable.

    Args:
        logits: (B, C, h, w).
        labels: (B, H, W), int64.
        class_weight: A weight for each class (C,).
        pixel_weight: A weight for each pixel (B, H, W).
        label_smoothing: As in ``F.cross_entropy``: the share of the target, in [0, 1], that all classes have in common.
        ignore_index: The label of pixels that do not count.
        align_corners: As in ``F.interpolate``.

    Returns:
        The sum of the losses, the sum of the class weights of the counted pixels, and the numbers of pixels (2,) that
        are counted and whose true class has the highest logit.
    """
    record = torch.is_grad_enabled() and logits.requires_grad
    weights = class_weight, pixel_weight, label_smoothing
    loss, weight, counts, _ = _loss(logits, labels, *weights, ignore_index, align_corners, record)
    return loss, weight, counts


@torch.no_grad()
def resized_pixel_losses(logits: Tensor, labels: Tensor, *, ignore_index: int, align_corners: bool) -> Tensor:
    """Cross entropy of each pixel (B, H, W), 0 if it is ignored, without gradient."""
    return _pixel_losses(logits, labels, ignore_index, align_corners)


@torch.library.custom_op('volo_seg::resized_pixel_losses', mutates_args=())
def _pixel_losses(logits: Tensor, labels: Tensor, ignore_index: int, align_corners: bool) -> Tensor:
    losses = logits.new_empty(labels.shape, dtype=_exact(logits))
    for images, rows, resized, _ in _chunks(logits, labels, align_corners):
        valid, target = _targets(labels[images, rows], ignore_index)
        resized -= resized.amax(1, keepdim=True)
        true = resized.gather(1, target)[:, 0]
        losses[images, rows] = resized.exp_().sum(1).log_().sub_(true).masked_fill_(~valid, 0)
    return losses


@torch.library.custom_op('volo_seg::resized_cross_entropy', mutates_args=())
def _loss(
    logits: Tensor,
    labels: Tensor,
    class_weight: Tensor | None,
    pixel_weight: Tensor | None,
    label_smoothing: float,
    ignore_index: int,
    align_corners: bool,
    record: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """:func:`resized_cross_entropy`, and with ``record`` the gradient (B, C, h, w) in float32 or wider."""
    dtype = _exact(logits)
    loss, total_weight = (logits.new_zeros((), dtype=dtype) for _ in range(2))
    counts = labels.new_zeros(2, dtype=torch.int64)
    gradient = logits.new_zeros(logits.shape if record else (0,), dtype=dtype)
    shared = logits.new_full(logits.shape[1:2], label_smoothing / logits.shape[1], dtype=dtype)
    if class_weight is not None:
        class_weight = class_weight.to(dtype)
        shared *= class_weight
    for images, rows, resized, add_gradient in _chunks(logits, labels, align_corners):
        valid, target = _targets(labels[images, rows], ignore_index)
        counted = valid.to(dtype)
        weight = counted if class_weight is None else class_weight[target[:, 0]] * counted
        total_weight += weight.sum()
        if pixel_weight is not None:
            counted, weight = counted * pixel_weight[images, rows], weight * pixel_weight[images, rows]
        weight = weight * (1 - label_smoothing)
        resized -= resized.amax(1, keepdim=True)
        true = resized.gather(1, target)[:, 0]
        counts += torch.stack([valid.sum(), (valid & (true == 0)).sum()])
        mean = torch.einsum('bcrw,c->brw', resized, shared) if label_smoothing else None
        total = resized.exp_().sum(1)
        log = total.log()
        loss += (log - true).masked_fill_(~valid, 0).mul_(weight).sum()
        both = weight
        if mean is not None:
            loss += (log * shared.sum() - mean).masked_fill_(~valid, 0).mul_(counted).sum()
            both = weight + counted * shared.sum()
        if record:  # both * softmax - weight * one-hot - counted * shared
            resized *= (both / total)[:, None]
            resized.scatter_(1, target, (true.exp_().div_(total).mul_(both).sub_(weight))[:, None])
            if mean is not None:
                resized.addcmul_(shared[:, None, None], counted[:, None], value=-1)
            add_gradient(gradient, resized)
    return loss, total_weight, counts, gradient


def _exact(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def _targets(labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Which of ``labels`` (B, H, W) count, and their classes (B, 1, H, W), which are 0 for the others."""
    valid = labels != ignore_index
    return valid, labels.masked_fill(~valid, 0)[:, None]


def _chunks(
    logits: Tensor, labels: Tensor, align_corners: bool
) -> Iterator[tuple[slice, slice, Tensor, Callable[[Tensor, Tensor], None]]]:
    """Yield images, rows, their resized logits (b, C, r, W), and a function that adds their gradient to a small map.

    Resizing is a matrix product along each axis: first along the rows of the small map that the chunk needs. A chunk
    has several images if they fit whole, and overwrites the one before it.
    """
    (batch, channels, height, width), (large_height, large_width) = logits.shape, labels.shape[1:]
    dtype, logits = _exact(logits), logits.contiguous()  # of channels_last, each slice would be copied slowly
    row_bytes = channels * large_width * dtype.itemsize
    count = max(MIN_ROWS, (CHUNK_CPU if logits.device.type == 'cpu' else CHUNK) // row_bytes)
    images_at_once = max(1, count // large_height)
    options: dict[str, Any] = {'align_corners': align_corners, 'dtype': dtype, 'device': logits.device}
    downs = bilinear_blocks(height, large_height, min(count, large_height), **options)
    (across,) = bilinear_blocks(width, large_width, large_width, **options)
    rows = downs[0].rows.stop
    buffer = logits.new_empty(min(images_at_once, batch) * channels * rows * large_width, dtype=dtype)
    with torch.autocast(logits.device.type, enabled=False):
        for start in range(0, batch, images_at_once):
            images = slice(start, min(start + images_at_once, batch))
            for down in downs:
                small = logits[images, :, down.columns, across.columns].to(dtype)
                maps, count = small.shape[0] * channels, down.rows.stop - down.rows.start
                wide = torch.matmul(small, across.weights.t()).view(maps, -1, large_width)
                resized = buffer[: maps * count * large_width].view(maps, count, large_width)
                torch.bmm(down.weights.expand(maps, -1, -1), wide, out=resized)

                def add_gradient(gradient: Tensor, resized: Tensor, images=images, down=down, maps=maps) -> None:  # type: ignore[no-untyped-def]
                    narrow = torch.bmm(down.weights.t().expand(maps, -1, -1), resized.flatten(0, 1))
                    part = gradient[images, :, down.columns, across.columns]
                    part += torch.matmul(narrow, across.weights).view_as(part)

                yield images, down.rows, resized.view(-1, channels, count, large_width), add_gradient


@_pixel_losses.register_fake
def _(logits: Tensor, labels: Tensor, *_: Any) -> Tensor:
    return logits.new_empty(labels.shape, dtype=_exact(logits))


@_loss.register_fake
def _(logits: Tensor, labels: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    record = arguments[-1]
    dtype = _exact(logits)
    scalar, gradient = logits.new_empty((), dtype=dtype), torch.empty_like(logits, dtype=dtype)
    counts = labels.new_empty(2, dtype=torch.int64)
    return scalar, torch.empty_like(scalar), counts, gradient.contiguous() if record else scalar.new_empty(0)


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    logits, labels, class_weight, pixel_weight, ctx.label_smoothing, ctx.ignore_index, ctx.align_corners, _ = inputs
    ctx.save_for_backward(logits, labels, class_weight, pixel_weight, output[3])
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    logits, labels, class_weight, pixel_weight, gradient = ctx.saved_tensors
    if torch.is_grad_enabled():  # the gradient is differentiated again
        large = F.interpolate(
            logits.to(_exact(logits)), labels.shape[1:], mode='bilinear', align_corners=ctx.align_corners
        )
        weight = None if class_weight is None else class_weight.to(large.dtype)
        options = {'ignore_index': ctx.ignore_index, 'label_smoothing': ctx.label_smoothing}
        losses = F.cross_entropy(large, labels, weight, reduction='none', **options)
        loss = (losses if pixel_weight is None else losses * pixel_weight).sum()
        (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
    return (gradient * grad).to(logits.dtype), *[None] * 7


_loss.register_autograd(_backward, setup_context=_setup_context)

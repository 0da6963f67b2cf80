"""A 3x3 convolution over resized maps, computed at the size of the maps before resizing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from volo_seg.models.resize.matrices import BLOCK_ROWS, BLOCK_ROWS_CPU, multiply, tap_axis, tap_matrices
from volo_seg.models.winograd import conv3x3, differentiable_gradients, winograd_pays
from volo_seg.ops import exporting, why_plain

Size = tuple[int, int]
CALL_COST_CPU, CALL_COST = 4e6, 1e10
"""Overhead of the additional calls in multiply-adds: on a CPU (benchmarks/uper_head.py), and estimated for a GPU."""
WINOGRAD_SHARE = 0.6
"""Time of a convolution by Winograd's filtering over that of a direct one (benchmarks/uper_head.py)."""
FEW_PIXELS = 64
"""Below this number of pixels, the weight is used in its own layout."""


def conv3x3_of_resized(x: Tensor, weight: Tensor, size: Size, *, align_corners: bool) -> Tensor:
    """``F.conv2d(F.interpolate(x, size, mode='bilinear'), weight, padding=1)`` without the large map.

    The nine taps are one linear layer at the size of ``x``; nine bilinear matrices, shifted and zero outside the map,
    then enlarge and sum its outputs. ``x`` is (B, C, h, w), ``weight`` (O, C, 3, 3), the result (B, O, *size) in
    channels_last memory format. Results and gradients are exact up to rounding.
    """
    if why_plain(x, weight):
        return F.conv2d(F.interpolate(x, size, mode='bilinear', align_corners=align_corners), weight, padding=1)
    if torch.is_autocast_enabled(x.device.type):
        low = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(low), weight.to(low)
    if torch.compiler.is_compiling():
        return _traced(x, weight, size, align_corners)
    pixels = x.permute(0, 2, 3, 1).contiguous()
    return _ConvOfResized.apply(pixels, weight, size, align_corners).permute(0, 3, 1, 2)


def split_pays(x: Tensor, channels_out: int, size: Size) -> bool:
    """Whether :func:`conv3x3_of_resized` costs less than resizing ``x`` and then convolving it.

    The unit of cost is a multiply-add of a convolution. Measured on a CPU (benchmarks/uper_head.py): a dense matrix
    product runs at 0.8 of the rate of a convolution, a banded one at 0.3; changing the layout of a weight costs as much
    as using it 30 times. On a GPU, float32 is not split if convolutions use TF32 and matrix products do not.
    """
    in_float32 = x.is_cuda and x.dtype == torch.float32 and not torch.is_autocast_enabled('cuda')
    if in_float32 and torch.get_float32_matmul_precision() == 'highest':
        return False
    batch, channels, height, width = x.shape
    rows, columns = size
    plain: float = 9 * batch * rows * columns * channels * channels_out
    if winograd_pays(x, channels_out, size):
        plain *= WINOGRAD_SHARE
    mixing = 9 * batch * height * width * channels * channels_out / 0.8
    down = batch * rows * columns * channels_out * _band(height, rows, x.device)
    across = 3 * batch * height * columns * channels_out * _band(width, columns, x.device)
    layout = 30 * 9 * channels * channels_out
    call_cost = CALL_COST_CPU if x.device.type == 'cpu' else CALL_COST
    return mixing + (down + across) / 0.3 + layout + call_cost < plain


def _band(source: int, target: int, device: torch.device) -> float:
    """Number of columns in a block of a tap axis."""
    block = min(target, BLOCK_ROWS_CPU if device.type == 'cpu' else BLOCK_ROWS)
    return 3 * min(source, block * source / target + 3)


def _taps(weight: Tensor) -> Iterator[Tensor]:
    """Yield each row of the kernel as the weight (3 * O, C) of a linear layer, ordered by tap.

    It copies a few outputs at a time, so that a large weight is read from memory once for a row and not for each tap.
    """
    channels_out, channels = weight.shape[:2]
    few = max(1, 2**20 // (9 * channels))
    for row in range(3):
        layer = weight.new_empty(3, channels_out, channels)
        for start in range(0, channels_out, few):
            layer[:, start : start + few] = weight[start : start + few, :, row].permute(2, 0, 1)
        yield layer.view(-1, channels)


def _mixed(pixels: Tensor, weight: Tensor) -> Iterator[Tensor]:
    """Yield the product (P, 3 * O) of ``pixels`` (P, C) with each row of the kernel."""
    if len(pixels) < FEW_PIXELS:
        yield from torch.einsum('nc,ocij->injo', pixels, weight).flatten(2)
        return
    for layer in _taps(weight):
        yield torch.mm(pixels, layer.t())


def _traced(x: Tensor, weight: Tensor, size: Size, align_corners: bool) -> Tensor:
    """:func:`conv3x3_of_resized` in torch operations on NCHW, for ``torch.compile`` and export with symbolic sizes."""
    options: dict[str, Any] = {'align_corners': align_corners, 'dtype': x.dtype, 'device': x.device}
    down = tap_matrices(x.shape[2], size[0], **options)
    across = tap_matrices(x.shape[3], size[1], **options)
    taps = weight.permute(2, 3, 0, 1).reshape(-1, weight.shape[1], 1, 1)
    mixed = F.conv2d(x, taps).chunk(9, dim=1)
    high = []
    for row in range(3):
        left, middle, right = (F.linear(mixed[3 * row + column], across[column]) for column in range(3))
        high.append(F.linear((left + middle + right).transpose(2, 3), down[row]))
    return (high[0] + high[1] + high[2]).transpose(2, 3)


class _ConvOfResized(torch.autograd.Function):
    """Pixels (B, h, w, C) and weight (O, C, 3, 3) to (B, H, W, O); saves only its inputs for backward."""

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, weight: Tensor, size: Size, align_corners: bool) -> Tensor:
        batch, height, width, channels = pixels.shape
        channels_out = len(weight)
        options: dict[str, Any] = {'align_corners': align_corners, 'dtype': pixels.dtype, 'device': pixels.device}
        ctx.down = tap_axis(height, size[0], **options)
        ctx.across = tap_axis(width, size[1], **options)
        ctx.save_for_backward(pixels, weight)
        ctx.size, ctx.align_corners = size, align_corners
        flat = pixels.view(-1, channels)
        rows = pixels.new_empty(batch, height, 3, size[1], channels_out)
        for tap, mixed in enumerate(_mixed(flat, weight)):
            mixed = mixed.reshape(batch * height, width * 3, channels_out)
            multiply(ctx.across.forward, mixed, out=rows[:, :, tap].flatten(0, 1))
        result = pixels.new_empty(batch, size[0], size[1] * channels_out)
        multiply(ctx.down.forward, rows.view(batch, height * 3, -1), out=result)
        return result.view(batch, *size, channels_out)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        pixels, weight = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradients are differentiated again
            function = partial(_plain, size=ctx.size, align_corners=ctx.align_corners)
            return *differentiable_gradients(ctx, gradient, function), None, None
        batch, height, width, channels = pixels.shape
        channels_out = len(weight)
        flat = pixels.view(-1, channels)
        rows = gradient.new_empty(batch, height * 3, ctx.size[1] * channels_out)
        multiply(ctx.down.backward, gradient.reshape(batch, ctx.size[0], -1), out=rows)
        rows = rows.view(batch, height, 3, ctx.size[1], channels_out)
        for_pixels = torch.zeros_like(flat) if ctx.needs_input_grad[0] else None
        for_weight = weight.new_empty(weight.shape) if ctx.needs_input_grad[1] else None
        mixed = gradient.new_empty(batch * height, width * 3, channels_out)
        by_pixel = mixed.view(-1, 3 * channels_out)
        for tap, layer in enumerate(_taps(weight)):
            multiply(ctx.across.backward, rows[:, :, tap].flatten(0, 1), out=mixed)
            if for_pixels is not None:
                for_pixels.addmm_(by_pixel, layer)
            if for_weight is not None:
                for_taps = torch.mm(by_pixel.t(), flat).view(3, channels_out, channels)
                for_weight[:, :, tap] = for_taps.permute(1, 2, 0)
        return None if for_pixels is None else for_pixels.view_as(pixels), for_weight, None, None


def _plain(pixels: Tensor, weight: Tensor, *, size: Size, align_corners: bool) -> Tensor:
    large = F.interpolate(pixels.permute(0, 3, 1, 2), size, mode='bilinear', align_corners=align_corners)
    return F.conv2d(large, weight, padding=1).permute(0, 2, 3, 1)


def conv3x3_of_maps(maps: Sequence[Tensor], weight: Tensor, size: Size, *, align_corners: bool) -> Tensor:
    """``F.conv2d`` (3x3, padding 1) over the concatenation of ``maps``, each resized to ``size`` first.

    Adjacent maps of equal size form a group. A group is either resized and convolved together with the maps that have
    the target size, or convolved at its own size, whichever costs less.
    """
    groups = _grouped(maps)
    weights = torch.split(weight, [sum(m.shape[1] for m in group) for group in groups], dim=1)
    large: list[Tensor] = []
    large_weights: list[Tensor] = []
    small: list[tuple[Tensor, Tensor]] = []
    for group, part in zip(groups, weights, strict=True):
        x = group[0] if len(group) == 1 else torch.cat(group, dim=1)
        if same_size(x, size):
            large.append(x)
            large_weights.append(part)
        elif exporting() or split_pays(x, len(weight), size):
            small.append((x, part))
        else:
            large.append(F.interpolate(x, size, mode='bilinear', align_corners=align_corners))
            large_weights.append(part)
    del maps, groups
    total = None
    while small:
        x, part = small.pop()
        mixed = conv3x3_of_resized(x, part, size, align_corners=align_corners)
        total = mixed if total is None else add(total, mixed)
    if large:
        direct = conv3x3(_joined(large), weight if len(large) == len(weights) else _joined(large_weights))
        total = direct if total is None else add(direct, total)
    assert total is not None
    return total


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=1)


def _grouped(maps: Sequence[Tensor]) -> list[list[Tensor]]:
    """Group adjacent maps of equal size."""
    groups: list[list[Tensor]] = []
    for x in maps:
        if groups and same_size(groups[-1][0], x.shape[2:]):
            groups[-1].append(x)
        else:
            groups.append([x])
    return groups


def same_size(x: Tensor, size: Sequence[int]) -> bool:
    """Whether the map ``x`` has this size; during export, whether it has it for every value of symbolic sizes."""
    if exporting():
        from torch.fx.experimental.symbolic_shapes import statically_known_true

        return all(statically_known_true(a == b) for a, b in zip(x.shape[2:], size, strict=True))
    return tuple(x.shape[2:]) == tuple(size)


def add(first: Tensor, second: Tensor) -> Tensor:
    """``first + second``; in place of ``first`` where no gradients are recorded."""
    return first + second if torch.is_grad_enabled() else first.add_(second)

"""A 3x3 convolution by Winograd's minimal filtering F(2x2, 3x3): 16 products for four outputs instead of 36.

A tile is 4 x 4 pixels of the zero-padded map and gives 2 x 2 outputs; adjacent tiles overlap by two pixels. Tiles and
filters are transformed by sums along each axis, multiplied at each of the 16 positions of a tile, and the products are
transformed into outputs by sums. The backward pass is the transpose of these steps.

Source: arXiv 1509.09308.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from volo_seg.ops import why_plain

CHUNK_VALUES, MIN_CHANNELS, MIN_PIXELS = 2**20, 256, 256
"""Transformed values in a chunk of tiles; least channels and pixels at which it pays (benchmarks/uper_head.py)."""
FILTER = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))
"""Transforms the three taps of a filter along one axis into four."""


def conv3x3(x: Tensor, weight: Tensor) -> Tensor:
    """``F.conv2d(x, weight, padding=1)``, on a CPU in 4/9 of the multiply-adds where that takes less time.

    ``x`` is (B, C, H, W) and ``weight`` (O, C, 3, 3). Results and gradients are exact up to rounding.
    """
    if why_plain(x, weight) or not winograd_pays(x, len(weight), (x.shape[2], x.shape[3])):
        return F.conv2d(x, weight, padding=1)
    return winograd_conv3x3(x, weight)


def winograd_pays(x: Tensor, channels_out: int, size: tuple[int, int]) -> bool:
    """Whether :func:`conv3x3` of ``x``, resized to ``size``, saves more multiply-adds than its sums and copies cost."""
    if torch.compiler.is_compiling() or x.device.type != 'cpu' or x.dtype.itemsize < 4:
        return False
    enough = min(x.shape[1], channels_out) >= MIN_CHANNELS and len(x) * size[0] * size[1] >= MIN_PIXELS
    return enough and not torch.is_autocast_enabled('cpu')


def winograd_conv3x3(x: Tensor, weight: Tensor) -> Tensor:
    """:func:`conv3x3` of any size by Winograd's filtering; the result is channels_last."""
    result = _Winograd.apply(x.permute(0, 2, 3, 1), weight)
    assert isinstance(result, Tensor)
    return result.permute(0, 3, 1, 2)


class _Winograd(torch.autograd.Function):
    """Pixels (B, H, W, C) and weight (O, C, 3, 3) to (B, H, W, O); saves only its inputs for backward."""

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(pixels, weight)
        tiles = _Tiles(pixels, len(weight))
        filters = _filters(weight).transpose(1, 2)
        result = pixels.new_empty(len(pixels), tiles.height, tiles.width, len(weight))
        for image, rows in tiles.chunks:
            torch.bmm(tiles.read(image, rows), filters, out=tiles.products.view(16, -1, len(weight)))
            outputs = result[image, rows]
            _to_outputs(tiles.products, tiles.half_outputs)
            for row in range(2):
                _to_outputs(tiles.half_outputs[row], outputs[row::2].unflatten(1, (-1, 2)).permute(2, 0, 1, 3))
        return result[:, : pixels.shape[1], : pixels.shape[2]].contiguous()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        pixels, weight = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradients are differentiated again
            return tuple(differentiable_gradients(ctx, gradient, _plain))
        tiles = _Tiles(pixels, len(weight))
        filters = _filters(weight)
        for_padded = torch.zeros_like(tiles.padded) if ctx.needs_input_grad[0] else None
        for_filters = torch.zeros_like(filters) if ctx.needs_input_grad[1] else None
        padding = tiles.height - pixels.shape[1], tiles.width - pixels.shape[2]
        if any(padding):
            gradient = F.pad(gradient, (0, 0, 0, padding[1], 0, padding[0]))
        by_tile = tiles.products.view(16, -1, len(weight))
        for image, rows in tiles.chunks:
            for row in range(2):
                outputs = gradient[image, rows][row::2].unflatten(1, (-1, 2)).permute(2, 0, 1, 3)
                _from_outputs(outputs, tiles.half_outputs[row])
            _from_outputs(tiles.half_outputs, tiles.products)
            if for_filters is not None:
                for_filters.baddbmm_(by_tile.transpose(1, 2), tiles.read(image, rows))
            if for_padded is not None:
                torch.bmm(by_tile, filters, out=tiles.values.view(16, -1, filters.shape[2]))
                tiles.add_to(for_padded[image], rows)
        for_pixels = None if for_padded is None else for_padded[:, 1 : pixels.shape[1] + 1, 1 : pixels.shape[2] + 1]
        return for_pixels, None if for_filters is None else _filter_gradient(for_filters, weight)


class _Tiles:
    """The zero-padded map (B, H + 2, W + 2, C), H and W rounded up to whole chunks, and the buffers of one chunk.

    A chunk is r rows of w tiles of one image; ``chunks`` are its image and the rows of its outputs. ``values``
    (4, 4, r, w, C) are transformed tiles, ``products`` (4, 4, r, w, O), ``half_outputs`` (2, 4, r, w, O).
    """

    def __init__(self, pixels: Tensor, channels_out: int) -> None:
        batch, height, width, channels = pixels.shape
        rows, columns = -(-height // 2), -(-width // 2)
        most = max(1, CHUNK_VALUES // (16 * columns * max(channels, channels_out)))
        count = -(-rows // most)
        rows = -(-rows // count)
        self.height, self.width = 2 * rows * count, 2 * columns
        self.padded = pixels.new_zeros(batch, self.height + 2, self.width + 2, channels)
        self.padded[:, 1 : height + 1, 1 : width + 1] = pixels
        self.half_values = pixels.new_empty(4, 2 * rows + 2, columns, channels)
        self.values = pixels.new_empty(4, 4, rows, columns, channels)
        self.products = pixels.new_empty(4, 4, rows, columns, channels_out)
        self.half_outputs = pixels.new_empty(2, 4, rows, columns, channels_out)
        starts = range(0, self.height, 2 * rows)
        self.chunks = [(image, slice(start, start + 2 * rows)) for image in range(batch) for start in starts]

    def read(self, image: int, rows: slice) -> Tensor:
        """The transformed tiles (16, r * w, C) of a chunk."""
        strip = self.padded[image, rows.start : rows.stop + 2]
        _to_values(strip.transpose(0, 1), self.half_values.transpose(1, 2))
        _to_values(self.half_values.transpose(0, 1), self.values.transpose(1, 2))
        return self.values.view(16, -1, self.values.shape[-1])

    def add_to(self, gradient: Tensor, rows: slice) -> None:
        """Add the gradient of the pixels of a chunk, whose ``values`` are the gradients of its transformed tiles."""
        _add_from_values(self.values.transpose(1, 2), self.half_values.zero_().transpose(0, 1))
        _add_from_values(self.half_values.transpose(1, 2), gradient[rows.start : rows.stop + 2].transpose(0, 1))


def _to_values(pixels: Tensor, values: Tensor) -> None:
    """Transform pixels (2 * t + 2, ...) into ``values`` (4, t, ...)."""
    first, second, third, fourth = pixels[:-2:2], pixels[1:-2:2], pixels[2::2], pixels[3::2]
    torch.sub(first, third, out=values[0])
    torch.add(second, third, out=values[1])
    torch.sub(third, second, out=values[2])
    torch.sub(second, fourth, out=values[3])


def _add_from_values(values: Tensor, pixels: Tensor) -> None:
    """Add the transpose of :func:`_to_values` to ``pixels``; it overwrites ``values``."""
    first, second, third, fourth = values
    pixels[:-2:2] += first
    pixels[3::2] -= fourth
    pixels[1:-2:2] += fourth.add_(second).sub_(third)
    pixels[2::2] += second.add_(third).sub_(first)


def _to_outputs(products: Tensor, outputs: Tensor) -> None:
    """Transform products (4, ...) into ``outputs`` (2, ...)."""
    torch.add(products[0], products[1], out=outputs[0]).add_(products[2])
    torch.sub(products[1], products[2], out=outputs[1]).sub_(products[3])


def _from_outputs(outputs: Tensor, products: Tensor) -> None:
    """Write the transpose of :func:`_to_outputs` into ``products``."""
    products[0] = outputs[0]
    torch.add(outputs[0], outputs[1], out=products[1])
    torch.sub(outputs[0], outputs[1], out=products[2])
    torch.neg(outputs[1], out=products[3])


def _filters(weight: Tensor) -> Tensor:
    """Transformed filters (16, O, C)."""
    taps = weight.flatten(2).permute(2, 0, 1).flatten(1)
    return torch.mm(_filter_matrix(weight), taps).view(16, *weight.shape[:2])


def _filter_gradient(gradient: Tensor, weight: Tensor) -> Tensor:
    """The transpose of :func:`_filters`: the gradient of ``weight`` (O, C, 3, 3)."""
    taps = torch.mm(_filter_matrix(weight).t(), gradient.flatten(1))
    return taps.view(9, *weight.shape[:2]).permute(1, 2, 0).reshape(weight.shape)


def _filter_matrix(like: Tensor) -> Tensor:
    matrix = like.new_tensor(FILTER)
    return torch.kron(matrix, matrix)


def _plain(pixels: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(pixels.permute(0, 3, 1, 2), weight, padding=1).permute(0, 2, 3, 1)


def differentiable_gradients(
    ctx: Any, gradient: Tensor, function: Callable[[Tensor, Tensor], Tensor]
) -> list[Tensor | None]:
    """Twice differentiable gradients of the two tensors that ``ctx`` saved, the inputs of ``function``."""
    needed = ctx.needs_input_grad[:2]
    inputs = [tensor for tensor, wanted in zip(ctx.saved_tensors, needed, strict=True) if wanted]
    gradients = iter(torch.autograd.grad(function(*ctx.saved_tensors), inputs, gradient, create_graph=True))
    return [next(gradients) if wanted else None for wanted in needed]

# mypy: allow-untyped-defs, allow-incomplete-defs
"""Triton kernels of outlook attention: gathers without atomics, computed in float32.

A *cell* is the ``stride`` x ``stride`` tokens of one window; windows up to K / stride cells away cover it as well. A
program processes a tile of cells of one head and one image. Each row of attention weights (window, output position) is
read for exactly one token, so forward computes no softmax twice. Forward saves one log-sum-exp a row for backward.
Layouts: maps (B, H, W, C), logits (B, h, w, N, K*K, K*K), log-sum-exps (B, h, w, N, K*K).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from volo_seg.ops.reference import Window

TILE_VALUES = 1024
"""Cells times (padded) head channels of one program, held in registers."""
SIZES = ('H', 'W', 'ROWS', 'COLS')
"""Arguments whose values compile no new kernels, so that the code that is checked is the code that runs."""


def forward(v: Tensor, logits: Tensor, result: Tensor, sums: Tensor, window: Window) -> None:
    """Fill ``result`` (B, H, W, C) and ``sums``, the log-sum-exp of each row of logits; all tensors are contiguous."""
    if v.numel():
        grid, sizes = _launch(v, logits, window)
        with torch.cuda.device_of(v):
            _mix[grid](v, logits, sums, result, window.scale, **sizes)


def backward(
    grad: Tensor, v: Tensor, logits: Tensor, sums: Tensor, grad_v: Tensor, grad_logits: Tensor, window: Window
) -> None:
    """Fill the gradients of ``v`` and ``logits`` from ``grad``, that of the result; all tensors are contiguous."""
    if v.numel():
        grid, sizes = _launch(v, logits, window)
        with torch.cuda.device_of(v):
            _mix_back[grid](grad, logits, sums, grad_v, window.scale, **sizes)
            area = triton.next_power_of_2(window.kernel_size**2)
            _logit_gradients[grid](grad, v, logits, sums, grad_logits, window.scale, AREA_P=area, **sizes)


def tile(head_dim: int) -> tuple[int, int, int]:
    """Channels of a head, padded to a power of two, and rows and columns of the cells of one program."""
    padded_dim = triton.next_power_of_2(head_dim)
    cells = max(TILE_VALUES // padded_dim, 1)
    columns = min(cells, 8)
    return padded_dim, cells // columns, columns


def _launch(v: Tensor, logits: Tensor, window: Window) -> tuple[tuple[int, int], dict[str, int]]:
    """The launch grid (heads * tiles, images) and the constants; heads vary fastest, as they share cache lines."""
    batch, height, width, channels = v.shape
    _, rows, cols, _ = logits.shape
    dim = channels // window.num_heads
    padded_dim, tile_h, tile_w = tile(dim)
    tiles = triton.cdiv(rows, tile_h) * triton.cdiv(cols, tile_w)
    sizes = {'H': height, 'W': width, 'ROWS': rows, 'COLS': cols, 'HEADS': window.num_heads, 'D': dim}
    sizes |= {'K': window.kernel_size, 'S': window.stride, 'PAD': window.padding}
    sizes |= {'D_P': padded_dim, 'TILE_H': tile_h, 'TILE_W': tile_w, 'num_warps': 4}
    return (window.num_heads * tiles, batch), sizes


@triton.jit
def _tile(ROWS, COLS, HEADS, TILE_H: tl.constexpr, TILE_W: tl.constexpr):
    """Image and head of the program, and window row and column of each of its cells."""
    image = tl.program_id(1).to(tl.int64)
    head = tl.program_id(0) % HEADS
    tile = tl.program_id(0) // HEADS
    across = tl.cdiv(COLS, TILE_W)
    cell = tl.arange(0, TILE_H * TILE_W)
    row = (tile // across) * TILE_H + cell // TILE_W
    col = (tile % across) * TILE_W + cell % TILE_W
    return image, head, row, col


@triton.jit
def _pixels(image, head, y, x, H, W, HEADS, D):
    """Offsets of the head's channels at pixels (y, x), and a mask of the pixels inside the map."""
    there = (y >= 0) & (y < H) & (x >= 0) & (x < W)
    return ((image * H + y) * W + x) * (HEADS * D) + head * D, there


@triton.jit(do_not_specialize=SIZES)
def _mix(
    v_ptr, logits_ptr, sums_ptr, result_ptr, scale,
    H, W, ROWS, COLS, HEADS: tl.constexpr, D: tl.constexpr, K: tl.constexpr, S: tl.constexpr,
    PAD: tl.constexpr, D_P: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr,
):  # fmt: skip
    """Forward: sum over the windows that cover a pixel of its weighted mean; stores the log-sum-exps."""
    image, head, row, col = _tile(ROWS, COLS, HEADS, TILE_H, TILE_W)
    channel = tl.arange(0, D_P)
    real = channel < D
    for phase in range(S * S):
        r = phase // S
        q = phase % S
        mine, on_map = _pixels(image, head, row * S + r, col * S + q, H, W, HEADS, D)
        total = tl.zeros((TILE_H * TILE_W, D_P), tl.float32)
        for a in range((r + PAD) % S, K, S):
            for b in range((q + PAD) % S, K, S):
                i = row + (r + PAD - a) // S
                j = col + (q + PAD - b) // S
                covered = on_map & (i >= 0) & (i < ROWS) & (j >= 0) & (j < COLS)
                out = (((image * ROWS + i) * COLS + j) * HEADS + head) * (K * K) + a * K + b
                high = tl.full((TILE_H * TILE_W,), float('-inf'), tl.float32)
                for n in tl.static_range(K * K):
                    logit = tl.load(logits_ptr + out * (K * K) + n, mask=covered, other=0.0).to(tl.float32)
                    high = tl.maximum(high, logit * scale)
                weight_sum = tl.zeros((TILE_H * TILE_W,), tl.float32)
                mixed = tl.zeros((TILE_H * TILE_W, D_P), tl.float32)
                for n in tl.static_range(K * K):
                    logit = tl.load(logits_ptr + out * (K * K) + n, mask=covered, other=0.0).to(tl.float32)
                    weight = tl.exp(logit * scale - high)
                    weight_sum += weight
                    at, there = _pixels(image, head, i * S - PAD + n // K, j * S - PAD + n % K, H, W, HEADS, D)
                    mask = (covered & there)[:, None] & real[None, :]
                    value = tl.load(v_ptr + at[:, None] + channel[None, :], mask=mask, other=0.0)
                    mixed += weight[:, None] * value.to(tl.float32)
                tl.store(sums_ptr + out, high + tl.log(weight_sum), mask=covered)
                total += tl.where(covered[:, None], mixed / weight_sum[:, None], 0.0)
        mask = on_map[:, None] & real[None, :]
        tl.store(result_ptr + mine[:, None] + channel[None, :], total, mask=mask)


@triton.jit(do_not_specialize=SIZES)
def _mix_back(
    grad_ptr, logits_ptr, sums_ptr, result_ptr, scale,
    H, W, ROWS, COLS, HEADS: tl.constexpr, D: tl.constexpr, K: tl.constexpr, S: tl.constexpr,
    PAD: tl.constexpr, D_P: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr,
):  # fmt: skip
    """Gradient of the values: sum over the windows that cover a pixel and all their outputs."""
    image, head, row, col = _tile(ROWS, COLS, HEADS, TILE_H, TILE_W)
    channel = tl.arange(0, D_P)
    real = channel < D
    for phase in range(S * S):
        r = phase // S
        q = phase % S
        mine, on_map = _pixels(image, head, row * S + r, col * S + q, H, W, HEADS, D)
        total = tl.zeros((TILE_H * TILE_W, D_P), tl.float32)
        for a in range((r + PAD) % S, K, S):
            for b in range((q + PAD) % S, K, S):
                i = row + (r + PAD - a) // S
                j = col + (q + PAD - b) // S
                covered = on_map & (i >= 0) & (i < ROWS) & (j >= 0) & (j < COLS)
                outs = (((image * ROWS + i) * COLS + j) * HEADS + head) * (K * K)
                for n in tl.static_range(K * K):
                    at, there = _pixels(image, head, i * S - PAD + n // K, j * S - PAD + n % K, H, W, HEADS, D)
                    there = there & covered
                    logit = tl.load(logits_ptr + (outs + n) * (K * K) + a * K + b, mask=there, other=0.0).to(tl.float32)
                    row_sum = tl.load(sums_ptr + outs + n, mask=there, other=float('inf'))
                    mask = there[:, None] & real[None, :]
                    grad = tl.load(grad_ptr + at[:, None] + channel[None, :], mask=mask, other=0.0)
                    total += tl.exp(logit * scale - row_sum)[:, None] * grad.to(tl.float32)
        mask = on_map[:, None] & real[None, :]
        tl.store(result_ptr + mine[:, None] + channel[None, :], total, mask=mask)


@triton.jit(do_not_specialize=SIZES)
def _logit_gradients(
    grad_ptr, v_ptr, logits_ptr, sums_ptr, result_ptr, scale,
    H, W, ROWS, COLS, HEADS: tl.constexpr, D: tl.constexpr, K: tl.constexpr, S: tl.constexpr,
    PAD: tl.constexpr, D_P: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr, AREA_P: tl.constexpr,
):  # fmt: skip
    """Gradient of the logits of each window, one row of K*K at a time, through its softmax."""
    image, head, row, col = _tile(ROWS, COLS, HEADS, TILE_H, TILE_W)
    channel = tl.arange(0, D_P)
    real = channel < D
    offset = tl.arange(0, AREA_P)
    owned = (row < ROWS) & (col < COLS)
    outs = (((image * ROWS + row) * COLS + col) * HEADS + head) * (K * K)
    top = row * S - PAD
    left = col * S - PAD
    for o in range(K * K):
        at, there = _pixels(image, head, top + o // K, left + o % K, H, W, HEADS, D)
        there = there & owned
        mask = there[:, None] & real[None, :]
        grad = tl.load(grad_ptr + at[:, None] + channel[None, :], mask=mask, other=0.0).to(tl.float32)
        products = tl.zeros((TILE_H * TILE_W, AREA_P), tl.float32)
        for n in tl.static_range(K * K):
            at, inside = _pixels(image, head, top + n // K, left + n % K, H, W, HEADS, D)
            mask = (there & inside)[:, None] & real[None, :]
            value = tl.load(v_ptr + at[:, None] + channel[None, :], mask=mask, other=0.0).to(tl.float32)
            products = tl.where(offset[None, :] == n, tl.sum(grad * value, axis=1)[:, None], products)
        row_sum = tl.load(sums_ptr + outs + o, mask=there, other=float('inf'))
        at = ((outs + o) * (K * K))[:, None] + offset[None, :]
        mask = there[:, None] & (offset < K * K)[None, :]
        logit = tl.load(logits_ptr + at, mask=mask, other=float('-inf')).to(tl.float32)
        weight = tl.where(mask, tl.exp(logit * scale - row_sum[:, None]), 0.0)
        result = scale * weight * (products - tl.sum(weight * products, axis=1)[:, None])
        tl.store(result_ptr + at, result, mask=owned[:, None] & (offset < K * K)[None, :])

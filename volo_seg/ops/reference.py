"""Outlook attention as loops over windows: the slow reference for every other implementation."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Window(NamedTuple):
    """The numeric arguments of outlook attention.

    ``kernel_size``, ``stride`` and ``padding`` are in tokens; ``scale`` multiplies the logits before the softmax.
    """

    num_heads: int
    kernel_size: int
    stride: int
    padding: int
    scale: float


def outlook_attention_reference(v: Tensor, logits: Tensor, window: Window, dropout_p: float = 0.0) -> Tensor:
    """Weight the values of each K x K window of zero-padded ``v`` (B, H, W, C) and add the result to the output.

    Arguments and result as in :func:`volo_seg.ops.outlook_attention`. Source: arXiv 2106.13112, section 3.1.
    """
    num_heads, kernel, stride, pad, scale = window
    batch, height, width, channels = v.shape
    area = kernel * kernel
    padded = F.pad(v, (0, 0, pad, pad, pad, pad))
    result = torch.zeros_like(padded)
    for row in range(logits.shape[1]):
        for col in range(logits.shape[2]):
            ys = slice(row * stride, row * stride + kernel)
            xs = slice(col * stride, col * stride + kernel)
            values = padded[:, ys, xs].reshape(batch, area, num_heads, channels // num_heads)
            weights = (logits[:, row, col].reshape(batch, num_heads, area, area) * scale).softmax(dim=-1)
            weights = F.dropout(weights, dropout_p).to(v.dtype)
            mixed = torch.einsum('bnoi,bind->bond', weights, values)
            result[:, ys, xs] += mixed.reshape(batch, kernel, kernel, channels)
    return result[:, pad : pad + height, pad : pad + width]

"""Outlook attention as a module."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from volo_seg.ops import outlook_attention


class OutlookAttention(nn.Module):
    """Local attention whose weights are a linear projection of each window's centre token.

    The constructor and the parameter names (``v``, ``attn``, ``proj``) are those of the published module, so this one
    replaces it in any network and loads its weights.

    Args:
        dim: Channels C of the tokens, a multiple of ``num_heads``.
        num_heads: Attention heads N.
        kernel_size: Side K of a window in tokens, odd.
        padding: Zero padding of the map in tokens; must be K // 2.
        stride: Distance between windows in tokens, in 1..K.
        qkv_bias: Whether the value projection has a bias.
        qk_scale: Factor on the attention logits; ``None`` means ``head_dim ** -0.5``.
        attn_drop: Dropout rate of the attention weights, in [0, 1].
        proj_drop: Dropout rate of the output, in [0, 1].

    Shapes: (B, H, W, C) to (B, H, W, C), NHWC, any H and W.

    Raises:
        ValueError: ``dim`` is not a multiple of ``num_heads``.

    Source: VOLO, arXiv 2106.13112, section 3.1.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: int = 3,
        padding: int = 1,
        stride: int = 1,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f'dim={dim} is not a multiple of num_heads={num_heads}')
        self.num_heads = num_heads
        self.kernel_size = kernel_size
        self.padding = padding
        self.stride = stride
        self.scale = (dim // num_heads) ** -0.5 if qk_scale is None else qk_scale
        self.attn_drop = attn_drop
        self.v = nn.Linear(dim, dim, bias=qkv_bias)
        self.attn = nn.Linear(dim, num_heads * kernel_size**4)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """Apply outlook attention to ``x``, (B, H, W, C) to (B, H, W, C)."""
        centres = x
        if self.stride > 1:
            centres = F.avg_pool2d(x.permute(0, 3, 1, 2), self.stride, self.stride, ceil_mode=True).permute(0, 2, 3, 1)
        mixed = outlook_attention(
            self.v(x),
            self.attn(centres),
            self.num_heads,
            kernel_size=self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            scale=self.scale,
            dropout_p=self.attn_drop if self.training else 0.0,
        )
        return self.proj_drop(self.proj(mixed))

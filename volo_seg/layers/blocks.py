"""The residual blocks: outlooker (stride 8) and transformer (stride 16), both on NHWC token maps."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from volo_seg.layers.outlook_attention import OutlookAttention


class DropPath(nn.Module):
    """Drop a residual branch for whole samples with probability ``rate`` and rescale the rest, while training.

    Source: stochastic depth, arXiv 1603.09382.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Zero ``x`` (B, ...) for a random share of its samples."""
        if self.rate == 0.0 or not self.training:
            return x
        keep = 1.0 - self.rate
        kept = x.new_empty((x.shape[0],) + (1,) * (x.dim() - 1)).bernoulli_(keep)
        return x * (kept / keep)

    def extra_repr(self) -> str:
        """Show the rate in the printed model."""
        return f'rate={self.rate:.3f}'


class Mlp(nn.Module):
    """Linear, GELU, Linear over the last axis; the hidden width is ``mlp_ratio * dim``."""

    def __init__(self, dim: int, mlp_ratio: float) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token of ``x`` (..., C)."""
        return self.fc2(self.act(self.fc1(x)))


class SelfAttention(nn.Module):
    """Global multi-head attention over all tokens of a map, (B, H, W, C) to (B, H, W, C), without qkv bias."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f'dim={dim} is not a multiple of num_heads={num_heads}')
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Let every token of ``x`` attend to every token of its image."""
        b, h, w, c = x.shape
        qkv = self.qkv(x).reshape(b, h * w, 3, self.num_heads, c // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(b, h, w, c))


class Outlooker(nn.Module):
    """Outlook attention and an MLP, each normalised before and added after: (B, H, W, C), NHWC."""

    def __init__(self, dim: int, num_heads: int, *, mlp_ratio: float, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = OutlookAttention(dim, num_heads, kernel_size=3, padding=1, stride=2)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, mlp_ratio)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Encode fine local structure into the tokens ``x``."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Transformer(nn.Module):
    """Self-attention and an MLP, each normalised before and added after: (B, H, W, C), NHWC."""

    def __init__(self, dim: int, num_heads: int, *, mlp_ratio: float, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = SelfAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, mlp_ratio)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens ``x`` globally."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))

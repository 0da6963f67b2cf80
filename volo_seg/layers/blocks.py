"""The residual blocks of VOLO: outlooker (stage 1) and transformer (stages 2 to 4), on NHWC tokens."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from volo_seg.layers.outlook_attention import OutlookAttention


class DropPath(nn.Module):
    """Stochastic depth: in training, drop a residual branch of a sample with probability ``rate``, else rescale it.

    Source: arXiv 1603.09382.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Zero random samples of ``x`` (B, ...)."""
        if self.rate == 0.0 or not self.training:
            return x
        keep = 1.0 - self.rate
        kept = x.new_empty((x.shape[0],) + (1,) * (x.dim() - 1)).bernoulli_(keep)
        return x * (kept / keep)

    def extra_repr(self) -> str:
        """The rate, for ``repr``."""
        return f'rate={self.rate:.3f}'


class Mlp(nn.Module):
    """Linear, GELU, Linear over the last axis, of hidden width ``mlp_ratio * dim``."""

    def __init__(self, dim: int, mlp_ratio: float) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C)."""
        return self.fc2(self.act(self.fc1(x)))


class SelfAttention(nn.Module):
    """Multi-head self-attention over all tokens of an image, without qkv bias: (B, H, W, C) to (B, H, W, C)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f'dim={dim} is not a multiple of num_heads={num_heads}')
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        b, h, w, c = x.shape
        qkv = self.qkv(x).reshape(b, h * w, 3, self.num_heads, c // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(b, h, w, c))


class _Block(nn.Module):
    """A pre-norm residual block of ``attn`` and an MLP: (B, H, W, C) to (B, H, W, C), NHWC."""

    def __init__(self, dim: int, attn: nn.Module, *, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, mlp_ratio)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Outlooker(_Block):
    """Outlook attention (K = 3, stride 2) and an MLP: (B, H, W, C) to (B, H, W, C), NHWC."""

    def __init__(self, dim: int, num_heads: int, *, mlp_ratio: float, drop_path: float = 0.0) -> None:
        attn = OutlookAttention(dim, num_heads, kernel_size=3, padding=1, stride=2)
        super().__init__(dim, attn, mlp_ratio=mlp_ratio, drop_path=drop_path)


class Transformer(_Block):
    """Self-attention and an MLP: (B, H, W, C) to (B, H, W, C), NHWC."""

    def __init__(self, dim: int, num_heads: int, *, mlp_ratio: float, drop_path: float = 0.0) -> None:
        super().__init__(dim, SelfAttention(dim, num_heads), mlp_ratio=mlp_ratio, drop_path=drop_path)

"""The numbers of a call to outlook attention."""

from typing import NamedTuple

__all__ = ['Window']


class Window(NamedTuple):
    """Heads, kernel side, stride and padding in tokens, and the factor on logits before their softmax."""

    num_heads: int
    kernel_size: int
    stride: int
    padding: int
    scale: float

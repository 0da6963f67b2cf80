"""The table of VOLO variants."""

from __future__ import annotations

from typing import NamedTuple


class Signature(NamedTuple):
    """The hyperparameters that the shapes of a state dict determine; fields as in :class:`Architecture`."""

    depths: tuple[int, ...]
    embed_dims: tuple[int, ...]
    outlook_heads: int
    mlp_ratio: float
    stem_channels: int


class Architecture(NamedTuple):
    """The hyperparameters of a variant; the first of the four stages has outlookers, the others transformers.

    Attributes:
        depths: Blocks in each stage.
        embed_dims: Channels of each stage.
        num_heads: Attention heads of each stage.
        mlp_ratio: Hidden width of an MLP divided by its channels.
        stem_channels: Channels of the convolutions of the patch embedding.
    """

    depths: tuple[int, int, int, int]
    embed_dims: tuple[int, int, int, int]
    num_heads: tuple[int, int, int, int]
    mlp_ratio: float
    stem_channels: int

    @property
    def signature(self) -> Signature:
        """What ``volo_seg.checkpoints.describe`` returns for weights of this architecture."""
        return Signature(self.depths, self.embed_dims, self.num_heads[0], self.mlp_ratio, self.stem_channels)


VARIANTS = {
    'nano': Architecture((2, 2, 2, 2), (64, 128, 128, 128), (2, 4, 4, 4), 3, 16),
    'd1': Architecture((4, 4, 8, 2), (192, 384, 384, 384), (6, 12, 12, 12), 3, 64),
    'd2': Architecture((6, 4, 10, 4), (256, 512, 512, 512), (8, 16, 16, 16), 3, 64),
    'd3': Architecture((8, 8, 16, 4), (256, 512, 512, 512), (8, 16, 16, 16), 3, 64),
    'd4': Architecture((8, 8, 16, 4), (384, 768, 768, 768), (12, 16, 16, 16), 3, 64),
    'd5': Architecture((12, 12, 20, 4), (384, 768, 768, 768), (12, 16, 16, 16), 4, 128),
}
"""d1 to d5: arXiv 2106.13112, table 2, and sail-sg/volo commit cf35775. nano: of version 0.1 of this
project; the configs named nano have ``volo_seg.models.VOLONano``."""

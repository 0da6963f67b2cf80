"""Fold batch normalisation into convolutions, for inference."""

from __future__ import annotations

from mmcv.cnn import fuse_conv_bn
from torch import nn


def fuse(model: nn.Module) -> nn.Module:
    """Fold every batch normalisation that follows a convolution of ``model`` into it; in place, and returned.

    Results stay equal to rounding. The state dict loses the folded normalisations: load weights first.

    Raises:
        ValueError: ``model`` is in training mode, where batch normalisation is no constant.
    """
    if model.training:
        raise ValueError('fuse() needs a model in evaluation mode: call model.eval() first')
    return fuse_conv_bn(model)

"""Mixing of the low frequencies of images, their light and colours, within a batch."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.hooks import Hook
from mmseg.registry import HOOKS
from torch import Tensor

from volo_seg.errors import UserError


@HOOKS.register_module()
class FourierMixHook(Hook):
    """Mixes the amplitudes of the low frequencies of training images with those of another image of the batch.

    The phase, which has the shapes, and the labels stay. Amplitudes become (1 - r) A + r B, B those of the other image
    and r from U(0, ``strength``), at frequencies up to ``beta`` times the shorter side in both directions, channel by
    channel. Images of other sizes than their partner stay as they are. The numbers come from torch's generator, which
    ``IterationSeedHook`` seeds for each iteration. Source: arXiv 2004.05498, mixed as in arXiv 2105.14075.

    Args:
        prob: Share of the images that are changed.
        beta: Highest mixed frequency as a share of the shorter side, in (0, 0.5].
        strength: Largest share of the other image's amplitudes, in (0, 1].
    """

    priority = 'ABOVE_NORMAL'  # after the iteration is seeded, before a teacher sees the images

    def __init__(self, *, prob: float = 0.5, beta: float = 0.01, strength: float = 1.0) -> None:
        if not (0 <= prob <= 1 and 0 < beta <= 0.5 and 0 < strength <= 1):
            raise UserError(f'FourierMixHook: {prob=}, {beta=} or {strength=} is out of range; see its documentation')
        self.prob, self.beta, self.strength = prob, beta, strength

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Replace ``inputs`` of the batch, images (C, H, W) of 0..255."""
        images = list(data_batch['inputs'])
        order, chosen = torch.randperm(len(images)).tolist(), torch.rand(len(images)) < self.prob
        shares = torch.rand(len(images)).mul_(self.strength).tolist()
        mixed = [
            mix_amplitudes(image, images[other], share=share, beta=self.beta)
            if use and image.shape == images[other].shape
            else image
            for image, other, share, use in zip(images, order, shares, chosen, strict=True)
        ]
        stacked = isinstance(data_batch['inputs'], Tensor)
        data_batch['inputs'] = torch.stack(mixed) if stacked else mixed


def mix_amplitudes(image: Tensor, other: Tensor, *, share: float, beta: float) -> Tensor:
    """``image`` (C, H, W) with ``share`` of the low-frequency amplitudes of ``other``, in 0..255 and its dtype."""
    spectrum, theirs = (torch.fft.rfft2(one.float()) for one in (image, other))
    amplitude = spectrum.abs()
    height, width = image.shape[1:]
    most = int(beta * min(height, width))
    rows = torch.fft.fftfreq(height, 1 / height, device=image.device).abs().round() <= most
    columns = torch.arange(spectrum.shape[2], device=image.device) <= most
    low = rows[:, None] & columns
    changed = torch.where(low, torch.lerp(amplitude, theirs.abs(), share), amplitude)
    mixed = torch.fft.irfft2(torch.polar(changed, spectrum.angle()), s=(height, width)).clamp_(0, 255)
    return (mixed if image.is_floating_point() else mixed.round_()).to(image.dtype)

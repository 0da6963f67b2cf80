"""MixStyle: mixing of the channel statistics of features within a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.hooks import Hook
from mmseg.registry import HOOKS
from torch import Tensor, nn

from volo_seg.engine.resume import unwrap_model
from volo_seg.errors import UserError


@HOOKS.register_module()
class MixStyleHook(Hook):
    """Mixes means and standard deviations of early features with those of another image of the batch, in training.

    The output x of each of ``modules`` becomes (x - m) / s * (r s + (1 - r) s') + r m + (1 - r) m', with mean m and
    standard deviation s of each channel of each image, m' and s' those of another image, and r from
    Beta(``alpha``, ``alpha``); no gradient flows through the statistics. Evaluation and the weights are not affected.
    The numbers come from torch's generator, which ``IterationSeedHook`` seeds for each iteration.
    Source: arXiv 2104.02008.

    Args:
        modules: Names of modules of the model with outputs of four axes, such as ``'backbone.patch_embed'``.
        channels_last: Their outputs are (B, H, W, C), as inside VOLO; False for (B, C, H, W).
        prob: Share of the batches that are mixed.
        alpha: Parameter of the Beta distribution; small values give one of the two styles.
    """

    def __init__(
        self, *, modules: Sequence[str], channels_last: bool = True, prob: float = 0.5, alpha: float = 0.1
    ) -> None:
        if not 0 <= prob <= 1 or not alpha > 0:
            raise UserError(f'MixStyleHook: prob={prob} is not in [0, 1], or alpha={alpha} is not above 0')
        self.modules, self.prob = tuple(modules), prob
        self.axes = (1, 2) if channels_last else (2, 3)
        self.beta = torch.distributions.Beta(alpha, alpha)
        self.handles: list[Any] = []

    def before_train(self, runner: Any) -> None:
        """Let the modules mix.

        Raises:
            UserError: The model has no module of a name.
        """
        known = dict(unwrap_model(runner.model).named_modules())
        for name in self.modules:
            if name not in known:
                raise UserError(f'MixStyleHook: the model has no module {name!r}; name one, e.g. backbone.patch_embed')
            self.handles.append(known[name].register_forward_hook(self._mix))

    def after_train(self, runner: Any) -> None:
        """Leave the modules as they were."""
        while self.handles:
            self.handles.pop().remove()

    def _mix(self, module: nn.Module, inputs: Any, x: Tensor) -> Tensor:
        if not module.training or len(x) < 2 or torch.rand(()) >= self.prob:
            return x
        share = self.beta.sample((len(x), 1, 1, 1)).to(x)
        order = torch.randperm(len(x))
        mean = x.detach().mean(self.axes, keepdim=True)
        deviation = (x.detach().var(self.axes, keepdim=True) + 1e-6).sqrt()
        scale, offset = (share * own + (1 - share) * own[order] for own in (deviation, mean))
        return (x - mean) / deviation * scale + offset

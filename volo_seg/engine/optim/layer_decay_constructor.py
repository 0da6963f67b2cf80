"""Smaller learning rates for the layers nearer to the image."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmseg.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from volo_seg.errors import UserError

KEYS = ('decay_rate', 'norm_decay_mult', 'bias_decay_mult', 'custom_keys')
"""What ``paramwise_cfg`` may hold."""
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
BACKBONE = 'backbone.'

Group = dict[str, Any]


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class VOLOLayerDecayConstructor(DefaultOptimWrapperConstructor):
    """Layer-wise learning-rate decay for a segmentor on VOLO: ``lr * decay_rate ** (layers above)``.

    Layer 0 is the stem, layers 1..n are the blocks in the order of the forward pass, layer n + 1 (the full rate) is
    what stands above the backbone: neck, heads, the backbone's output norms. The downsampling and the position grid
    belong to the first block behind them. In a config::

        optim_wrapper = dict(constructor='VOLOLayerDecayConstructor', paramwise_cfg=dict(decay_rate=0.9))

    ``paramwise_cfg`` takes ``decay_rate`` in (0, 1]; ``norm_decay_mult`` and ``bias_decay_mult`` (0 unless given: norms
    and biases do not decay); ``custom_keys`` with ``lr_mult`` and ``decay_mult`` for parameters whose name holds the
    key, as in MMEngine. The position grid does not decay unless ``custom_keys`` say so. Frozen parameters are left
    out. The groups are printed once as a table.

    Raises:
        UserError: Another backbone, or a ``paramwise_cfg`` that is not understood.

    Source: arXiv 2106.08254 (layer-wise decay for fine-tuning).
    """

    def __init__(self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None) -> None:
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        unknown = sorted(set(self.paramwise_cfg) - set(KEYS))
        if unknown:
            raise UserError(f'optim_wrapper.paramwise_cfg: layer decay does not know {unknown[0]!r}; it takes {KEYS}')
        rate = self.paramwise_cfg.get('decay_rate')
        if not isinstance(rate, (int, float)) or not 0 < rate <= 1:
            raise UserError(
                f'optim_wrapper.paramwise_cfg.decay_rate={rate} is not in (0, 1]; usual values are 0.75 to 0.95'
            )
        self.rate = float(rate)

    def add_params(self, params: list[Group], module: nn.Module, prefix: str = '', is_dcn_module: Any = None) -> None:
        """Append to ``params`` one group for each learning rate and weight decay that occur in ``module``."""
        depths = _depths(module)
        groups: dict[tuple[int, float, float], Group] = {}
        undecayed = _undecayed(module, self.paramwise_cfg)
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            layer = layer_of(name, depths)
            scale = self.rate ** (sum(depths) + 1 - layer)
            lr_mult, decay_mult = self._multipliers(name, undecayed)
            key = (layer, scale * lr_mult, decay_mult)
            group = groups.setdefault(key, {'params': [], 'layer': layer, 'lr': self.base_lr * scale * lr_mult})
            if self.base_wd is not None:
                group['weight_decay'] = self.base_wd * decay_mult
            group['params'].append(parameter)
        # the heads first, as the log shows the rate of the first group
        params.extend(groups[key] for key in sorted(groups, reverse=True))
        if is_main_process():
            lines = table(params[::-1], depths)
            print_log(f'layer-wise learning rates, decay rate {self.rate:g}:\n{lines}', 'current')

    def _multipliers(self, name: str, undecayed: Mapping[str, float]) -> tuple[float, float]:
        """What the rate and the weight decay of the parameter ``name`` are multiplied by."""
        custom = self.paramwise_cfg.get('custom_keys') or {}
        # as in MMEngine: the longest key that fits, and nothing but it
        for key in sorted(sorted(custom), key=len, reverse=True):
            if key in name:
                return custom[key].get('lr_mult', 1.0), custom[key].get('decay_mult', 1.0)
        return 1.0, undecayed.get(name, 1.0)


def layer_of(name: str, depths: Sequence[int]) -> int:
    """The layer of the parameter ``name`` of a segmentor whose VOLO has ``depths`` blocks in its four stages."""
    above = sum(depths) + 1
    if not name.startswith(BACKBONE):
        return above
    name = name.removeprefix(BACKBONE)
    if name.startswith('patch_embed.'):
        return 0
    if name == 'pos_embed' or name.startswith('network.1.'):
        return depths[0] + 1
    block = re.match(r'network\.(\d+)\.(\d+)\.', name)
    if block is None:
        return above
    part, index = int(block[1]), int(block[2])
    stage = part if part == 0 else part - 1  # network.1 is the downsampling
    return sum(depths[:stage]) + index + 1


def table(groups: Sequence[Group], depths: Sequence[int]) -> str:
    """The groups, one line a layer and weight decay."""
    lines = [f'{"layer":<18}{"lr":>10}{"weight decay":>14}{"tensors":>9}{"parameters":>12}']
    for group in groups:
        count = sum(parameter.numel() for parameter in group['params'])
        decay = f'{group["weight_decay"]:.3g}' if 'weight_decay' in group else '-'
        where = f'{group["layer"]:>2} {_words(group["layer"], depths)}'
        lines.append(f'{where:<18}{group["lr"]:>10.3g}{decay:>14}{len(group["params"]):>9}{count:>12,}')
    return '\n'.join(lines)


def _words(layer: int, depths: Sequence[int]) -> str:
    if layer == 0:
        return 'stem'
    for stage in range(len(depths)):
        if layer <= sum(depths[: stage + 1]):
            return f'stage {stage + 1}, {layer - sum(depths[:stage])}'
    return 'heads'


def _depths(module: nn.Module) -> tuple[int, ...]:
    backbone = getattr(module, 'backbone', None)
    depths = getattr(getattr(backbone, 'arch', None), 'depths', None)
    if type(backbone).__name__ != 'VOLO' or depths is None:
        raise UserError(
            f'VOLOLayerDecayConstructor counts the layers of VOLO, and model.backbone is {type(backbone).__name__}; '
            'leave optim_wrapper.constructor out'
        )
    return tuple(depths)


def _undecayed(module: nn.Module, paramwise: Mapping[str, Any]) -> dict[str, float]:
    """Name -> factor of the weight decay for norms, biases and the position grid."""
    found = {f'{BACKBONE}pos_embed': 0.0}
    for prefix, part in module.named_modules():
        for key, _ in part.named_parameters(prefix=prefix, recurse=False):
            if isinstance(part, NORMS):
                found[key] = paramwise.get('norm_decay_mult', 0.0)
            elif key.endswith('.bias'):
                found[key] = paramwise.get('bias_decay_mult', 0.0)
    return found

"""Layer-wise learning-rate decay for VOLO: lower learning rates for layers closer to the input."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmseg.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from volo_seg.config.validation import find_type
from volo_seg.errors import UserError

KEYS = ('decay_rate', 'norm_decay_mult', 'bias_decay_mult', 'custom_keys')
"""Keys that ``paramwise_cfg`` accepts."""
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
BACKBONE = 'backbone.'

Group = dict[str, Any]


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class VOLOLayerDecayConstructor(DefaultOptimWrapperConstructor):
    """Builds parameter groups with the learning rate ``lr * decay_rate ** (layers above)`` for a VOLO segmentor.

    Layer 0 is the stem. Layers 1..n are the blocks in the order of the forward pass. Layer n + 1 has the full learning
    rate: neck, heads and the output norms of the backbone. The downsampling and the position embedding belong to the
    block that follows them. In a config::

        optim_wrapper = dict(constructor='VOLOLayerDecayConstructor', paramwise_cfg=dict(decay_rate=0.9))

    ``paramwise_cfg`` takes ``decay_rate`` in (0, 1]; ``norm_decay_mult`` and ``bias_decay_mult`` (default 0: no
    weight decay for norms and biases); ``custom_keys`` with ``lr_mult`` and ``decay_mult`` for parameters whose name
    contains the key, as in MMEngine. The position embedding has no weight decay unless ``custom_keys`` set one. Frozen
    parameters are in no group. The groups are logged as a table.

    Raises:
        UserError: The backbone is not VOLO, or ``paramwise_cfg`` has an unknown key or an invalid ``decay_rate``.

    Source: arXiv 2106.08254 (layer-wise decay for fine-tuning).
    """

    def __init__(self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None) -> None:
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        unknown = sorted(set(self.paramwise_cfg) - set(KEYS))
        if unknown:
            raise UserError(
                f'optim_wrapper.paramwise_cfg.{unknown[0]} is unknown to layer decay; use {", ".join(KEYS)}'
            )
        rate = self.paramwise_cfg.get('decay_rate')
        if not isinstance(rate, (int, float)) or not 0 < rate <= 1:
            raise UserError(
                f'optim_wrapper.paramwise_cfg.decay_rate={rate} is not in (0, 1]; usual values are 0.75 to 0.95'
            )
        self.rate = float(rate)

    def add_params(self, params: list[Group], module: nn.Module, prefix: str = '', is_dcn_module: Any = None) -> None:
        """Append one group to ``params`` for each layer, learning rate and weight decay of ``module``."""
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
        # heads first: the log shows the learning rate of the first group
        params.extend(groups[key] for key in sorted(groups, reverse=True))
        if is_main_process():
            lines = table(params[::-1], depths)
            print_log(f'layer-wise learning rates, decay rate {self.rate:g}:\n{lines}', 'current')

    def _multipliers(self, name: str, undecayed: Mapping[str, float]) -> tuple[float, float]:
        """Return the factors of learning rate and weight decay of the parameter ``name``."""
        custom = self.paramwise_cfg.get('custom_keys') or {}
        # as in MMEngine, only the longest matching key applies
        for key in sorted(sorted(custom), key=len, reverse=True):
            if key in name:
                return custom[key].get('lr_mult', 1.0), custom[key].get('decay_mult', 1.0)
        return 1.0, undecayed.get(name, 1.0)


def decay_layers(config: Config, rate: float) -> None:
    """Set layer-wise learning-rate decay with ``decay_rate=rate``.

    Raises:
        UserError: ``rate`` is outside (0, 1], the backbone is not VOLO, or the config has another constructor.
    """
    if not 0 < rate <= 1:
        raise UserError(f'--layer-decay {rate:g} is not in (0, 1]; usual values are 0.75 to 0.95')
    kind, constructor = config.model.backbone.get('type'), config.optim_wrapper.get('constructor')
    if kind != 'VOLO':
        raise UserError(f'--layer-decay needs model.backbone.type=VOLO, and the config has {kind!r}; remove the flag')
    if constructor not in (None, 'VOLOLayerDecayConstructor'):
        raise UserError(
            f'--layer-decay replaces optim_wrapper.constructor={constructor!r} of the config; remove one of them'
        )
    config.optim_wrapper.constructor = 'VOLOLayerDecayConstructor'
    config.optim_wrapper.paramwise_cfg = {**(config.optim_wrapper.get('paramwise_cfg') or {}), 'decay_rate': rate}


def check_constructor(config: Config) -> None:
    """Check that the optimizer wrapper constructor is registered and reads ``decay_rate`` if that is given.

    Raises:
        UserError: The constructor is not registered, or it ignores ``decay_rate``.
    """
    wrapper = config.optim_wrapper
    name, paramwise = wrapper.get('constructor'), wrapper.get('paramwise_cfg') or {}
    if isinstance(name, str) and find_type(name) is None:
        close = difflib.get_close_matches(name, OPTIM_WRAPPER_CONSTRUCTORS.module_dict, n=1)
        hint = f'; did you mean {close[0]!r}?' if close else ''
        raise UserError(f'optim_wrapper.constructor={name!r} is not registered{hint}')
    if 'decay_rate' in paramwise and name in (None, 'DefaultOptimWrapperConstructor'):
        raise UserError(
            'optim_wrapper.paramwise_cfg.decay_rate has no effect without a constructor that reads it; '
            "add optim_wrapper.constructor='VOLOLayerDecayConstructor', or use --layer-decay"
        )


def layer_of(name: str, depths: Sequence[int]) -> int:
    """Return the layer of the parameter ``name`` of a segmentor with VOLO, ``depths`` blocks in its four stages."""
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
    """Format the groups as a table, one line per group."""
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
    """Return the weight-decay factors of norms, biases and the position embedding by parameter name."""
    found = {f'{BACKBONE}pos_embed': 0.0}
    for prefix, part in module.named_modules():
        for key, _ in part.named_parameters(prefix=prefix, recurse=False):
            if isinstance(part, NORMS):
                found[key] = paramwise.get('norm_decay_mult', 0.0)
            elif key.endswith('.bias'):
                found[key] = paramwise.get('bias_decay_mult', 0.0)
    return found

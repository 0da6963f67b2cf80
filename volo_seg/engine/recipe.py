"""What the flags of training change in a config, in one place."""

from __future__ import annotations

import difflib

from mmengine.config import Config
from mmseg.registry import OPTIM_WRAPPER_CONSTRUCTORS

from volo_seg.config.losses import use_hard_pixels
from volo_seg.config.validation import find_type
from volo_seg.engine.hooks.compile_hook import check_compilation, use_compiled_backbone
from volo_seg.engine.hooks.early_stopping_hook import stop_early
from volo_seg.engine.hooks.ema_hook import use_ema
from volo_seg.engine.optim.accumulation import accumulate
from volo_seg.engine.optim.amp import enable_amp
from volo_seg.engine.optim.learning_rate import auto_scale_lr
from volo_seg.errors import UserError


def apply_recipe(
    config: Config,
    *,
    amp: str | None = None,
    accumulated: int | None = None,
    scale_lr: bool = False,
    layer_decay: float | None = None,
    ema: float | bool | None = None,
    patience: int | None = None,
    hard_pixels: bool = False,
    compiled: bool = False,
) -> None:
    """Change ``config`` by what is given; None and False leave it as it is.

    Args:
        config: Changed in place.
        amp: ``'auto'``, ``'bf16'`` or ``'fp16'``.
        accumulated: Batches of one optimizer step.
        scale_lr: Multiply the learning rate by the batch's share of the config's.
        layer_decay: Factor of the learning rate from layer to layer, in (0, 1].
        ema: Momentum of averaged weights; True for the default.
        patience: Evaluations without progress before the run ends.
        hard_pixels: Learn from hard pixels.
        compiled: Train with a compiled backbone.

    Raises:
        UserError: One of them cannot be had.
    """
    asked = amp, accumulated, layer_decay, ema, patience
    if config.get('optim_wrapper') is None:
        if scale_lr or hard_pixels or compiled or any(value is not None for value in asked):
            raise UserError('the config has no optim_wrapper; name one, or a config that has it')
        return
    if amp is not None:
        enable_amp(config, amp)
    if accumulated is not None:
        accumulate(config, accumulated)
    if scale_lr:
        auto_scale_lr(config)
    if layer_decay is not None:
        decay_layers(config, layer_decay)
    if ema is not None:
        use_ema(config, ema)
    if patience is not None:
        stop_early(config, patience)
    if hard_pixels:
        use_hard_pixels(config)
    check_compilation(config, asked=False)
    check_constructor(config)
    if compiled:
        use_compiled_backbone(config)


def check_constructor(config: Config) -> None:
    """Check that who builds the optimizer's groups exists and understands a decay rate.

    Raises:
        UserError: There is no such constructor, or ``decay_rate`` would be ignored.
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


def decay_layers(config: Config, rate: float) -> None:
    """Use layer-wise learning rates of ``rate``.

    Raises:
        UserError: ``rate`` is none, the backbone is not VOLO, or another constructor is in the config.
    """
    if not 0 < rate <= 1:
        raise UserError(f'--layer-decay {rate:g} is not in (0, 1]; usual values are 0.75 to 0.95')
    kind, constructor = config.model.backbone.get('type'), config.optim_wrapper.get('constructor')
    if kind != 'VOLO':
        raise UserError(f'--layer-decay counts the layers of VOLO, and model.backbone.type is {kind!r}; leave it out')
    if constructor not in (None, 'VOLOLayerDecayConstructor'):
        raise UserError(f'--layer-decay: the config has optim_wrapper.constructor={constructor!r}; take it out')
    config.optim_wrapper.constructor = 'VOLOLayerDecayConstructor'
    config.optim_wrapper.paramwise_cfg = {**(config.optim_wrapper.get('paramwise_cfg') or {}), 'decay_rate': rate}

"""Applies the recipe flags of ``volo-seg train`` to a config."""

from __future__ import annotations

import os
from collections.abc import Sequence

from mmengine.config import Config

from volo_seg.config.losses import choose_loss
from volo_seg.config.rare_classes import TEMPERATURE, paste_rare_classes, sample_rare_classes
from volo_seg.config.sizes import set_crop, set_scale
from volo_seg.engine.hooks.compile_hook import check_compilation, use_compiled_backbone
from volo_seg.engine.hooks.distillation_hook import use_teacher
from volo_seg.engine.hooks.early_stopping_hook import stop_early
from volo_seg.engine.hooks.ema_hook import use_ema
from volo_seg.engine.optim.amp import enable_amp
from volo_seg.engine.optim.batch_size import accumulate, auto_scale_lr
from volo_seg.engine.optim.layer_decay_constructor import check_constructor, decay_layers
from volo_seg.engine.schedule import set_batch_size, set_iterations, set_rate
from volo_seg.errors import UserError
from volo_seg.seeding import LARGEST_SEED
from volo_seg.windows import Size


def apply_recipe(
    config: Config,
    *,
    iterations: int | None = None,
    batch_size: int | None = None,
    rate: float | None = None,
    crop: Size | None = None,
    scale: Size | None = None,
    amp: str | None = None,
    accumulated: int | None = None,
    scale_lr: bool = False,
    layer_decay: float | None = None,
    ema: float | bool | None = None,
    patience: int | None = None,
    loss: str | None = None,
    rare_sampling: bool = False,
    sampling_temperature: float | None = None,
    copy_paste: bool = False,
    compiled: bool = False,
    teacher: Sequence[str] | None = None,
    temperature: float | None = None,
    teacher_weight: float | None = None,
) -> None:
    """Apply the given flags to ``config``; None and False change nothing.

    Args:
        config: Changed in place.
        iterations: Optimizer steps of the run; see :func:`.set_iterations`.
        batch_size: Images in a batch of one process.
        rate: Highest learning rate.
        crop: (height, width) of training crops in pixels.
        scale: (width, height) in pixels that images are resized to fit into.
        amp: ``'auto'``, ``'bf16'`` or ``'fp16'``.
        accumulated: Batches per optimizer step.
        scale_lr: Scale the learning rate to the images of an optimizer step.
        layer_decay: Factor of the learning rate from layer to layer, in (0, 1].
        ema: Momentum of the averaged weights; True for the default.
        patience: Validations without a better score before training stops.
        loss: Losses of the heads, a key of :data:`.CHOICES`.
        rare_sampling: Draw images with rare classes more often.
        sampling_temperature: How much more; see :class:`.RareClassDataset`.
        copy_paste: Paste regions of rare classes from other images.
        compiled: Train with a compiled backbone.
        teacher: Config and checkpoint of a network whose soft labels are learned too.
        temperature: Divisor of the logits of both networks.
        teacher_weight: Factor of the loss between them.

    Raises:
        UserError: A value is invalid, or this config or machine does not support it.
    """
    if crop is not None:
        set_crop(config, crop)
    if scale is not None:
        set_scale(config, scale)
    if rare_sampling:
        sample_rare_classes(config, temperature=TEMPERATURE if sampling_temperature is None else sampling_temperature)
    elif sampling_temperature is not None:
        raise UserError('--sampling-temperature is of --sampling rare; give both')
    if copy_paste:
        paste_rare_classes(config)
    asked = iterations, batch_size, rate, amp, accumulated, layer_decay, ema, patience, teacher, loss
    if config.get('optim_wrapper') is None:
        if scale_lr or compiled or any(value is not None for value in asked):
            raise UserError(
                'optim_wrapper is missing in the config, and the flags change it; add it, or use a config that has it'
            )
        return
    if ema is True:
        use_ema(config, ema)  # its momentum is for the length that the config has
    if iterations is not None:
        set_iterations(config, iterations)
    if batch_size is not None:
        set_batch_size(config, batch_size)
    if rate is not None:
        set_rate(config, rate)
    if amp is not None:
        enable_amp(config, amp)
    if accumulated is not None:
        accumulate(config, accumulated)
    if scale_lr:
        auto_scale_lr(config)
    if layer_decay is not None:
        decay_layers(config, layer_decay)
    if ema is not None and ema is not True:
        use_ema(config, ema)
    if patience is not None:
        stop_early(config, patience)
    if loss is not None:
        choose_loss(config, loss)
    check_compilation(config, asked=False)
    check_constructor(config)
    if teacher is not None:
        use_teacher(config, *teacher, temperature=temperature, weight=teacher_weight)
    elif temperature is not None or teacher_weight is not None:
        raise UserError('--temperature and --teacher-weight are of the loss of a teacher; name one by --teacher')
    if compiled:
        use_compiled_backbone(config)


def set_randomness(config: Config, *, seed: int | None, deterministic: bool) -> None:
    """Write ``--seed`` and ``--deterministic`` into ``config``.

    Raises:
        UserError: ``seed`` is outside 0..2**32 - 1.
    """
    settings = {'seed': None, **config.get('randomness', {})}
    if seed is not None:
        if not 0 <= seed <= LARGEST_SEED:
            raise UserError(f'--seed {seed} is outside 0..{LARGEST_SEED}; give one in this range')
        settings['seed'] = seed
    if deterministic:
        settings['deterministic'] = True
        config.env_cfg = {**config.get('env_cfg', {}), 'cudnn_benchmark': False}
        # cuBLAS reads it when CUDA is initialised
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    config.randomness = settings

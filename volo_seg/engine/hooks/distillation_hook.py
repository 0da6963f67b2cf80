"""Distillation: a trained network gives the soft labels from which another one learns too."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.model import revert_sync_batchnorm
from mmengine.structures import PixelData
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import HOOKS, MODELS
from mmseg.structures import SegDataSample

from volo_seg.checkpoints import load_file, load_segmentor_weights
from volo_seg.config.agreement import check_same_classes
from volo_seg.config.checks import fill_class_count
from volo_seg.config.load import load_config
from volo_seg.config.validation import find_type
from volo_seg.engine.resume import unwrap_model
from volo_seg.errors import UserError, prefixed

KIND = 'DistillationHook'


@HOOKS.register_module()
class DistillationHook(Hook):
    """Adds the logits of a teacher to each training batch, from which ``VOLOUPerHead`` and ``VOLOFCNHead`` learn.

    The heads add ``loss_distill`` to their losses: see :func:`.distillation_loss`. It has the factor ``weight`` and
    that of the head's other losses, and covers all pixels, also those whose label is ignored. The teacher sees the
    images of the batch through its own data preprocessor, in evaluation mode, without gradient and in the precision of
    the training. It is not a part of the model: checkpoints, averaged weights and prediction do not contain it.

    Args:
        teacher: The model config of the teacher; its ``init_cfg`` is not used.
        checkpoint: Its trained weights.
        temperature: Divisor of the logits of both networks.
        weight: Factor of the loss.
    """

    def __init__(
        self, *, teacher: dict[str, Any], checkpoint: str, temperature: float = 2.0, weight: float = 1.0
    ) -> None:
        if not temperature > 0 or not weight > 0:
            raise UserError(f'{KIND}: temperature={temperature} and weight={weight} must be above 0')
        self.config, self.checkpoint = teacher, checkpoint
        self.settings = {'temperature': temperature, 'weight': weight}

    def before_train(self, runner: Any) -> None:
        """Build the teacher.

        Raises:
            UserError: Its weights do not fit, or its classes are not those of the student.
        """
        with torch.random.fork_rng():
            teacher = revert_sync_batchnorm(MODELS.build(self.config))
        name = f'teacher {self.checkpoint!r}'
        meta = load_segmentor_weights(teacher, self.checkpoint)
        head, student = teacher.decode_head, unwrap_model(runner.model).decode_head
        if not isinstance(head, BaseDecodeHead):
            raise UserError(f'{name} has the decode head {type(head).__name__}, without logits; use an EncoderDecoder')
        if head.num_classes != student.num_classes:
            raise UserError(
                f'{name} has {head.num_classes} classes, and the network that it teaches has {student.num_classes}; '
                'use a teacher that was trained for the same classes'
            )
        taught = (getattr(runner.train_dataloader.dataset, 'metainfo', None) or {}).get('classes')
        known = (meta.get('dataset_meta') or {}).get('classes')
        if known and taught:
            check_same_classes(name, known, 'the training data', taught)
        self.teacher = teacher.to(get_device()).eval().requires_grad_(False)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Set ``teacher_logits`` of each data sample: ``data`` (C, h, w), and the settings as meta information."""
        samples, teacher = data_batch['data_samples'], self.teacher
        own = {'inputs': data_batch['inputs'], 'data_samples': [SegDataSample() for _ in samples]}
        inputs = teacher.data_preprocessor(own, training=True)['inputs']
        with torch.no_grad(), runner.optim_wrapper.optim_context(teacher):
            logits = teacher.decode_head.forward(teacher.extract_feat(inputs))
        for sample, one in zip(samples, logits, strict=True):
            sample.teacher_logits = PixelData(metainfo=self.settings, data=one)


def use_teacher(
    config: Config, teacher: str, checkpoint: str, *, temperature: float | None = None, weight: float | None = None
) -> None:
    """Let the network of ``config`` also learn from that of the config ``teacher`` with the weights ``checkpoint``.

    ``temperature`` and ``weight`` are those of :class:`DistillationHook`; None is its default.

    Raises:
        UserError: The teacher cannot be loaded, or the decode head of ``config`` does not learn from soft labels.
    """
    with prefixed('--teacher'):
        model = load_config(teacher).get('model')
        if model is None:
            raise UserError(f'config {teacher!r} has no model; give the config with which the teacher was trained')
        meta = load_file(checkpoint).get('meta') or {}
        fill_class_count(Config({'model': model}), (meta.get('dataset_meta') or {}).get('classes'))
        head = config.model.get('decode_head')
        kind = find_type(head.get('type')) if isinstance(head, dict) else None
        if not any(base.__name__ == 'ResizedLossMixin' for base in getattr(kind, '__mro__', ())):
            raise UserError(
                f'model.decode_head is {getattr(kind, "__name__", head)}, which does not learn from soft labels; use '
                'VOLOUPerHead or VOLOFCNHead'
            )
    size = (config.model.get('data_preprocessor') or {}).get('size')
    if size is not None and model.get('data_preprocessor'):
        model.data_preprocessor.size = size
    given = {'temperature': temperature, 'weight': weight}
    settings = {key: value for key, value in given.items() if value is not None}
    hook = dict(type=KIND, teacher=model, checkpoint=checkpoint, **settings)
    config.custom_hooks = [*(old for old in config.get('custom_hooks') or [] if old.get('type') != KIND), hook]

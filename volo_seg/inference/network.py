"""From a config and the content of a checkpoint to a network that is ready to predict."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS, MODELS
from torch import nn

from volo_seg.checkpoints import fit_segmentor_weights, load_file
from volo_seg.checkpoints.convert import unwrap
from volo_seg.checkpoints.mmengine_loaders import forbid_unpickling
from volo_seg.config.agreement import check_windows
from volo_seg.config.checks import check_config, fill_class_count
from volo_seg.config.untrusted import refuse_access, shown
from volo_seg.config.validation import accepted_keys, find_type, walk
from volo_seg.errors import UserError
from volo_seg.inference.onnx_card import MOST_CLASSES, MOST_NAME
from volo_seg.inference.pipeline import image_pipeline
from volo_seg.visualization import palette_array

SPARE_PARAMETERS = 2**20
"""Parameters that a network described by a checkpoint may have beyond twice what the checkpoint stores."""


@dataclass(frozen=True)
class Network:
    """A trained segmentor with what belongs to it: class names, colours (n, 3) in RGB, test pipeline.

    ``described_by`` is the file that its config came from if that was not given by the user.
    """

    model: nn.Module
    classes: tuple[str, ...]
    palette: np.ndarray
    pipeline: Compose
    described_by: str | None = None


def build_network(
    config: Config,
    content: Mapping[str, Any],
    *,
    name: str,
    described: Mapping[str, Any] | None = None,
    trusted: bool = True,
) -> Network:
    """Build the model of ``config`` with the weights of ``content``, which was read from the file ``name``.

    ``described`` holds ``classes`` and ``palette``; without it, those of the checkpoint are taken, else those of the
    config's data set. A model that tells one class from the rest has two classes. A config that the user did not give
    (``trusted=False``, from :func:`.safe_model_config`) is built without access to files, network and processes.

    Raises:
        UserError: The config cannot be used, or the checkpoint is of another model.
    """
    forbid_unpickling()
    init_default_scope('mmseg')
    if trusted:
        check_config(config, ('test',))
    dataset = config.test_dataloader.dataset
    meta = content.get('meta')
    in_checkpoint = meta.get('dataset_meta') if isinstance(meta, Mapping) else None
    in_checkpoint = in_checkpoint if isinstance(in_checkpoint, Mapping) else None
    described = described or in_checkpoint or describe_dataset(dataset)
    classes, palette = _names(described, name=name)
    fill_class_count(config, classes)
    forget_initial_weights(config.model)
    find_type('PackSegInputs')  # imports the registries' modules, before nothing may be opened any more
    limit = 2 * _stored_numbers(content, name=name) + SPARE_PARAMETERS
    with nullcontext() if trusted else refuse_access(name, most_parameters=limit):
        if not trusted:
            check_windows(config.model)
        model = revert_sync_batchnorm(MODELS.build(config.model))
        pipeline = image_pipeline(dataset.pipeline)
    fit_segmentor_weights(model, content, name=name)
    channels = model.decode_head.out_channels
    if channels == 1 and len(classes) == 1:
        classes, palette = ('background', *classes), np.concatenate([np.zeros((1, 3), np.uint8), palette])
    if max(channels, 2) != len(classes):
        raise UserError(f'{name} names {len(classes)} classes, and its model tells {max(channels, 2)} apart')
    model = model.eval().requires_grad_(False)
    return Network(model, classes, palette, pipeline, None if trusted else name)


def load_network(config: Config, checkpoint: str) -> Network:
    """Build the network of ``config`` with the weights of ``checkpoint``, or random weights of seed 0 for ``'none'``.

    Raises:
        UserError: The checkpoint does not exist or does not fit.
    """
    if checkpoint != 'none':
        return build_network(config, load_file(checkpoint), name=checkpoint)
    model = config.copy()
    forbid_unpickling()
    init_default_scope('mmseg')
    check_config(model, ('test',))
    fill_class_count(model, describe_dataset(model.test_dataloader.dataset)['classes'])
    forget_initial_weights(model.model)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state_dict = MODELS.build(model.model).state_dict()
    return build_network(config, {'state_dict': state_dict}, name='a network with random weights')


def describe_dataset(dataset: Mapping[str, Any]) -> Mapping[str, Any]:
    """Class names and palette of a data set's config, without its files."""
    return DATASETS.build({**dataset, 'lazy_init': True, 'pipeline': []}).metainfo


def forget_initial_weights(model: Any) -> None:
    """Take out of a model's config what would fetch weights to start from; a checkpoint replaces them all."""
    part: Any
    for _, part in walk(model, 'model'):
        kind = find_type(part['type'])
        takes = accepted_keys(kind) if callable(kind) else {}
        if 'init_cfg' in part:
            part['init_cfg'] = None
        if 'pretrained' in part or 'pretrained' in takes:
            on_by_default = 'pretrained' in takes and takes['pretrained'].default is True
            part['pretrained'] = False if on_by_default else None


def _stored_numbers(content: Mapping[str, Any], *, name: str) -> int:
    """How many numbers a checkpoint's tensors store; a view that repeats one number counts it once."""
    tensors = [t for t in unwrap(content, name=name)[0].values() if t.layout is torch.strided and not t.is_meta]
    return sum(min(t.numel(), t.untyped_storage().nbytes() // t.element_size()) for t in tensors)


def _names(described: Mapping[str, Any], *, name: str) -> tuple[tuple[str, ...], np.ndarray]:
    classes = class_names(described.get('classes'), name=name)
    return classes, palette_array(described.get('palette'), len(classes))


def class_names(classes: Any, *, name: str) -> tuple[str, ...]:
    """``classes`` of the file ``name``, unless they cannot be shown or are too many.

    Raises:
        UserError: ``classes`` is no list of names, or holds more or longer names than a data set has.
    """
    if not isinstance(classes, (list, tuple)) or not classes or not all(isinstance(c, str) for c in classes):
        raise UserError(f'{name} names no classes, and neither does its config: give a config with a data set')
    if len(classes) > MOST_CLASSES:
        raise UserError(f'{name} names {len(classes)} classes, more than {MOST_CLASSES}: give the config as well')
    for text in classes:
        if len(text) > MOST_NAME or not text.isprintable():
            raise UserError(
                f'{name} has a class named {shown(text)}, which is longer than {MOST_NAME} characters or '
                'cannot be printed: rename it'
            )
    return tuple(classes)

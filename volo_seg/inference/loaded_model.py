"""A model that is ready for prediction, built from a config and the content of a checkpoint."""

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
from volo_seg.imageio import Reading
from volo_seg.inference.onnx_metadata import MOST_CLASSES, MOST_NAME
from volo_seg.inference.pipeline import image_pipeline
from volo_seg.visualization import palette_array

SPARE_PARAMETERS = 2**20
"""Number of parameters that the config inside a checkpoint may ask for, beyond twice those that it stores."""


@dataclass(frozen=True)
class LoadedModel:
    """A trained segmentor with its class names, palette and test pipeline.

    Attributes:
        model: The segmentor in evaluation mode.
        classes: Class names.
        palette: (len(classes), 3) uint8, RGB.
        reading: How image files are read.
        pipeline: Makes the input of ``model.test_step`` from ``{'img': image}``.
        untrusted_config: The file that the config was read from, if the user did not give it; else None.
    """

    model: nn.Module
    classes: tuple[str, ...]
    palette: np.ndarray
    reading: Reading
    pipeline: Compose
    untrusted_config: str | None = None


def build_model(
    config: Config,
    content: Mapping[str, Any],
    *,
    name: str,
    dataset_meta: Mapping[str, Any] | None = None,
    trusted: bool = True,
) -> LoadedModel:
    """Build the model of ``config`` with the weights of a checkpoint.

    Args:
        config: A config with ``test_dataloader``; changed in place.
        content: Content of the checkpoint.
        name: File of the checkpoint, for messages.
        dataset_meta: ``classes`` and ``palette``; by default those in the checkpoint, else those of the test data set.
            A binary model with one class name gets a second class, the background.
        trusted: False for a config that the user did not give, as made by :func:`.safe_model_config`: the model is
            built without access to files, network and processes.

    Raises:
        UserError: The config is invalid, or the checkpoint is of another model.
    """
    forbid_unpickling()
    init_default_scope('mmseg')
    if trusted:
        check_config(config, ('test',))
    dataset = config.test_dataloader.dataset
    if dataset_meta is None:
        meta = content.get('meta')
        stored = meta.get('dataset_meta') if isinstance(meta, Mapping) else None
        dataset_meta = stored if isinstance(stored, Mapping) and stored else describe_dataset(dataset)
    classes = check_class_names(dataset_meta.get('classes'), name=name)
    palette = palette_array(dataset_meta.get('palette'), len(classes))
    fill_class_count(config, classes)
    forget_initial_weights(config.model)
    find_type('PackSegInputs')  # imports the modules of the registries while files can still be opened
    limit = 2 * _stored_numbers(content, name=name) + SPARE_PARAMETERS
    with nullcontext() if trusted else refuse_access(name, most_parameters=limit):
        if not trusted:
            check_windows(config.model)
        model = revert_sync_batchnorm(MODELS.build(config.model))
        reading, pipeline = image_pipeline(dataset.pipeline)
    fit_segmentor_weights(model, content, name=name)
    channels = model.decode_head.out_channels
    if channels == 1 and len(classes) == 1:
        classes, palette = ('background', *classes), np.concatenate([np.zeros((1, 3), np.uint8), palette])
    if max(channels, 2) != len(classes):
        raise UserError(
            f'{name} names {len(classes)} classes, but its model has {max(channels, 2)}: '
            'give the config it was trained with'
        )
    model = model.eval().requires_grad_(False)
    return LoadedModel(model, classes, palette, reading, pipeline, None if trusted else name)


def load_model(config: Config, checkpoint: str) -> LoadedModel:
    """Build the model of ``config`` with the weights of ``checkpoint``; ``'none'`` means random weights of seed 0.

    Raises:
        UserError: The checkpoint does not exist, or is of another model.
    """
    if checkpoint != 'none':
        return build_model(config, load_file(checkpoint), name=checkpoint)
    model = config.copy()
    forbid_unpickling()
    init_default_scope('mmseg')
    check_config(model, ('test',))
    fill_class_count(model, describe_dataset(model.test_dataloader.dataset)['classes'])
    forget_initial_weights(model.model)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state_dict = MODELS.build(model.model).state_dict()
    return build_model(config, {'state_dict': state_dict}, name='a network with random weights')


def describe_dataset(dataset: Mapping[str, Any]) -> Mapping[str, Any]:
    """Class names and palette of the data set with the config ``dataset``, whose files are not read."""
    return DATASETS.build({**dataset, 'lazy_init': True, 'pipeline': []}).metainfo


def forget_initial_weights(model: Any) -> None:
    """Remove pretrained weights from the config of a model, in place; a checkpoint replaces them."""
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
    """Number of elements that the tensors of a checkpoint store; an expanded view counts its storage only."""
    tensors = [t for t in unwrap(content, name=name)[0].values() if t.layout is torch.strided and not t.is_meta]
    return sum(min(t.numel(), t.untyped_storage().nbytes() // t.element_size()) for t in tensors)


def check_class_names(classes: Any, *, name: str) -> tuple[str, ...]:
    """Return the class names found in the file ``name`` as a tuple.

    Raises:
        UserError: ``classes`` is not a list of printable names, or the list or a name is too long.
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

"""Segment images in three lines of Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS, MODELS

from volo_seg.checkpoints import fit_segmentor_weights, load_file
from volo_seg.engine.checks import check_config, fill_class_count
from volo_seg.engine.config import load_config
from volo_seg.errors import UserError

from .images import read_image
from .result import Result


class Predictor:
    """A trained segmentor that takes images and gives labels at their own size.

    Args:
        config: Config file, name of a shipped config, or a loaded config.
        checkpoint: Trained weights; loaded without unpickling code.
        device: ``'auto'`` (a GPU if there is one), ``'cpu'``, ``'cuda'``, ``'cuda:1'``.
        cfg_options: ``key=value`` overrides of the config.

    Raises:
        UserError: No such config, checkpoint or device, or a checkpoint of another model.
    """

    def __init__(
        self,
        config: str | Config,
        checkpoint: str | Path,
        *,
        device: str = 'auto',
        cfg_options: Sequence[str] = (),
    ) -> None:
        loaded = load_config(config, cfg_options) if isinstance(config, str) else config
        init_default_scope('mmseg')
        check_config(loaded, ('test',))
        self.device = pick_device(device)
        content = load_file(checkpoint)
        dataset = loaded.test_dataloader.dataset
        described = content.get('meta', {}).get('dataset_meta') or describe_dataset(dataset)
        fill_class_count(loaded, described['classes'])
        self.model = revert_sync_batchnorm(MODELS.build(loaded.model))
        fit_segmentor_weights(self.model, content, name=str(checkpoint))
        self.model.to(self.device).eval()
        self.classes = tuple(described['classes'])
        self.palette = np.asarray(described['palette'], dtype=np.uint8)
        self.pipeline = Compose(image_pipeline(dataset.pipeline))

    def __call__(self, image: str | Path | np.ndarray) -> Result:
        """Segment a file, or an array (H, W, 3) uint8, BGR."""
        pixels = image if isinstance(image, np.ndarray) else read_image(image)
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
            raise UserError(f'image array is {pixels.dtype} {pixels.shape}; give uint8 (H, W, 3), BGR')
        packed = self.pipeline({'img': pixels})
        with torch.inference_mode():
            samples = self.model.test_step({'inputs': [packed['inputs']], 'data_samples': [packed['data_samples']]})
        labels = samples[0].pred_sem_seg.data.squeeze(0).cpu().numpy()
        kind = np.uint8 if len(self.classes) <= 256 else np.int32
        return Result(pixels, labels.astype(kind), self.classes, self.palette)


def pick_device(device: str) -> torch.device:
    """The device that ``device`` means; see :class:`Predictor`.

    Raises:
        UserError: It is unknown or not there.
    """
    if device == 'auto':
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        picked = torch.device(device)
    except RuntimeError as error:
        raise UserError(f'device {device!r} is not auto, cpu, cuda or cuda:N') from error
    if picked.type == 'cuda' and (picked.index or 0) >= torch.cuda.device_count():
        raise UserError(f'device {device!r} is not there: {torch.cuda.device_count()} GPUs are visible; use cpu')
    return picked


def describe_dataset(dataset: dict[str, Any]) -> dict[str, Any]:
    """Class names and palette of a data set's config, without its files."""
    return DATASETS.build({**dataset, 'lazy_init': True, 'pipeline': []}).metainfo


def image_pipeline(pipeline: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The test pipeline of a config for an image in memory: no file to read, no labels."""
    steps = [step for step in pipeline if step['type'] != 'LoadAnnotations']
    if not steps or steps[0]['type'] != 'LoadImageFromFile':
        raise UserError('the test pipeline of the config does not start with LoadImageFromFile')
    return [{**steps[0], 'type': 'LoadImageFromNDArray'}, *steps[1:]]

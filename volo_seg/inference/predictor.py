"""Prediction with a trained segmentor in PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike, fspath
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmseg.structures import SegDataSample
from torch import Tensor

from volo_seg.checkpoints import load_file
from volo_seg.config.load import load_config, parse_options
from volo_seg.config.text import config_text_of, parse_config_text
from volo_seg.config.untrusted import reason_of, safe_model_config
from volo_seg.errors import UserError
from volo_seg.inference.base import BasePredictor, Prediction
from volo_seg.inference.loaded_model import LoadedModel, build_model
from volo_seg.inference.pretrained import find_pretrained, read_pretrained
from volo_seg.models.resize.logit_source import label_confidence
from volo_seg.models.segmentors.lazy_logits import LazyLogits
from volo_seg.weights import DEFAULT, named

GPU_BATCH = 8
"""Default ``batch_size`` on a GPU."""
_ROWS = 64


class Predictor(BasePredictor):
    """Segments images with a trained segmentor; labels have the size of the image.

    The images of a batch do not influence each other, except for rounding: matrix products of other shapes add in
    another order, which changes probabilities by less than 1e-4, and labels only where two classes are that close.
    Batches of one image, the default on a CPU, are reproducible bit by bit.

    Args:
        config: Config file, name of a shipped config, or a config. Pretrained weights that it names are not fetched.
            A :class:`LoadedModel` is used as it is. With None, the config is read from the checkpoint, see
            :meth:`from_checkpoint`; the name of weights that ship with the package stands for them and their config.
        checkpoint: Trained weights (a path, a URL, or a name that ``volo-seg weights list`` prints), loaded without
            unpickling code. Where neither is given, the model that ships with the package is used.
        device: ``'auto'`` (a GPU if there is one), ``'cpu'``, ``'cuda'``, ``'cuda:1'``.
        cfg_options: ``key=value`` overrides of the config.
        batch_size: Largest number of images in one forward pass; by default 8 on a GPU, and 1 on a CPU, where only
            small images are faster in batches.
        confidence: Whether results hold the probability of each label (4 bytes per pixel).
        probabilities: Whether results hold the probabilities of all classes (4 bytes per pixel and class).

    Raises:
        UserError: The config, checkpoint or device does not exist, or the checkpoint is of another model.
    """

    def __init__(
        self,
        config: str | PathLike[str] | Config | LoadedModel | None = None,
        checkpoint: str | PathLike[str] | None = None,
        *,
        device: str = 'auto',
        cfg_options: Sequence[str] = (),
        batch_size: int | None = None,
        confidence: bool = False,
        probabilities: bool = False,
    ) -> None:
        self.device = select_device(device)
        loaded = config if isinstance(config, LoadedModel) else _load(config, checkpoint, cfg_options)
        size = (1 if self.device.type == 'cpu' else GPU_BATCH) if batch_size is None else batch_size
        super().__init__(
            loaded.classes,
            loaded.palette,
            reading=loaded.reading,
            batch_size=size,
            confidence=confidence,
            probabilities=probabilities,
        )
        self.model = loaded.model.to(self.device)
        self.pipeline = loaded.pipeline
        self.untrusted_config = loaded.untrusted_config

    @classmethod
    def from_checkpoint(cls, checkpoint: str | PathLike[str], **options: Any) -> Predictor:
        """Load weights with the config inside the file: a training checkpoint, or what ``volo-seg publish`` wrote.

        The config is read as plain values, and only known network parts are built from it: see
        :mod:`volo_seg.config.text` and :mod:`volo_seg.config.untrusted`.

        Args:
            checkpoint: The file, or the name of weights that ship with the package.
            options: Keyword arguments of :class:`Predictor`.

        Raises:
            UserError: The checkpoint has no config or no class names, or its config contains other parts.
        """
        return cls(_load_with_own_config(checkpoint), **options)

    @classmethod
    def from_pretrained(cls, folder: str | PathLike[str], *, revision: str | None = None, **options: Any) -> Predictor:
        """Load a published folder, or ``OWNER/NAME`` from the hub. Nothing in it is executed.

        Args:
            folder: The folder or hub id.
            revision: Branch, tag or commit on the hub.
            options: Keyword arguments of :class:`Predictor`.

        Raises:
            UserError: It does not exist, or its config contains other parts than known network parts.
        """
        published = read_pretrained(find_pretrained(fspath(folder), revision=revision))
        name = str(published.folder)
        loaded = build_model(
            safe_model_config(published.config, name=name),
            load_file(published.weights),
            name=name,
            dataset_meta={'classes': published.classes, 'palette': published.palette},
            trusted=False,
        )
        return cls(loaded, **options)

    def _prepare(self, image: np.ndarray) -> tuple[Hashable, Any]:
        with self._blame_config():
            packed = self.pipeline({'img': image})
            meta = packed['data_samples'].metainfo
        key = tuple(tuple(meta.get(word) or ()) for word in ('img_shape', 'pad_shape'))
        return (tuple(packed['inputs'].shape), *key), packed

    def _segment(self, batch: list[Any], *, confidence: bool, probabilities: bool) -> list[Prediction]:
        packed = {key: [item[key] for item in batch] for key in ('inputs', 'data_samples')}
        try:
            with self._blame_config(), torch.inference_mode():
                samples = self.model.test_step(packed)  # type: ignore[operator]
                return [self._predict(sample, confidence, probabilities) for sample in samples]
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            shape = 'x'.join(map(str, batch[0]['inputs'].shape[1:]))
            raise UserError(
                f'{len(batch)} image(s) of {shape} pixels do not fit into the memory of {self.device}; '
                "predict in windows (model.test_cfg.mode='slide'), or on a device with more memory"
            ) from error

    def _predict(self, sample: SegDataSample, confidence: bool, probabilities: bool) -> Prediction:
        """Copy the arrays out of ``sample``, a few rows of logits at a time.

        Probabilities are the softmax of the logits. The single channel of a binary head gives the sigmoid, which is the
        probability of the second class.
        """
        labels = sample.pred_sem_seg.data[0].to(torch.uint8 if len(self.classes) <= 256 else torch.int32)
        label_scores = np.empty(labels.shape, np.float32) if confidence else None
        class_scores = np.empty((len(self.classes), *labels.shape), np.float32) if probabilities else None
        for start, stop, logits in _logit_rows(sample.seg_logits) if confidence or probabilities else ():
            if class_scores is not None:
                if logits.shape[-1] > 1:
                    rows = logits.softmax(-1)
                else:
                    second = logits.sigmoid()
                    rows = torch.cat([1 - second, second], -1)
                class_scores[:, start:stop] = rows.permute(2, 0, 1).cpu().numpy()
            if label_scores is not None:
                label_scores[start:stop] = label_confidence(logits, labels[start:stop]).cpu().numpy()
        return Prediction(labels.cpu().numpy(), label_scores, class_scores)

    @contextmanager
    def _blame_config(self) -> Iterator[None]:
        """Turn an error at an image into a ``UserError`` if the config came from the checkpoint."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            if self.untrusted_config is None or _is_out_of_memory(error):
                raise
            raise UserError(
                f'the network that the config in {self.untrusted_config} describes fails on an image '
                f'({reason_of(error)}): give the config it was trained with'
            ) from error


def select_device(device: str) -> torch.device:
    """The device named ``device``; see :class:`Predictor`.

    Raises:
        UserError: It is unknown or does not exist.
    """
    if device == 'auto':
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        selected = torch.device(device)
    except RuntimeError as error:
        raise UserError(f'device {device!r} is not auto, cpu, cuda or cuda:N') from error
    if selected.type == 'cuda' and (selected.index or 0) >= torch.cuda.device_count():
        raise UserError(f'device {device!r} is not available: {torch.cuda.device_count()} GPUs are visible; use cpu')
    return selected


def _load(
    config: str | PathLike[str] | Config | None, checkpoint: str | PathLike[str] | None, cfg_options: Sequence[str]
) -> LoadedModel:
    if config is None or (checkpoint is None and isinstance(config, str) and named(config)):
        if cfg_options:
            raise UserError(
                f'cfg_options {" ".join(cfg_options)} override a config, and none is given; give the config'
            )
        return _load_with_own_config(checkpoint or config or DEFAULT)
    if checkpoint is None:
        raise UserError('a config needs a checkpoint; give one, or use Predictor.from_checkpoint(checkpoint)')
    if isinstance(config, Config):
        whole: Config = copy.deepcopy(config)
        whole.merge_from_dict(parse_options(cfg_options))
    else:
        whole = load_config(fspath(config), cfg_options)
    return build_model(whole, load_file(checkpoint), name=fspath(checkpoint))


def _load_with_own_config(checkpoint: str | PathLike[str]) -> LoadedModel:
    name, row = fspath(checkpoint), named(checkpoint)
    if row and not row.config:
        raise UserError(f'{name} is an {row.content}, which segments nothing: name it in init_cfg of a backbone')
    content = load_file(checkpoint)
    config = parse_config_text(config_text_of(content, name=name), name=name)
    return build_model(safe_model_config(config, name=name), content, name=name, trusted=False)


def _logit_rows(logits: Any) -> Iterator[tuple[int, int, Tensor]]:
    """Yield (first row, row after the last, logits (rows, W, channels)), float32 or float64."""
    if isinstance(logits, LazyLogits):
        yield from logits.rows()
        return
    data = logits.data
    if len(data) == 1:  # MMSegmentation has applied the sigmoid
        data = data.double().logit()
    for start in range(0, data.shape[1], _ROWS):
        part = data[:, start : start + _ROWS].permute(1, 2, 0)
        yield start, start + part.shape[0], part if part.dtype.itemsize >= 4 else part.float()


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)

"""Segment images in three lines of Python."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike, fspath
from typing import Any

import numpy as np
import torch
from mmengine.config import Config

from volo_seg.checkpoints import load_file
from volo_seg.config.load import load_config, parse_options
from volo_seg.config.text import config_text_of, parse_config_text
from volo_seg.config.untrusted import reason_of, safe_model_config
from volo_seg.errors import UserError
from volo_seg.inference.base import BasePredictor, Scores
from volo_seg.inference.network import Network, build_network
from volo_seg.inference.scores import scores_of

GPU_BATCH = 8


class Predictor(BasePredictor):
    """A trained segmentor that takes images and gives labels at their own size.

    An image's result does not depend on the images that share its batch, but for rounding: matrix products of other
    shapes add up in another order, which changes probabilities by less than 1e-4, and labels only where two classes
    tie as closely. Batches of one image, the default on a CPU, give the same bits each time.

    Args:
        config: Config file, name of a shipped config, or a loaded config. Weights that it names to start training
            from are not fetched.
        checkpoint: Trained weights; loaded without unpickling code.
        device: ``'auto'`` (a GPU if there is one), ``'cpu'``, ``'cuda'``, ``'cuda:1'``.
        cfg_options: ``key=value`` overrides of the config.
        batch_size: Images of equal size that go through the network together; by default 8 on a GPU, and 1 on a CPU,
            where only small images gain by more.
        confidence, probabilities: What each result has beside its labels. Confidence takes four bytes a pixel, and
            probabilities as much for every class.

    Raises:
        UserError: No such config, checkpoint or device, or a checkpoint of another model.
    """

    def __init__(
        self,
        config: str | PathLike[str] | Config,
        checkpoint: str | PathLike[str],
        *,
        device: str = 'auto',
        cfg_options: Sequence[str] = (),
        batch_size: int | None = None,
        confidence: bool = False,
        probabilities: bool = False,
    ) -> None:
        picked = pick_device(device)
        if isinstance(config, Config):
            config = copy.deepcopy(config)
            config.merge_from_dict(parse_options(cfg_options))
        else:
            config = load_config(fspath(config), cfg_options)
        network = build_network(config, load_file(checkpoint), name=fspath(checkpoint))
        self._set_up(network, picked, batch_size, confidence, probabilities)

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: str | PathLike[str],
        *,
        device: str = 'auto',
        batch_size: int | None = None,
        confidence: bool = False,
        probabilities: bool = False,
    ) -> Predictor:
        """A predictor from the checkpoint of a training run alone, by the config that it carries.

        That config is read as plain values, and only network parts that are known here are built from it: see
        :mod:`volo_seg.config.text` and :mod:`volo_seg.config.untrusted`.

        Raises:
            UserError: The checkpoint carries no config or no class names, or its config asks for anything else.
        """
        picked = pick_device(device)
        name = fspath(checkpoint)
        content = load_file(checkpoint)
        carried = parse_config_text(config_text_of(content, name=name), name=name)
        network = build_network(safe_model_config(carried, name=name), content, name=name, trusted=False)
        return cls.__new__(cls)._set_up(network, picked, batch_size, confidence, probabilities)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | PathLike[str],
        *,
        revision: str | None = None,
        device: str = 'auto',
        batch_size: int | None = None,
        confidence: bool = False,
        probabilities: bool = False,
    ) -> Predictor:
        """A predictor from a published folder, or from the hub by ``OWNER/NAME``; nothing in it is executed.

        Raises:
            UserError: There is none, or it asks for anything but network parts that are known here.
        """
        from volo_seg.inference.pretrained import find_pretrained, read_pretrained

        picked = pick_device(device)
        found = read_pretrained(find_pretrained(fspath(folder), revision=revision))
        described = {'classes': found.classes, 'palette': found.palette}
        config = safe_model_config(found.config, name=str(found.folder))
        network = build_network(
            config, load_file(found.weights), name=str(found.folder), described=described, trusted=False
        )
        return cls.__new__(cls)._set_up(network, picked, batch_size, confidence, probabilities)

    @classmethod
    def from_network(
        cls,
        network: Network,
        *,
        device: str = 'auto',
        batch_size: int | None = None,
        confidence: bool = False,
        probabilities: bool = False,
    ) -> Predictor:
        """A predictor of a network that is in memory already."""
        return cls.__new__(cls)._set_up(network, pick_device(device), batch_size, confidence, probabilities)

    def _set_up(
        self, network: Network, device: torch.device, batch_size: int | None, confidence: bool, probabilities: bool
    ) -> Predictor:
        size = (1 if device.type == 'cpu' else GPU_BATCH) if batch_size is None else batch_size
        super().__init__(
            network.classes, network.palette, batch_size=size, confidence=confidence, probabilities=probabilities
        )
        self.device = device
        self.model = network.model.to(device)
        self.pipeline = network.pipeline
        self.described_by = network.described_by
        return self

    @contextmanager
    def _one_sentence(self) -> Iterator[None]:
        """Turn what a config that came along with the weights gets wrong at an image into a ``UserError``."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            if self.described_by is None or _is_lack_of_memory(error):
                raise
            raise UserError(
                f'the network that the config in {self.described_by} describes fails on an image '
                f'({reason_of(error)}): give the config it was trained with'
            ) from error

    def _prepare(self, image: np.ndarray) -> tuple[Hashable, Any]:
        with self._one_sentence():
            packed = self.pipeline({'img': image})
            meta = packed['data_samples'].metainfo
        key = tuple(tuple(meta.get(word) or ()) for word in ('img_shape', 'pad_shape'))
        return (tuple(packed['inputs'].shape), *key), packed

    def _segment(self, batch: list[Any], *, confidence: bool, probabilities: bool) -> list[Scores]:
        packed = {key: [item[key] for item in batch] for key in ('inputs', 'data_samples')}
        try:
            with self._one_sentence(), torch.inference_mode():
                samples = self.model.test_step(packed)  # type: ignore[operator]
                return [
                    scores_of(sample, classes=len(self.classes), confidence=confidence, probabilities=probabilities)
                    for sample in samples
                ]
        except (RuntimeError, MemoryError) as error:
            if not _is_lack_of_memory(error):
                raise
            shape = 'x'.join(map(str, batch[0]['inputs'].shape[1:]))
            raise UserError(
                f'{len(batch)} image(s) of {shape} pixels do not fit into the memory of {self.device}; '
                "predict in windows (model.test_cfg.mode='slide'), or on a device with more"
            ) from error


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


def _is_lack_of_memory(error: BaseException) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)

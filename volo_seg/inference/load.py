"""From what a user names to a predictor."""

from __future__ import annotations

from os import PathLike, fspath
from pathlib import Path
from typing import Any

from volo_seg.errors import UserError
from volo_seg.inference.base import BasePredictor

WEIGHTS = ('.pth', '.pt', '.safetensors', '.tar', '.bin', '.ckpt')
"""Suffixes of weights: a file that is not there is no repository of the hub."""


def open_predictor(
    text: str | PathLike[str],
    *,
    config: str | PathLike[str] | None = None,
    device: str = 'auto',
    batch_size: int | None = None,
    confidence: bool = False,
    probabilities: bool = False,
) -> BasePredictor:
    """Open a model, by what ``text`` names.

    Args:
        text: ``.onnx`` opens an :class:`OnnxPredictor`; ``.pth``, ``.safetensors`` or the like, with ``config``, a
            :class:`Predictor`; a checkpoint of a training run also without, by the config that it carries; a published
            folder, or the hub's ``OWNER/NAME``, the predictor that it describes.
        config: Config file, or name of a shipped config.
        device: ``'auto'``, ``'cpu'``, ``'cuda'``, ``'cuda:N'``; an ONNX file goes by what onnxruntime offers.
        batch_size: Images that go through the network together at most; by default the predictor's choice.
        confidence: Whether results have the probability of each label.
        probabilities: Whether they have those of all classes.

    Raises:
        UserError: There is no such model, or it cannot be opened.
    """
    path = Path(text).expanduser()
    if path.suffix == '.onnx':
        if config is not None:
            raise UserError(f'{fspath(text)!r} needs no config, and {fspath(config)!r} was given; leave it out')
        from volo_seg.inference.onnx_predictor import OnnxPredictor

        return OnnxPredictor(
            path, device=device, batch_size=batch_size or 1, confidence=confidence, probabilities=probabilities
        )
    from volo_seg.inference.predictor import Predictor

    options: dict[str, Any] = {
        'device': device,
        'batch_size': batch_size,
        'confidence': confidence,
        'probabilities': probabilities,
    }
    if config is not None:
        return Predictor(config, path, **options)
    if path.is_file():
        return Predictor.from_checkpoint(path, **options)
    if path.suffix in WEIGHTS:
        raise UserError(f'checkpoint {fspath(text)!r} does not exist; mend the path')
    return Predictor.from_pretrained(text, **options)

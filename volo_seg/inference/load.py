"""Load a predictor by the name of a file, a folder, shipped weights or a hub repository."""

from __future__ import annotations

from os import PathLike, fspath
from pathlib import Path
from typing import Any

from volo_seg.errors import UserError
from volo_seg.inference.base import BasePredictor
from volo_seg.inference.exported_predictor import PREDICTORS, exported_predictor
from volo_seg.weights import DEFAULT, named

WEIGHTS = ('.pth', '.pt', '.safetensors', '.tar', '.bin', '.ckpt')
"""Suffixes of weights files; a missing file with one of them is not looked up on the hub."""


def load_predictor(
    name: str | PathLike[str] = DEFAULT,
    *,
    config: str | PathLike[str] | None = None,
    device: str = 'auto',
    batch_size: int | None = None,
    confidence: bool = False,
    probabilities: bool = False,
) -> BasePredictor:
    """Load an :class:`.ExportedPredictor` from an exported file, or a :class:`Predictor` from anything else.

    Args:
        name: A file of ``volo-seg export`` (``.onnx``, ``.xml``, ``.pt2``, ``.ts``); a weights file, which needs
            ``config`` unless it is the checkpoint of a training run or published; the name of weights that ship with
            the package (default); a published folder; or ``OWNER/NAME`` on the hub.
        config: Config file, or name of a shipped config.
        device: ``'auto'``, ``'cpu'``, ``'cuda'``, ``'cuda:N'``; for an exported file as its runtime supports it.
        batch_size: Largest number of images in one forward pass; by default that of the predictor.
        confidence: Whether results hold the probability of each label.
        probabilities: Whether results hold the probabilities of all classes.

    Raises:
        UserError: The model does not exist or cannot be loaded.
    """
    path = Path(name).expanduser()
    options: dict[str, Any] = {'device': device, 'confidence': confidence, 'probabilities': probabilities}
    if path.suffix in PREDICTORS:
        if config is not None:
            raise UserError(f'{fspath(name)!r} needs no config, and {fspath(config)!r} was given; leave it out')
        return exported_predictor(path)(path, batch_size=batch_size or 1, **options)
    from volo_seg.inference.predictor import Predictor

    options['batch_size'] = batch_size
    if config is not None:
        return Predictor(config, name if named(name) else path, **options)
    if path.is_file() or named(name):
        return Predictor.from_checkpoint(name if named(name) else path, **options)
    if path.suffix in WEIGHTS:
        raise UserError(f'checkpoint {fspath(name)!r} does not exist; correct the path')
    return Predictor.from_pretrained(name, **options)

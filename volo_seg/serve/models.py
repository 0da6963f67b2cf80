"""The models of a server and their names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volo_seg.errors import UserError
from volo_seg.inference.exported_predictor import PREDICTORS

if TYPE_CHECKING:
    from volo_seg.inference.base import BasePredictor

FILES = ('.pth', '.pt', '.safetensors', *PREDICTORS)


@dataclass(frozen=True)
class Model:
    """A predictor, its name in the API, and whether it gives confidences."""

    name: str
    predictor: BasePredictor
    confidence: bool = True


def open_models(
    texts: Sequence[str], *, configs: Sequence[str] = (), device: str = 'auto', batch_size: int | None = None
) -> list[Model]:
    """Open every checkpoint, in order.

    Args:
        texts: ``PATH`` or ``NAME=PATH`` of whatever :func:`volo_seg.inference.load_predictor` takes.
        configs: None, one for all, or one for each.
        device: See :class:`volo_seg.inference.Predictor`.
        batch_size: Images that go through a network together at most; by default the predictor's choice.

    Raises:
        UserError: A checkpoint does not open, two have one name, or the number of configs fits neither.
    """
    if len(configs) not in (0, 1, len(texts)):
        raise UserError(f'{len(configs)} configs for {len(texts)} checkpoints; give none, one, or one for each')
    named = [split_name(text) for text in texts]
    names = name_models(named)
    several: Sequence[str | None] = configs if len(configs) == len(texts) else [*configs, None][:1] * len(texts)
    return [
        open_model(path, name=name, config=config, device=device, batch_size=batch_size)
        for name, (_, path), config in zip(names, named, several, strict=True)
    ]


def open_model(
    path: str, *, name: str, config: str | None = None, device: str = 'auto', batch_size: int | None = None
) -> Model:
    """Open one checkpoint and segment a small grey image, so that a model that fails is reported at once.

    Raises:
        UserError: It does not open, or does not segment.
    """
    import numpy as np

    from volo_seg.inference import load_predictor

    predictor = load_predictor(path, config=config, device=device, batch_size=batch_size)
    image = np.full((64, 64, 3), 128, np.uint8)
    try:
        list(predictor.stream([image], confidence=True))
    except UserError:
        # exported files with the argmax inside give labels alone
        list(predictor.stream([image], confidence=False))
        return Model(name, predictor, confidence=False)
    return Model(name, predictor)


def describe_model(model: Model) -> dict[str, Any]:
    """Name, classes and abilities of a model, for JSON."""
    pairs = zip(model.predictor.classes, model.predictor.palette.tolist(), strict=True)
    classes = [{'id': i, 'name': name, 'colour': colour} for i, (name, colour) in enumerate(pairs)]
    return {'name': model.name, 'confidence': model.confidence, 'classes': classes}


def split_name(text: str) -> tuple[str | None, str]:
    """(name or None, path) of ``NAME=PATH``; a path that is there may hold ``=`` itself."""
    name, sign, path = text.partition('=')
    if not sign or not name or '/' in name or '\\' in name or Path(text).exists():
        return None, text
    return name, path


def name_models(named: Sequence[tuple[str | None, str]]) -> list[str]:
    """A name for each (name, path): its own, or the file's, with its folder where two files have one name.

    Raises:
        UserError: Two have the same name all the same.
    """
    paths = [Path(path) for _, path in named]
    names = [
        own or (path.stem if path.suffix in FILES else path.name) for (own, _), path in zip(named, paths, strict=True)
    ]
    twice = {name for name, count in Counter(names).items() if count > 1}
    names = [
        f'{path.parent.name}/{name}' if own is None and name in twice and path.parent.name else name
        for name, (own, _), path in zip(names, named, paths, strict=True)
    ]
    for name, count in Counter(names).items():
        if count > 1:
            raise UserError(f'{count} checkpoints would be called {name!r}; name them: A={paths[names.index(name)]}')
    return names

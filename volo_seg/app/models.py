"""The checkpoints of a page, and what each is called there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from volo_seg.errors import UserError

if TYPE_CHECKING:
    from volo_seg.inference.base import BasePredictor

FILES = ('.pth', '.pt', '.safetensors', '.onnx')


@dataclass(frozen=True)
class Model:
    """A predictor, the name that the page shows above its results, and whether it tells confidences."""

    name: str
    predictor: BasePredictor
    confidence: bool = True


def open_models(texts: Sequence[str], *, configs: Sequence[str] = (), device: str = 'auto') -> list[Model]:
    """Open every checkpoint, in order.

    Args:
        texts: ``PATH`` or ``NAME=PATH`` of whatever :func:`volo_seg.inference.open_predictor` takes.
        configs: None, one for all, or one for each.
        device: See :class:`volo_seg.inference.Predictor`.

    Raises:
        UserError: A checkpoint does not open, two have one name, or the number of configs fits neither.
    """
    if len(configs) not in (0, 1, len(texts)):
        raise UserError(f'{len(configs)} configs for {len(texts)} checkpoints; give none, one, or one for each')
    named = [split_name(text) for text in texts]
    names = name_models(named)
    several: Sequence[str | None] = configs if len(configs) == len(texts) else [*configs, None][:1] * len(texts)
    return [
        open_model(path, name=name, config=config, device=device)
        for name, (_, path), config in zip(names, named, several, strict=True)
    ]


def open_model(path: str, *, name: str, config: str | None = None, device: str = 'auto') -> Model:
    """Open one checkpoint, and try it on a small grey image: what cannot work says so before the page is served.

    Raises:
        UserError: It does not open, or does not segment.
    """
    import numpy as np

    from volo_seg.inference import open_predictor

    predictor = open_predictor(path, config=config, device=device)
    image = np.full((64, 64, 3), 128, np.uint8)
    try:
        list(predictor.stream([image], confidence=True))
    except UserError:
        # ONNX files with the argmax inside give labels alone
        list(predictor.stream([image], confidence=False))
        return Model(name, predictor, confidence=False)
    return Model(name, predictor)


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

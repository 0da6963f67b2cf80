"""From images and a checkpoint to labels, and from labels to files.

Nothing is imported before it is used: reading images and running ONNX files need neither torch nor MMSegmentation.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import BasePredictor
    from .images import read_image, write_image
    from .onnx_predictor import OnnxPredictor
    from .opening import open_predictor
    from .predictor import Predictor
    from .result import Failure, Result

__all__ = [
    'BasePredictor',
    'Failure',
    'OnnxPredictor',
    'Predictor',
    'Result',
    'open_predictor',
    'read_image',
    'write_image',
]
_PLACES = {
    'BasePredictor': 'base',
    'Failure': 'result',
    'OnnxPredictor': 'onnx_predictor',
    'Predictor': 'predictor',
    'Result': 'result',
    'open_predictor': 'opening',
    'read_image': 'images',
    'write_image': 'images',
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(f'{__name__}.{_PLACES[name]}'), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

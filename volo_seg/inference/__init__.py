"""Prediction: images to labels, and labels to files.

Submodules are imported on first use: reading images and running ONNX files need neither torch nor MMSegmentation.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from volo_seg.imageio import read_image, write_image
    from volo_seg.inference.base import BasePredictor
    from volo_seg.inference.load import load_predictor
    from volo_seg.inference.onnx_predictor import OnnxPredictor
    from volo_seg.inference.predictor import Predictor
    from volo_seg.inference.result import Failure, Result

__all__ = [
    'BasePredictor',
    'Failure',
    'OnnxPredictor',
    'Predictor',
    'Result',
    'load_predictor',
    'read_image',
    'write_image',
]
_MODULES = {
    'BasePredictor': '.base',
    'Failure': '.result',
    'OnnxPredictor': '.onnx_predictor',
    'Predictor': '.predictor',
    'Result': '.result',
    'load_predictor': '.load',
    'read_image': 'volo_seg.imageio',
    'write_image': 'volo_seg.imageio',
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(_MODULES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

"""From images and a checkpoint to labels, and from labels to files."""

from .images import read_image
from .predictor import Predictor
from .result import Result

__all__ = ['Predictor', 'Result', 'read_image']

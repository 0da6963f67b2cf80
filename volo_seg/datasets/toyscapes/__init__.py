"""Toyscapes: a generated street-scene data set in the layout of Cityscapes."""

from .scene import Scene, generate_scene
from .writer import write_toyscapes

__all__ = ['Scene', 'generate_scene', 'write_toyscapes']

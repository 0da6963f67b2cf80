"""Toyscapes: a generated street-scene data set in the layout of Cityscapes."""

from volo_seg.datasets.toyscapes.scene import Scene, generate_scene
from volo_seg.datasets.toyscapes.writer import write_toyscapes

__all__ = ['Scene', 'generate_scene', 'write_toyscapes']

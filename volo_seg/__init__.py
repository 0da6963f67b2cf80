"""VOLO semantic segmentation for MMSegmentation."""

__version__ = '0.1.0'

"""Registered data transforms."""

from .loading import LoadImageFromFile, LoadLabels

__all__ = ['LoadImageFromFile', 'LoadLabels']

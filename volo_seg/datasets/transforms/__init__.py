"""Registered data transforms."""

from .loading import LoadLabels

__all__ = ['LoadLabels']

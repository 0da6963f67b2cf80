"""Registered samplers of training data."""

from .resumable import ResumableEpochSampler, ResumableInfiniteSampler

__all__ = ['ResumableEpochSampler', 'ResumableInfiniteSampler']

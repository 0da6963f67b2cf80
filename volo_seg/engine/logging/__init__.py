"""The console, the run record and visualization backends."""

from .vis_backends import PlainMLflowVisBackend, StepWandbVisBackend

__all__ = ['PlainMLflowVisBackend', 'StepWandbVisBackend']

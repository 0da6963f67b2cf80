"""How a run is set up: configs by name, checks before anything is built, launchers, a runner that loads safely."""

from .amp import AutocastOptimWrapper
from .runner import SafeRunner

__all__ = ['AutocastOptimWrapper', 'SafeRunner']

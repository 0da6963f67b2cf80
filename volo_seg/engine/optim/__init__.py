"""Optimizer wrappers, optimizer constructors and learning-rate rules."""

from .accumulation import OptimizerStepSchedulerHook
from .amp import AutocastOptimWrapper
from .layer_decay_constructor import VOLOLayerDecayConstructor

__all__ = ['AutocastOptimWrapper', 'OptimizerStepSchedulerHook', 'VOLOLayerDecayConstructor']

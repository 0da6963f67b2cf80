"""Optimizer wrappers, optimizer constructors and the batch size of an optimizer step."""

from .amp import AutocastOptimWrapper
from .batch_size import OptimizerStepSchedulerHook
from .layer_decay_constructor import VOLOLayerDecayConstructor

__all__ = ['AutocastOptimWrapper', 'OptimizerStepSchedulerHook', 'VOLOLayerDecayConstructor']

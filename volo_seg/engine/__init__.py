"""How a run is set up: configs by name, checks before anything is built, the recipe, launchers, safe loading."""

from .accumulation import OptimizerStepSchedulerHook
from .amp import AutocastOptimWrapper
from .compilation import CompiledBackboneHook
from .console import ConsoleHook
from .contact_sheet import ContactSheetHook
from .early_stopping import PatienceHook
from .ema import AveragedWeightsHook
from .layer_decay import VOLOLayerDecayConstructor
from .runner import SafeRunner
from .trackers import PlainMLflowVisBackend, StepWandbVisBackend

__all__ = [
    'AutocastOptimWrapper',
    'AveragedWeightsHook',
    'CompiledBackboneHook',
    'ConsoleHook',
    'ContactSheetHook',
    'OptimizerStepSchedulerHook',
    'PatienceHook',
    'PlainMLflowVisBackend',
    'SafeRunner',
    'StepWandbVisBackend',
    'VOLOLayerDecayConstructor',
]

"""Training hooks, one a file."""

from .compile_hook import CompiledBackboneHook
from .console_hook import ConsoleHook
from .contact_sheet_hook import ContactSheetHook
from .early_stopping_hook import PatienceHook
from .ema_hook import AveragedWeightsHook

__all__ = ['AveragedWeightsHook', 'CompiledBackboneHook', 'ConsoleHook', 'ContactSheetHook', 'PatienceHook']

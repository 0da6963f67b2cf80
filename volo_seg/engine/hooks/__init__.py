"""Registered training hooks."""

from .checkpoint_hook import AtomicCheckpointHook
from .compile_hook import CompiledBackboneHook
from .console_hook import ConsoleHook
from .contact_sheet_hook import ContactSheetHook
from .data_record_hook import DataRecordHook
from .distillation_hook import DistillationHook
from .early_stopping_hook import ResumableEarlyStoppingHook
from .ema_hook import AveragedWeightsHook
from .fourier_mix_hook import FourierMixHook
from .interruption_hook import InterruptionHook, ignore_signals_in_worker
from .mix_style_hook import MixStyleHook
from .non_finite_hook import NonFiniteHook
from .reproducibility_hooks import IterationSeedHook, MissedValidationHook, ValidationSyncHook
from .training_score_hook import TrainingScoreHook

__all__ = [
    'AtomicCheckpointHook',
    'AveragedWeightsHook',
    'CompiledBackboneHook',
    'ConsoleHook',
    'ContactSheetHook',
    'DataRecordHook',
    'DistillationHook',
    'FourierMixHook',
    'InterruptionHook',
    'IterationSeedHook',
    'MissedValidationHook',
    'MixStyleHook',
    'NonFiniteHook',
    'ResumableEarlyStoppingHook',
    'TrainingScoreHook',
    'ValidationSyncHook',
    'ignore_signals_in_worker',
]

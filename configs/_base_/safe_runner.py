# The runner and its hooks; no key of MMSegmentation's own configs, so that it can stand beside one in `_base_`:
#     _base_ = ['my_mmseg_config.py', '.../_base_/safe_runner.py']
custom_imports = dict(imports=['volo_seg.register'], allow_failed_imports=False)
runner_type = 'SafeRunner'
custom_hooks = [
    dict(type='IterationSeedHook'),
    dict(type='ValidationSyncHook'),
    dict(type='MissedValidationHook'),
    dict(type='TrainingScoreHook'),
    dict(type='NonFiniteHook', patience=10),
    dict(type='DataRecordHook'),
    dict(type='InterruptionHook'),
    dict(type='ContactSheetHook', count=6),
    dict(type='ConsoleHook'),
]

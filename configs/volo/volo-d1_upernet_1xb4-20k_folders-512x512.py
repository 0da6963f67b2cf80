# One's own folders; the tools take the number of classes from the data set's class names.
_base_ = [
    '../_base_/models/upernet_volo.py',
    '../_base_/datasets/folders.py',
    '../_base_/schedules/adamw_20k.py',
    '../_base_/default_runtime.py',
    '../_base_/safe_runner.py',
]
data_preprocessor = dict(size=_base_.crop_size)
model = dict(data_preprocessor=data_preprocessor, backbone=dict(img_size=_base_.crop_size))

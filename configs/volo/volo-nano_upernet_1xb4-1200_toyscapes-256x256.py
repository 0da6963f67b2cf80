_base_ = [
    '../_base_/models/upernet_volo.py',
    '../_base_/datasets/toyscapes.py',
    '../_base_/schedules/adamw_demo.py',
    '../_base_/default_runtime.py',
    '../_base_/safe_runner.py',
]
data_preprocessor = dict(size=_base_.crop_size)
model = dict(
    data_preprocessor=data_preprocessor,
    backbone=_base_.variants.nano.backbone,
    decode_head=dict(_base_.variants.nano.decode_head, num_classes=_base_.num_classes),
    auxiliary_head=dict(_base_.variants.nano.auxiliary_head, num_classes=_base_.num_classes),
)

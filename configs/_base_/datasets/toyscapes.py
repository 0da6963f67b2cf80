# Toyscapes: generated street scenes in the layout and with the 19 classes of Cityscapes (volo-seg toyscapes).
_base_ = './cityscapes.py'
crop_size = (256, 256)
scale = (512, 256)
sizes = dict(
    RandomResize=dict(scale=scale, ratio_range=(0.75, 1.5)),
    RandomCrop=dict(crop_size=crop_size),
    Resize=dict(scale=scale),
)
train_pipeline = [dict(t, **sizes.get(t.type, {})) for t in _base_.train_pipeline if t.type != 'PhotoMetricDistortion']
test_pipeline = [dict(t, **sizes.get(t.type, {})) for t in _base_.test_pipeline]
data_root = 'data/toyscapes'
train_dataloader = dict(
    batch_size=4, num_workers=2, dataset=dict(dataset=dict(data_root=data_root, pipeline=train_pipeline))
)
auto_scale_lr = dict(base_batch_size=4)
val_dataloader = dict(num_workers=1, dataset=dict(data_root=data_root, pipeline=test_pipeline))
test_dataloader = val_dataloader

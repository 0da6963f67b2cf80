# nano starts from nothing, so its learning rate is higher.
_base_ = './volo-d1_upernet_1xb4-20k_folders-512x512.py'
crop_size = (256, 256)
scale = (512, 256)
data_preprocessor = dict(size=crop_size)
model = dict(
    data_preprocessor=data_preprocessor,
    backbone=dict(_base_.variants.nano.backbone, img_size=crop_size),
    decode_head=_base_.variants.nano.decode_head,
    auxiliary_head=_base_.variants.nano.auxiliary_head,
)
sizes = dict(RandomResize=dict(scale=scale), RandomCrop=dict(crop_size=crop_size), Resize=dict(scale=scale))
train_pipeline = [dict(t, **sizes.get(t.type, {})) for t in _base_.train_pipeline]
test_pipeline = [dict(t, **sizes.get(t.type, {})) for t in _base_.test_pipeline]
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=train_pipeline)))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=1e-3))

# nano starts from the model that ships; its classification layers start anew for other classes.
_base_ = './volo-d1_upernet_1xb4-20k_folders-512x512.py'
crop_size = (256, 256)
data_preprocessor = dict(size=crop_size)
model = dict(
    data_preprocessor=data_preprocessor,
    backbone=_base_.variants.nano.backbone,
    decode_head=_base_.variants.nano.decode_head,
    auxiliary_head=_base_.variants.nano.auxiliary_head,
)
sizes = dict(RandomCrop=dict(crop_size=crop_size))
train_pipeline = [dict(t, **sizes.get(t.type, {})) for t in _base_.train_pipeline]
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=train_pipeline)))
optim_wrapper = dict(optimizer=dict(lr=2e-3))
load_from = 'volo-nano_toyscapes'

_base_ = './volo-d1_upernet_8xb1-160k_cityscapes-1024x1024.py'
crop_size = (512, 1024)
data_preprocessor = dict(size=crop_size)
model = dict(
    data_preprocessor=data_preprocessor,
    backbone=dict(img_size=crop_size),
    test_cfg=dict(crop_size=crop_size, stride=(384, 768)),
)
train_pipeline = [dict(t, crop_size=crop_size) if t.type == 'RandomCrop' else t for t in _base_.train_pipeline]
train_dataloader = dict(batch_size=2, dataset=dict(dataset=dict(pipeline=train_pipeline)))
auto_scale_lr = dict(base_batch_size=16)

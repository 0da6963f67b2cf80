# iSAID, in patches of 896x896.
_base_ = './volo-d1_upernet_8xb2-160k_ade20k-512x512.py'
num_classes = 16
crop_size = (896, 896)
sizes = dict(RandomResize=dict(scale=crop_size), RandomCrop=dict(crop_size=crop_size), Resize=dict(scale=crop_size))
train_pipeline = [dict(t, **sizes.get(t.type, {})) for t in _base_.train_pipeline]
test_pipeline = [dict(t, **sizes.get(t.type, {})) for t in _base_.test_pipeline]
data_preprocessor = dict(size=crop_size)
data = dict(type='iSAIDDataset', data_root='data/iSAID')
train = dict(**data, data_prefix=dict(img_path='img_dir/train', seg_map_path='ann_dir/train'), pipeline=train_pipeline)
val = dict(**data, data_prefix=dict(img_path='img_dir/val', seg_map_path='ann_dir/val'), pipeline=test_pipeline)
train_dataloader = dict(dataset=dict(dataset=train))
val_dataloader = dict(dataset=val)
test_dataloader = val_dataloader
model = dict(
    data_preprocessor=data_preprocessor,
    backbone=dict(img_size=crop_size),
    decode_head=dict(num_classes=num_classes),
    auxiliary_head=dict(num_classes=num_classes),
)

# Mapillary Vistas v2.0.
_base_ = './volo-d1_upernet_8xb2-160k_cityscapes-512x1024.py'
num_classes = 124
data = dict(type='MapillaryDataset_v2', data_root='data/mapillary')
train = dict(**data, data_prefix=dict(img_path='training/images', seg_map_path='training/v2.0/labels'))
val = dict(**data, data_prefix=dict(img_path='validation/images', seg_map_path='validation/v2.0/labels'))
train_dataloader = dict(dataset=dict(dataset=train))
val_dataloader = dict(dataset=val)
test_dataloader = val_dataloader
model = dict(decode_head=dict(num_classes=num_classes), auxiliary_head=dict(num_classes=num_classes))

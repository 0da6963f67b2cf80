# DRIVE: vessels and background.
_base_ = './volo-d1_upernet_8xb2-160k_ade20k-512x512.py'
num_classes = 2
data = dict(type='DRIVEDataset', data_root='data/DRIVE')
train = dict(**data, data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'))
val = dict(**data, data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'))
train_dataloader = dict(dataset=dict(dataset=train))
val_dataloader = dict(dataset=val)
test_dataloader = val_dataloader
model = dict(decode_head=dict(num_classes=num_classes), auxiliary_head=dict(num_classes=num_classes))

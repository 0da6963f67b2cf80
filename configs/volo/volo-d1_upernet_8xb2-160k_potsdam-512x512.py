# ISPRS Potsdam (label 0 = border, ignored).
_base_ = './volo-d1_upernet_8xb2-160k_ade20k-512x512.py'
num_classes = 6
data = dict(type='PotsdamDataset', data_root='data/potsdam')
train = dict(**data, data_prefix=dict(img_path='img_dir/train', seg_map_path='ann_dir/train'))
val = dict(**data, data_prefix=dict(img_path='img_dir/val', seg_map_path='ann_dir/val'))
train_dataloader = dict(dataset=dict(dataset=train))
val_dataloader = dict(dataset=val)
test_dataloader = val_dataloader
model = dict(decode_head=dict(num_classes=num_classes), auxiliary_head=dict(num_classes=num_classes))

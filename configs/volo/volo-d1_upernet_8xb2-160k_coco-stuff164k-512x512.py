# COCO-Stuff 164k, labels converted by MMSegmentation.
_base_ = './volo-d1_upernet_8xb2-160k_ade20k-512x512.py'
num_classes = 171
data = dict(type='COCOStuffDataset', data_root='data/coco_stuff164k')
train = dict(**data, data_prefix=dict(img_path='images/train2017', seg_map_path='annotations/train2017'))
val = dict(**data, data_prefix=dict(img_path='images/val2017', seg_map_path='annotations/val2017'))
train_dataloader = dict(dataset=dict(dataset=train))
val_dataloader = dict(dataset=val)
test_dataloader = val_dataloader
model = dict(decode_head=dict(num_classes=num_classes), auxiliary_head=dict(num_classes=num_classes))

# PASCAL VOC 2012.
_base_ = './volo-d1_upernet_8xb2-160k_ade20k-512x512.py'
num_classes = 21
data = dict(type='PascalVOCDataset', data_root='data/VOCdevkit/VOC2012')
train = dict(
    **data,
    data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),
    ann_file='ImageSets/Segmentation/train.txt',
)
val = dict(
    **data,
    data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),
    ann_file='ImageSets/Segmentation/val.txt',
)
train_dataloader = dict(dataset=dict(dataset=train))
val_dataloader = dict(dataset=val)
test_dataloader = val_dataloader
model = dict(decode_head=dict(num_classes=num_classes), auxiliary_head=dict(num_classes=num_classes))

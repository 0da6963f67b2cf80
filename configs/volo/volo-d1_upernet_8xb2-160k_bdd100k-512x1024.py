# BDD100K, the 19 classes of Cityscapes.
_base_ = './volo-d1_upernet_8xb2-160k_cityscapes-512x1024.py'
num_classes = 19
data = dict(type='BDD100KDataset', data_root='data/bdd100k')
train = dict(**data, data_prefix=dict(img_path='images/10k/train', seg_map_path='labels/sem_seg/masks/train'))
val = dict(**data, data_prefix=dict(img_path='images/10k/val', seg_map_path='labels/sem_seg/masks/val'))
train_dataloader = dict(dataset=dict(dataset=train))
val_dataloader = dict(dataset=val)
test_dataloader = val_dataloader
model = dict(decode_head=dict(num_classes=num_classes), auxiliary_head=dict(num_classes=num_classes))

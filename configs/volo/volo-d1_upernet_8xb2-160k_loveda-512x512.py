# LoveDA (label 0 = no data, ignored).
_base_ = './volo-d1_upernet_8xb2-160k_ade20k-512x512.py'
num_classes = 7
test_pipeline = [dict(t, scale=(1024, 1024)) if t.type == 'Resize' else t for t in _base_.test_pipeline]
data = dict(type='LoveDADataset', data_root='data/loveDA')
train = dict(**data, data_prefix=dict(img_path='img_dir/train', seg_map_path='ann_dir/train'))
val = dict(**data, data_prefix=dict(img_path='img_dir/val', seg_map_path='ann_dir/val'), pipeline=test_pipeline)
train_dataloader = dict(dataset=dict(dataset=train))
val_dataloader = dict(dataset=val)
test_dataloader = val_dataloader
model = dict(decode_head=dict(num_classes=num_classes), auxiliary_head=dict(num_classes=num_classes))

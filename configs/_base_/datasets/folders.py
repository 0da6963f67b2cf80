# One's own data: <data_root>/images/{train,val}, <data_root>/annotations/{train,val}, <data_root>/classes.txt.
_base_ = './segmentation.py'
crop_size = (512, 512)
scale = (1024, 512)
sizes = dict(RandomResize=dict(scale=scale), RandomCrop=dict(crop_size=crop_size), Resize=dict(scale=scale))
train_pipeline = [dict(t, **sizes.get(t.type, {})) for t in _base_.train_pipeline]
test_pipeline = [dict(t, **sizes.get(t.type, {})) for t in _base_.test_pipeline]
dataset_type = 'FolderDataset'
data_root = 'data/folders'
train_dataloader = dict(
    batch_size=4,
    num_workers=2,
    dataset=dict(
        dataset=dict(
            type=dataset_type,
            data_root=data_root,
            data_prefix=dict(img_path='images/train', seg_map_path='annotations/train'),
            pipeline=train_pipeline,
        )
    ),
)
auto_scale_lr = dict(base_batch_size=4)
val_dataloader = dict(
    num_workers=2,
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path='images/val', seg_map_path='annotations/val'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

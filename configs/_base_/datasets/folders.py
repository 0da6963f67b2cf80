# One's own data: <data_root>/images/{train,val}, <data_root>/annotations/{train,val}, <data_root>/classes.txt.
_base_ = './segmentation.py'
crop_size = (512, 512)
# `volo-seg train` measures the images and shrinks the crop to them
crop_from_data = True
sizes = dict(
    # factors of each image's own size; tests run at that size
    RandomResize=dict(scale=None, _scope_='volo_seg'),
    RandomCrop=dict(crop_size=crop_size),
)
train_pipeline = [dict(t, **sizes.get(t.type, {})) for t in _base_.train_pipeline]
own_size = dict(type='Resize', scale_factor=1.0, keep_ratio=True)
test_pipeline = [own_size if t.type == 'Resize' else t for t in _base_.test_pipeline]
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

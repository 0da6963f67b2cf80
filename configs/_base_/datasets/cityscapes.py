# Cityscapes: run tools/dataset_converters/cityscapes.py first, it writes the labelTrainIds.
_base_ = './segmentation.py'
crop_size = (1024, 1024)
scale = (2048, 1024)
num_classes = 19
sizes = dict(RandomResize=dict(scale=scale), RandomCrop=dict(crop_size=crop_size), Resize=dict(scale=scale))
train_pipeline = [dict(t, **sizes.get(t.type, {})) for t in _base_.train_pipeline]
test_pipeline = [dict(t, **sizes.get(t.type, {})) for t in _base_.test_pipeline]
dataset_type = 'CityscapesDataset'
data_root = 'data/cityscapes/'
train_dataloader = dict(
    batch_size=1,
    dataset=dict(
        dataset=dict(
            type=dataset_type,
            data_root=data_root,
            data_prefix=dict(img_path='leftImg8bit/train', seg_map_path='gtFine/train'),
            pipeline=train_pipeline,
        )
    ),
)
auto_scale_lr = dict(base_batch_size=8)
val_dataloader = dict(
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path='leftImg8bit/val', seg_map_path='gtFine/val'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

# ADE20K, the 150 classes of the scene parsing benchmark (label 0 = other, not trained, not evaluated).
_base_ = './segmentation.py'
crop_size = (512, 512)
scale = (2048, 512)
num_classes = 150
sizes = dict(RandomResize=dict(scale=scale), RandomCrop=dict(crop_size=crop_size), Resize=dict(scale=scale))
train_pipeline = [dict(t, **sizes.get(t.type, {})) for t in _base_.train_pipeline]
test_pipeline = [dict(t, **sizes.get(t.type, {})) for t in _base_.test_pipeline]
dataset_type = 'ADE20KDataset'
data_root = 'data/ade/ADEChallengeData2016'
train_dataloader = dict(
    batch_size=2,
    dataset=dict(
        dataset=dict(
            type=dataset_type,
            data_root=data_root,
            data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
            pipeline=train_pipeline,
        )
    ),
)
auto_scale_lr = dict(base_batch_size=16)
val_dataloader = dict(
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

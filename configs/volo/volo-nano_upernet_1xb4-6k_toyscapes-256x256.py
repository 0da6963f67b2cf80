# The weights that ship with the package, for real photos, from scenes of the random style (tools/train_weights.sh).
_base_ = './volo-nano_upernet_1xb4-1200_toyscapes-256x256.py'
max_iters = 6000
sizes = dict(RandomResize=dict(scale=_base_.scale, ratio_range=(0.5, 2.0)), RandomCrop=dict(crop_size=_base_.crop_size))
train_pipeline = [dict(t, **sizes.get(t.type, {})) for t in _base_.train_pipeline]
train_pipeline.insert(-1, dict(type='PhotoMetricDistortion'))
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=train_pipeline)))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=100),
    dict(type='PolyLR', eta_min=0.0, power=1.0, begin=100, end=max_iters, by_epoch=False),
]
train_cfg = dict(max_iters=max_iters, val_interval=2000)
default_hooks = dict(logger=dict(interval=50), checkpoint=dict(interval=500))

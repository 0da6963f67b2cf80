# A short schedule for small data and a CPU: a higher rate, a short warm-up, clipped gradients.
_base_ = './adamw_160k.py'
max_iters = 1200
optim_wrapper = dict(optimizer=dict(lr=2e-3), clip_grad=dict(max_norm=1.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=60),
    dict(type='PolyLR', eta_min=0.0, power=1.0, begin=60, end=max_iters, by_epoch=False),
]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=max_iters))

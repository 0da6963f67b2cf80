# VOLO + UPerNet on the backbone's own strides (8, 16, 16, 16). A data set names `num_classes` and `crop_size`.
norm_cfg = dict(type='SyncBN', requires_grad=True)
loss = dict(type='CrossEntropyLoss', use_sigmoid=False)
data_preprocessor = dict(
    type='SegDataPreProcessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    pad_val=0,
    seg_pad_val=255,
)
model = dict(
    type='VOLOSegmentor',
    data_preprocessor=data_preprocessor,
    backbone=dict(
        type='VOLO',
        arch='d1',
        drop_path_rate=0.1,
        norm_cfg=norm_cfg,
        init_cfg=dict(type='Pretrained', checkpoint='volo_d1_384'),
    ),
    decode_head=dict(
        type='VOLOUPerHead',
        in_channels=[192, 384, 384, 384],
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=512,
        dropout_ratio=0.1,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(loss_weight=1.0, **loss),
    ),
    auxiliary_head=dict(
        type='VOLOFCNHead',
        in_channels=384,
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(loss_weight=0.4, **loss),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)

# One row a variant, each from the official ImageNet weights of the highest resolution. Drop path of d1..d3 as in the
# paper's ImageNet training, of d4 and d5 our choice. nano is this project's own.
variants = dict(
    d2=dict(
        backbone=dict(arch='d2', drop_path_rate=0.2, init_cfg=dict(checkpoint='volo_d2_384')),
        decode_head=dict(in_channels=[256, 512, 512, 512]),
        auxiliary_head=dict(in_channels=512),
    ),
    d3=dict(
        backbone=dict(arch='d3', drop_path_rate=0.5, init_cfg=dict(checkpoint='volo_d3_448')),
        decode_head=dict(in_channels=[256, 512, 512, 512]),
        auxiliary_head=dict(in_channels=512),
    ),
    d4=dict(
        backbone=dict(arch='d4', drop_path_rate=0.5, init_cfg=dict(checkpoint='volo_d4_448')),
        decode_head=dict(in_channels=[384, 768, 768, 768]),
        auxiliary_head=dict(in_channels=768),
    ),
    d5=dict(
        backbone=dict(arch='d5', drop_path_rate=0.5, init_cfg=dict(checkpoint='volo_d5_512')),
        decode_head=dict(in_channels=[384, 768, 768, 768]),
        auxiliary_head=dict(in_channels=768),
    ),
    # a network of its own for CPUs: convolutions and outlook attention, maps of strides 8, 16, 32
    nano=dict(
        backbone=dict(_delete_=True, type='VOLONano', out_indices=(1, 2, 3), norm_cfg=norm_cfg),
        decode_head=dict(in_channels=[64, 64, 128], in_index=[0, 1, 2], channels=48),
        auxiliary_head=dict(in_channels=64, in_index=0, channels=32),
    ),
    pyramid=dict(neck=dict(type='VOLOPyramid', in_channels=[192, 384, 384, 384], norm_cfg=norm_cfg)),
)

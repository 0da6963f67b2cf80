"""The heads and necks of MMSegmentation run on VOLO: stock configs with another backbone and narrower heads."""

import importlib.util

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint, save_checkpoint
from mmseg.models import decode_heads
from mmseg_models import TINY, build, load_model, make_batch, narrow, with_backbone

from volo_seg.config.agreement import check_channels
from volo_seg.config.validation import check_names, walk
from volo_seg.errors import UserError

PYRAMID = dict(type='VOLOPyramid')
OPERATORS = importlib.util.find_spec('mmcv._ext') is not None
DETECTION = OPERATORS and importlib.util.find_spec('mmdet') is not None

# name: (config of MMSegmentation, class of the head, changes)
CASES = {
    'ANN': ('_base_/models/ann_r50-d8', 'ANNHead', {}),
    'APC': ('_base_/models/apcnet_r50-d8', 'APCHead', {}),
    'ASPP': ('_base_/models/deeplabv3_r50-d8', 'ASPPHead', {}),
    'DA': ('_base_/models/danet_r50-d8', 'DAHead', {}),
    'DM': ('_base_/models/dmnet_r50-d8', 'DMHead', {}),
    'DNL': ('_base_/models/dnl_r50-d8', 'DNLHead', {}),
    'EMA': ('_base_/models/emanet_r50-d8', 'EMAHead', {}),
    'Enc': ('_base_/models/encnet_r50-d8', 'EncHead', {}),
    'FCN': ('_base_/models/fcn_r50-d8', 'FCNHead', {}),
    'FPN': ('_base_/models/fpn_r50', 'FPNHead', {'decode_head.feature_strides': [8, 16, 16, 16]}),
    'FPN on a pyramid': ('_base_/models/fpn_r50', 'FPNHead', {'neck': PYRAMID}),
    'GC': ('_base_/models/gcnet_r50-d8', 'GCHead', {}),
    'ISA': ('_base_/models/isanet_r50-d8', 'ISAHead', {}),
    'JPU, PSP': ('_base_/models/fastfcn_r50-d32_jpu_psp', 'PSPHead', {}),
    'KNet, UPer': ('knet/knet-s3_r50-d8_upernet_8xb2-adamw-80k_ade20k-512x512', 'IterativeDecodeHead', {}),
    'LightHam': ('segnext/segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512', 'LightHamHead', {}),
    'LRASPP': (
        '_base_/models/lraspp_m-v3-d8',
        'LRASPPHead',
        {'decode_head.in_index': (0, 0, 0), 'decode_head.in_channels': (16,) * 3},
    ),  # pools 49 x 49 tokens
    'MultiLevelNeck, UPer': ('_base_/models/upernet_vit-b16_ln_mln', 'UPerHead', {}),
    'NL': ('_base_/models/nonlocal_r50-d8', 'NLHead', {}),
    'OCR': ('_base_/models/ocrnet_r50-d8', 'OCRHead', {}),
    'PSP': ('_base_/models/pspnet_r50-d8', 'PSPHead', {}),
    'Segformer': ('_base_/models/segformer_mit-b0', 'SegformerHead', {}),
    'Segmenter': ('_base_/models/segmenter_vit-b16_mask', 'SegmenterMaskTransformerHead', {}),
    'separable ASPP': ('_base_/models/deeplabv3plus_r50-d8', 'DepthwiseSeparableASPPHead', {}),
    'separable FCN': ('_base_/models/fast_scnn', 'DepthwiseSeparableFCNHead', {}),
    'SETR-MLA': (
        '_base_/models/setr_mla',
        'SETRMLAHead',
        {
            'decode_head.in_index': (0, 1, 2),
            'decode_head.in_channels': [32] * 3,
            'decode_head.channels': 24,
            'auxiliary_head.3.in_index': 2,
        },
    ),
    'SETR-UP': ('_base_/models/setr_pup', 'SETRUPHead', {}),
    'STDC': ('_base_/models/stdc', 'STDCHead', {}),
    'UPer': ('_base_/models/upernet_r50', 'UPerHead', {}),
    'UPer on a pyramid': ('_base_/models/upernet_swin', 'UPerHead', {'neck': PYRAMID}),
    'CC': ('_base_/models/ccnet_r50-d8', 'CCHead', {}),
    'Point': ('_base_/models/pointrend_r50', 'PointHead', {}),
    'PSA': ('_base_/models/psanet_r50-d8', 'PSAHead', {}),
    'Mask2Former': ('mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024', 'Mask2FormerHead', {}),
    'MaskFormer': (
        'maskformer/maskformer_r50-d32_8xb2-160k_ade20k-512x512',
        'MaskFormerHead',
        {'decode_head.out_channels': 32},
    ),
}
NANO_CASES = ('FPN', 'Segformer', 'separable ASPP', 'UPer')
NEEDS = {'CC': OPERATORS, 'Point': OPERATORS, 'PSA': OPERATORS, 'Mask2Former': DETECTION, 'MaskFormer': DETECTION}
OTHERS = {
    'DDRHead': 'reads the two branches of DDRNet',
    'DPTHead': 'reads the class token of a ViT',
    'PIDHead': 'reads the three branches of PIDNet',
    'SideAdapterCLIPHead': 'reads the features of CLIP',
    'VPDDepthHead': 'predicts depth',
}


def make_model(case, backbone, side):
    path, kind, changes = CASES[case]
    config = Config(dict(model=load_model(path)))
    if 'neck' in changes:
        config.model.neck = dict(changes['neck'])
    narrow(with_backbone(config.model, backbone))
    config.merge_from_dict({f'model.{key}': value for key, value in changes.items()})
    model = config.model
    model.data_preprocessor.size = (side, side)
    model.test_cfg = dict(model.test_cfg, mode='whole')
    assert kind in [node['type'] for _, node in walk(model, 'model')]
    return model


def train_step(model, optimizer, batch):
    torch.manual_seed(3)
    losses = model.train_step(batch, optimizer)
    assert losses and all(torch.isfinite(value).all() for value in losses.values()), losses


def run_case(case, backbone, tmp_path):
    """Two steps, a prediction; the second step again from a checkpoint written after the first."""
    init_default_scope('mmseg')
    side = 392 if case == 'LRASPP' else 64
    config = make_model(case, backbone, side)
    check_names(Config(dict(model=config, default_scope='mmseg')), ())
    check_channels(config)
    classes = max(node.get('num_classes', 0) for _, node in walk(config, 'model'))
    batch = make_batch(side, classes)
    model = build(config)
    optimizer = OptimWrapper(torch.optim.AdamW(model.parameters(), lr=1e-3))
    gradients = {}
    for name, parameter in model.backbone.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda p, name=name: gradients.update({name: p.grad.clone()}))
    train_step(model.train(), optimizer, batch)
    assert all(torch.isfinite(value).all() for value in gradients.values())
    stem = next(name for name, _ in model.backbone.named_parameters() if name.endswith('conv.weight') or '.0.' in name)
    assert gradients[stem].abs().max() > 0
    file = str(tmp_path / 'step1.pth')
    save_checkpoint(dict(state_dict=model.state_dict(), optimizer=optimizer.state_dict()), file)
    train_step(model, optimizer, batch)

    resumed = build(config)
    loaded = load_checkpoint(resumed, file, strict=True)
    optimizer = OptimWrapper(torch.optim.AdamW(resumed.parameters(), lr=1e-3))
    optimizer.load_state_dict(loaded['optimizer'])
    train_step(resumed.train(), optimizer, batch)
    for name, value in model.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name

    with torch.no_grad():
        (result,) = model.eval().test_step(make_batch(side, classes, count=1))
    assert result.pred_sem_seg.data.shape == (1, side, side)
    assert result.pred_sem_seg.data.min() >= 0 and result.pred_sem_seg.data.max() < classes


@pytest.mark.parametrize('case', CASES)
def test_head_on_volo(case, tmp_path):
    if not NEEDS.get(case, True):
        pytest.skip('needs MMDetection and the compiled operators of MMCV')
    run_case(case, dict(TINY), tmp_path)


@pytest.mark.parametrize('case', NANO_CASES)
def test_head_on_volo_nano(case, tmp_path):
    run_case(case, dict(type='VOLONano'), tmp_path)


def test_channels_of_a_list_of_necks():
    maps = [16, 32, 32, 32]
    necks = [dict(PYRAMID, in_channels=maps), dict(type='FPN', in_channels=[16, 32, 32, 64])]
    model = dict(
        backbone=TINY, neck=necks, decode_head=dict(type='FPNHead', in_channels=[8] * 4, in_index=[0, 1, 2, 3])
    )
    with pytest.raises(UserError, match=r'model.neck.1.in_channels=.* but model.neck.0 gives \[16, 32, 32, 32\]'):
        check_channels(model)
    necks[1]['in_channels'] = maps
    check_channels(model)
    del necks[1]
    with pytest.raises(UserError, match=r'model.decode_head.in_channels=.* but model.neck.0 gives'):
        check_channels(model)


def test_every_head_of_mmsegmentation_is_tried():
    tried = {kind for _, kind, _ in CASES.values()}
    assert tried | OTHERS.keys() == set(decode_heads.__all__) - {'BaseDecodeHead', 'KernelUpdateHead', 'KernelUpdator'}

"""Models of MMSegmentation's own configs with a VOLO in place of their backbone, and with few channels."""

from pathlib import Path

import mmseg
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

from volo_seg.config.agreement import heads
from volo_seg.models import VOLO, VOLONano

CONFIGS = Path(mmseg.__file__).parent / '.mim' / 'configs'
TINY = dict(
    type='VOLO',
    arch=dict(depths=(1,) * 4, embed_dims=(16, 32, 32, 32), num_heads=(1, 2, 2, 2), mlp_ratio=1.0, stem_channels=8),
    img_size=64,
)
NARROW = dict(
    branch_channels=(8, 8),
    c1_channels=8,
    channels=32,
    down_factor=(2, 2),
    ema_channels=32,
    embed_dims=32,
    feat_channels=32,
    feedforward_channels=32,
    ham_channels=32,
    isa_channels=8,
    mask_size=(3, 3),
    mla_channels=8,
    num_bases=8,
    num_codes=4,
    num_feats=16,
    num_heads=2,
    num_layers=1,
    num_points=16,
    num_queries=5,
    ocr_channels=8,
    pam_channels=8,
    project_channels=8,
)
"""Sizes of heads; a head that has one of these keys takes it from here."""


def load_model(config):
    """The model of MMSegmentation's config ``config``, a path in its folder of configs without ``.py``."""
    return Config.fromfile(str(CONFIGS / f'{config}.py')).model


def with_backbone(model, backbone):
    """Give ``model`` the ``backbone``, and neck and heads its channels; heads behind another neck keep theirs."""
    neck = model.get('neck')
    if neck and neck['type'] in ('JPU', 'MLANeck'):  # the latter adds maps of one size
        backbone = dict(backbone, out_indices=(1, 2, 3))
    maps = {'VOLO': VOLO, 'VOLONano': VOLONano}[backbone['type']].out_channels_of(backbone)
    model.pop('pretrained', None)
    model.backbone = backbone
    if neck:
        neck['in_channels'] = tuple(maps) if neck['type'] == 'JPU' else list(maps)
    if not neck or neck['type'] == 'VOLOPyramid':
        for _, head in heads(model):
            _fit(head.get('kernel_generate_head', head), maps)  # KNet's head contains another
    return model


def _fit(head, maps):
    index = head.get('in_index', -1)
    many = isinstance(index, (list, tuple)) or head['type'] == 'Mask2FormerHead'
    index = index if isinstance(index, (list, tuple)) else range(len(maps)) if many else index
    head['in_channels'] = [maps[i] for i in index] if many else maps[index]
    if 'c1_in_channels' in head:  # DeepLabV3+ reads the first map too
        head['c1_in_channels'] = maps[0]


def narrow(model):
    """Give the heads of ``model``, and a neck, few channels."""
    for _, head in heads(model):
        _narrow(head)
    neck = model.get('neck')
    if neck and neck['type'] != 'VOLOPyramid':
        neck.update(mid_channels=8) if neck['type'] == 'JPU' else neck.update(out_channels=32)
        for _, head in heads(model):
            given = head['in_channels']
            head['in_channels'] = [32] * len(given) if isinstance(given, (list, tuple)) else 32
    return model


def _narrow(node):
    if isinstance(node, dict):
        for key, value in node.items():
            if key in NARROW:
                node[key] = NARROW[key]
            else:
                _narrow(value)
        if node.get('type') in ('KernelUpdateHead', 'KernelUpdator'):
            node.update(in_channels=NARROW['channels'], out_channels=NARROW['channels'])
    elif isinstance(node, (list, tuple)):
        for part in node:
            _narrow(part)


def build(model):
    """Build ``model`` with initialised weights, and plain batch normalisation for SyncBN."""
    built = revert_sync_batchnorm(MODELS.build(model))
    built.init_weights()
    return built


def make_batch(side, classes, *, count=2):
    """Random images ``side`` x ``side`` and labels below ``classes``, as a data loader gives them."""
    size = dict(img_shape=(side, side), ori_shape=(side, side), pad_shape=(side, side), padding_size=[0] * 4)
    labels = torch.randint(0, classes, (count, 1, 2, 2)).repeat_interleave(side // 2, 2).repeat_interleave(side // 2, 3)
    return dict(
        inputs=list(torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8)),
        data_samples=[SegDataSample(metainfo=size, gt_sem_seg=PixelData(data=each)) for each in labels],
    )

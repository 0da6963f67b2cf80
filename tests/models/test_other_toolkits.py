"""VOLO in stock configs of MMDetection and MMPretraining: a training step and a prediction each.

The packages are not part of the ``test`` extra. MMDetection also needs an MMCV that is built with its operators.
"""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

PAGE = Path(__file__).parents[2] / 'docs' / 'heads.md'


@pytest.fixture(autouse=True)
def _restore_scope():
    yield
    init_default_scope('mmseg')


def load(name, package, base, tmp_path):
    """The model of the config ``name`` in the documentation, on top of the stock config ``base`` of ``package``."""
    path = Path(importlib.util.find_spec(package).origin).parent / '.mim' / 'configs' / f'{base}.py'
    text = re.search(rf'^# configs/\w+/{name}\.py\n(.*?)^```', PAGE.read_text(), re.M | re.S)[1]
    text, changed = re.subn(r"_base_ = '.*'", f"_base_ = '{path}'", text)
    assert changed == 1
    (tmp_path / 'config.py').write_text(text)
    config = Config.fromfile(str(tmp_path / 'config.py'))
    config.model.backbone.update(init_cfg=None, img_size=64)  # no download
    init_default_scope(package)
    return config.model


def train_step(model, batch):
    gradients = []
    first = model.backbone.patch_embed.conv[0].weight
    first.register_post_accumulate_grad_hook(lambda p: gradients.append(p.grad.clone()))
    optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-3))
    losses = model.train().train_step(batch, optimizer)
    assert losses and all(torch.isfinite(value).all() for value in losses.values()), losses
    assert torch.isfinite(gradients[0]).all() and gradients[0].abs().max() > 0


@pytest.mark.parametrize(
    'base',
    ['retinanet/retinanet_r50_fpn_1x_coco', 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco'],
    ids=['RetinaNet', 'Mask R-CNN'],
)
def test_detector(base, tmp_path):
    pytest.importorskip('mmdet')
    pytest.importorskip('mmcv._ext', reason='MMDetection needs the compiled operators of MMCV')
    from mmdet.registry import MODELS
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    model = MODELS.build(load('retinanet_volo-d1_fpn_1x_coco', 'mmdet', base, tmp_path))
    objects = InstanceData(
        bboxes=torch.tensor([[4.0, 4.0, 40.0, 40.0]]),
        labels=torch.tensor([3]),
        masks=BitmapMasks(np.ones((1, 64, 64), np.uint8), 64, 64),
    )
    size = dict(img_shape=(64, 64), ori_shape=(64, 64), pad_shape=(64, 64), scale_factor=(1.0, 1.0))
    sample = DetDataSample(
        metainfo=size, gt_instances=objects, ignored_instances=InstanceData(bboxes=torch.zeros(0, 4))
    )
    batch = dict(inputs=[torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)], data_samples=[sample])
    train_step(model, batch)
    with torch.no_grad():
        features = model.eval().extract_feat(torch.zeros(1, 3, 64, 64))
        (result,) = model.test_step(batch)
    assert [feature.shape[-1] for feature in features] == ([16, 8, 4, 2, 1] if 'mask' in base else [8, 4, 2, 1, 1])
    found = result.pred_instances
    assert len(found.bboxes) == len(found.scores) and torch.isfinite(found.bboxes).all()
    assert 'mask' not in base or found.masks.shape == (len(found.bboxes), 64, 64)


def test_classifier(tmp_path):
    pytest.importorskip('mmpretrain')
    from mmpretrain.registry import MODELS
    from mmpretrain.structures import DataSample

    model = MODELS.build(load('volo-d1_8xb32_in1k', 'mmpretrain', 'resnet/resnet50_8xb32_in1k', tmp_path))
    samples = [DataSample().set_gt_label(7), DataSample().set_gt_label(9)]
    batch = dict(inputs=list(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)), data_samples=samples)
    train_step(model, batch)
    with torch.no_grad():
        results = model.eval().test_step(batch)
    assert [result.pred_score.shape for result in results] == [(1000,)] * 2
    assert all(abs(result.pred_score.sum() - 1) < 1e-4 for result in results)

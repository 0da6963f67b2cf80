"""Loaders and a training step on real files, where the environment variable VOLO_SEG_DATA names a folder with them."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS, MODELS

from volo_seg.commands import run
from volo_seg.config.load import datasets, load_config

DATA = os.environ.get('VOLO_SEG_DATA', '')
pytestmark = pytest.mark.skipif(not DATA, reason='VOLO_SEG_DATA names no folder of real files')

CAMVID = (
    *('Sky', 'Building', 'Pole', 'Road', 'Pavement', 'Tree'),
    *('SignSymbol', 'Fence', 'Car', 'Pedestrian', 'Bicyclist'),
)


def step(config, dataset):
    """One training step of nano on two small crops of ``dataset``; return the loss."""
    init_default_scope('mmseg')
    num_classes = len(dataset.metainfo['classes'])
    model = config.model
    model.data_preprocessor.size = (64, 64)
    model.backbone = {key: value for key, value in config.variants.nano.backbone.items() if key != '_delete_'}
    model.decode_head.update(config.variants.nano.decode_head, num_classes=num_classes)
    model.auxiliary_head.update(config.variants.nano.auxiliary_head, num_classes=num_classes)
    built = MODELS.build(model).train()
    samples = [dataset[i] for i in range(2)]
    batch = {key: [sample[key] for sample in samples] for key in ('inputs', 'data_samples')}
    loss, _ = built.parse_losses(built(**built.data_preprocessor(batch, training=True), mode='loss'))
    loss.backward()
    return loss.item()


def build(config, split, *, crop=None, **dataset):
    """The data set of a split, without its wrapper, with the training crop replaced."""
    init_default_scope('mmseg')
    ((_, described),) = datasets(config[f'{split}_dataloader'].dataset, split)
    described.update(dataset)
    if crop:
        described.pipeline = [dict(t, crop_size=crop) if t.type == 'RandomCrop' else t for t in described.pipeline]
    return DATASETS.build(described)


@pytest.fixture(scope='module')
def cityscapes(tmp_path_factory):
    root = tmp_path_factory.mktemp('real') / 'cityscapes'
    shutil.copytree(Path(DATA, 'cityscapes'), root, copy_function=shutil.copyfile)
    assert run('cityscapes', [str(root)]) == 0
    return root


def test_cityscapes(cityscapes):
    """The converter's labelTrainIds agree with the official labelIds, and a step can be taken."""
    import cv2

    from volo_seg.datasets.cityscapes_labels import LABELS

    to_train = np.full(256, 255, np.uint8)
    for label in LABELS:
        if label.id >= 0:
            to_train[label.id] = label.train_id if 0 <= label.train_id < 19 else 255
    paths = sorted(cityscapes.rglob('*_gtFine_labelIds.png'))
    assert len(paths) == 9
    for path in paths:
        train_ids = cv2.imread(str(path).replace('labelIds', 'labelTrainIds'), -1)
        assert np.array_equal(train_ids, to_train[cv2.imread(str(path), -1)]), path
    config = load_config('volo-d1_upernet_8xb1-160k_cityscapes-1024x1024')
    train = build(config, 'train', crop=(64, 64), data_root=str(cityscapes))
    assert len(train) == 8
    assert np.isfinite(step(config, train))
    val = build(config, 'val', data_root=str(cityscapes))
    assert tuple(val[0]['data_samples'].gt_sem_seg.data.shape) == (1, 1024, 2048)


def test_ade20k():
    config = load_config('volo-d1_upernet_8xb2-160k_ade20k-512x512')
    root = str(Path(DATA, 'ade', 'ADEChallengeData2016'))
    train = build(config, 'train', crop=(64, 64), data_root=root)
    assert len(train) == 3
    assert np.isfinite(step(config, train))
    val = build(config, 'val', data_root=root)
    for sample in (val[i] for i in range(len(val))):
        labels = sample['data_samples'].gt_sem_seg.data
        assert tuple(labels.shape[1:]) == tuple(sample['data_samples'].ori_shape)
        assert set(labels.unique().tolist()) <= {*range(150), 255}
        assert min(sample['inputs'].shape[1:]) == 512


def test_camvid():
    """Void (11) is ignored, everything else is one of the eleven classes."""
    config = load_config('volo-nano_upernet_1xb4-20k_folders-256x256')
    data = dict(data_root=str(Path(DATA, 'camvid')), classes=CAMVID, ignore_labels=[11])
    train = build(config, 'train', crop=(64, 64), **data)
    val = build(config, 'val', **data)
    assert (len(train), len(val)) == (367, 101)
    seen = torch.cat([val[i]['data_samples'].gt_sem_seg.data.unique() for i in range(0, 101, 20)]).unique()
    assert 255 in seen and set(seen.tolist()) <= {*range(11), 255}
    assert np.isfinite(step(config, train))

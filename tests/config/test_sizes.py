"""The flags --crop and --scale."""

import pytest
from mmengine.config import Config

from volo_seg.config.agreement import check_crops
from volo_seg.config.load import load_config, shipped_configs
from volo_seg.config.sizes import set_crop, set_scale, steps
from volo_seg.errors import UserError

FOLDERS = 'volo-nano_upernet_1xb4-20k_folders-256x256'


@pytest.mark.parametrize('name', shipped_configs())
def test_crop_of_a_shipped_config(name):
    config, before = load_config(name), load_config(name)
    set_crop(config, (96, 160))
    check_crops(config)
    assert config.crop_size == config.model.data_preprocessor.size == config.data_preprocessor.size == (96, 160)
    cuts = [step.crop_size for step in steps(config, 'train') if step.type == 'RandomCrop']
    assert cuts == [(96, 160)] * 2  # of the data set, and of train_pipeline
    assert config.model.backbone == before.model.backbone, 'a checkpoint fits the config without --crop'
    if before.model.test_cfg.mode == 'slide':
        assert config.model.test_cfg.crop_size == (96, 160) and config.model.test_cfg.stride == (72, 120)
    set_scale(config, (300, 200))
    found = [step for split in ('train', 'val', 'test') for step in steps(config, split) if 'Resize' in step.type]
    assert len(found) >= 4 and all(step.scale == (300, 200) and 'scale_factor' not in step for step in found)


def test_crop_of_a_stock_config():
    pipeline = [dict(type='RandomCrop', crop_size=(512, 1024)), dict(type='Pad', size=(1024, 512))]
    wrapped = dict(type='RepeatDataset', dataset=dict(type='ADE20KDataset', pipeline=pipeline))
    config = Config(dict(model=dict(type='EncoderDecoder'), train_dataloader=dict(dataset=wrapped)))
    set_crop(config, (64, 128))
    crop, pad = config.train_dataloader.dataset.dataset.pipeline
    assert crop.crop_size == (64, 128) and pad.size == (128, 64)  # MMCV pads to (width, height)


@pytest.mark.parametrize(
    ('change', 'sides', 'message'),
    [
        (set_crop, (16, 64), '--crop 16 64: a side is below 32 pixels'),
        (set_scale, (0, 64), '--scale 0 64: a side is below 1 pixel'),
    ],
)
def test_mistakes(change, sides, message):
    with pytest.raises(UserError, match=message):
        change(load_config(FOLDERS), sides)

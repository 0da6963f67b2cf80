"""The folders recipe: sizes that follow the images."""

import cv2
import numpy as np
import pytest
import tiny
from mmengine.registry import init_default_scope
from mmseg.registry import TRANSFORMS
from PIL import Image

from volo_seg.config.load import load_config, set_data_root
from volo_seg.config.sizes import set_crop, set_scale
from volo_seg.datasets.inspection.sizes import fit_crop, image_sizes

FOLDERS = 'volo-d1_upernet_1xb4-20k_folders-512x512'


@pytest.fixture
def data(tmp_path):
    return tiny.make_data(tmp_path / 'data', train=4, val=1)


def with_sizes(data, *sizes):
    """The folders config, and training images of ``sizes`` = (width, height)."""
    for index, (width, height) in enumerate(sizes):
        cv2.imwrite(str(data / f'images/train/{index}.png'), np.zeros((height, width, 3), np.uint8))
    config = load_config(FOLDERS)
    set_data_root(config, str(data))
    return config


def crop_of(config):
    return config.crop_size, config.train_dataloader.dataset.dataset.pipeline[3].crop_size


def test_crop_shrinks_to_the_images(data):
    config = with_sizes(data, *[(480, 360)] * 4)
    assert fit_crop(config) == (
        'image size (width x height): 480x360, 4 training images measured; training resizes to 0.5-2 times their size '
        'and crops 480x384; validation and test run at their own size'
    )
    assert crop_of(config) == ((384, 480), (384, 480))
    assert fit_crop(config) is not None and crop_of(config)[0] == (384, 480)


def test_crop_of_larger_images_stays(data):
    config = with_sizes(data, (600, 500), (4000, 3000), (6000, 4000), (4000, 3000))
    told = fit_crop(config)
    assert crop_of(config) == ((512, 512), (512, 512))
    assert '4000x3000 (median; 600x500 to 6000x4000)' in told and 'crops 512x512' in told
    assert '; a crop shows 2.2% of an image' not in told
    set_crop(config, (256, 256))
    told = fit_crop(config)
    assert crop_of(config)[0] == (256, 256)
    assert told.endswith('; a crop shows 0.5% of an image: --scale 1045 784 or a larger --crop shows more')
    set_scale(config, (1045, 784))
    told = fit_crop(config)
    assert 'resizes to 0.5-2 times 1045x784 and crops 256x256' in told
    assert told.endswith('validation and test run at a size within 1045x784')


def test_a_crop_that_was_asked_for_stays(data):
    config = with_sizes(data, *[(64, 32)] * 4)
    set_crop(config, (256, 256))
    assert 'crops 256x256' in fit_crop(config) and crop_of(config)[0] == (256, 256)


def test_sizes_as_loaded(data):
    config = with_sizes(data, (64, 32), (64, 32))
    (data / 'images/train/2.png').write_bytes(b'no image')
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (50, 40)).save(data / 'images/train/3.png', exif=exif)
    assert image_sizes(config) == [(32, 64), (32, 64), (50, 40)]
    assert len(image_sizes(config, count=2)) == 2


def test_configs_without_the_key_are_left_alone(data):
    config = load_config('volo-nano_upernet_1xb4-1200_toyscapes-256x256')
    assert fit_crop(config) is None


def test_factor_applies_to_each_image():
    init_default_scope('mmseg')
    step = TRANSFORMS.build(dict(type='RandomResize', _scope_='volo_seg', ratio_range=(0.5, 2.0)))
    for height, width in ((60, 40), (31, 200)) * 10:
        labels = np.zeros((height, width), np.uint8)
        results = step(dict(img=np.zeros((height, width, 3), np.uint8), gt_seg_map=labels, seg_fields=['gt_seg_map']))
        ratio = results['img'].shape[1] / width
        assert 0.49 <= ratio <= 2.01 and results['img'].shape[0] == pytest.approx(height * ratio, abs=3)
        assert results['gt_seg_map'].shape == results['img'].shape[:2]
    fixed = TRANSFORMS.build(dict(type='RandomResize', _scope_='volo_seg', scale=[100, 50], ratio_range=(1.0, 1.0)))
    assert fixed(dict(img=np.zeros((60, 40, 3), np.uint8)))['img'].shape == (75, 50, 3)

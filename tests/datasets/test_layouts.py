"""The configs for data sets of MMSegmentation load a tree in the layout of each data set."""

import cv2
import numpy as np
import pytest
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS

from volo_seg.config.checks import check_run
from volo_seg.config.load import load_config, set_data_root

SPLITS = ('train', 'val')
# config -> image and mask of a split, list of a split, label in the file -> label in training
LAYOUTS = {
    'voc12-512x512': (
        'JPEGImages/2007_00{n}.jpg SegmentationClass/2007_00{n}.png',
        'ImageSets/Segmentation/{split}.txt',
        {0: 0, 20: 20, 255: 255},
    ),
    'pascal-context-59-512x512': (
        'JPEGImages/2008_00{n}.jpg SegmentationClassContext/2008_00{n}.png',
        'ImageSets/SegmentationContext/{split}.txt',
        {0: 255, 1: 0, 59: 58},
    ),
    'coco-stuff164k-512x512': (
        'images/{split}2017/0000{n}.jpg annotations/{split}2017/0000{n}_labelTrainIds.png',
        '',
        {0: 0, 170: 170, 255: 255},
    ),
    'mapillary-v2-512x1024': (
        '{long}/images/x{n}.jpg {long}/v2.0/labels/x{n}.png',
        '',
        {0: 0, 123: 123},
    ),
    'loveda-512x512': ('img_dir/{split}/{n}.png ann_dir/{split}/{n}.png', '', {0: 255, 1: 0, 7: 6}),
    'potsdam-512x512': ('img_dir/{split}/2_10_{n}.png ann_dir/{split}/2_10_{n}.png', '', {0: 255, 1: 0, 6: 5}),
    'isaid-896x896': (
        'img_dir/{split}/P{n}_0_896_0_896.png ann_dir/{split}/P{n}_0_896_0_896_instance_color_RGB.png',
        '',
        {0: 0, 15: 15, 255: 255},
    ),
    'bdd100k-512x1024': (
        'images/10k/{split}/{n}.jpg labels/sem_seg/masks/{split}/{n}.png',
        '',
        {0: 0, 18: 18, 255: 255},
    ),
    'drive-512x512': (
        'images/{long}/{n}_{long}.png annotations/{long}/{n}_{long}_manual1.png',
        '',
        {0: 0, 1: 1},
    ),
}


@pytest.mark.parametrize('name', LAYOUTS)
def test_layout(tmp_path, name):
    files, listed, labels = LAYOUTS[name]
    mask = np.resize(np.array(list(labels), np.uint8), (24, 32))
    for number, split in enumerate(SPLITS):
        words = dict(n=number, split=split, long={'train': 'training', 'val': 'validation'}[split])
        for file, content in zip(
            files.format(**words).split(), (np.full((24, 32, 3), 90, np.uint8), mask), strict=True
        ):
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / file), content)
        if listed:
            path = tmp_path / listed.format(**words)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(files.format(**words).split()[0].split('/')[-1].split('.')[0] + '\n')
    config = load_config(f'volo-d1_upernet_8xb2-160k_{name}')
    set_data_root(config, str(tmp_path))
    check_run(config, SPLITS)
    init_default_scope('mmseg')
    height, width = (int(side) for side in name.rpartition('-')[2].split('x'))
    for split in SPLITS:
        dataset = config[f'{split}_dataloader'].dataset
        data = DATASETS.build(dataset)
        assert len(data) == 1
        sample = data[0]
        found = sample['data_samples'].gt_sem_seg.data.numpy()
        assert set(np.unique(found)) <= {*labels.values(), 255}
        if split == 'train':
            shape = sample['inputs'].shape  # images that are smaller than the crop are padded in a batch
            assert 0 < shape[1] <= height and 0 < shape[2] <= width
        else:
            want = np.array([labels[int(value)] for value in mask.ravel()]).reshape(mask.shape)
            assert (found[0] == want).all()

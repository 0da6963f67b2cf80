"""One's own images and masks as a data set."""

import cv2
import numpy as np
import pytest
from mmengine.registry import init_default_scope

from volo_seg.datasets.folders import FolderDataset, distinct_colours
from volo_seg.errors import UserError

PREFIX = dict(img_path='images', seg_map_path='annotations')


@pytest.fixture
def root(tmp_path):
    (tmp_path / 'images' / 'sub').mkdir(parents=True)
    (tmp_path / 'annotations' / 'sub').mkdir(parents=True)
    for name in ('b.png', 'a.jpg', 'sub/c.JPG'):
        cv2.imwrite(str(tmp_path / 'images' / name), np.full((4, 6, 3), 90, np.uint8))
        mask = tmp_path / 'annotations' / (name.rsplit('.', 1)[0] + '.png')
        cv2.imwrite(str(mask), np.array([[0, 1, 2, 3, 255, 0]] * 4, np.uint8))
    (tmp_path / 'classes.txt').write_text('road\n\ncar\nsky\n')
    return tmp_path


def build(root, **options):
    init_default_scope('mmseg')
    pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
    return FolderDataset(data_root=str(root), data_prefix=PREFIX, pipeline=pipeline, **options)


def test_pairs_by_relative_name(root):
    data = build(root)
    assert data.metainfo['classes'] == ['road', 'car', 'sky']
    assert [data[i]['img_path'].split('images/')[1] for i in range(len(data))] == ['a.jpg', 'b.png', 'sub/c.JPG']
    assert data[2]['seg_map_path'].endswith('annotations/sub/c.png')


def test_ignore_labels(root):
    assert set(np.unique(build(root, ignore_labels=[3])[0]['gt_seg_map'])) == {0, 1, 2, 255}
    assert 3 in build(root)[0]['gt_seg_map']


def test_reduce_zero_label(root):
    labels = build(root, reduce_zero_label=True)[0]['gt_seg_map']
    assert labels[0].tolist() == [255, 0, 1, 2, 255, 255]


def test_classes_given_or_in_another_file(root):
    assert build(root, classes=['x', 'y']).metainfo['classes'] == ['x', 'y']
    (root / 'names').write_text('p\nq\n')
    assert build(root, classes=str(root / 'names')).metainfo['classes'] == ['p', 'q']


def test_colours_are_distinct_and_stable():
    colours = [tuple(c) for c in distinct_colours(150)]
    assert len(set(colours)) == 150
    assert colours[:3] == [(128, 0, 0), (0, 128, 0), (128, 128, 0)]


def test_palette_is_checked_against_classes(root):
    with pytest.raises(UserError, match='palette has 1 colours for 3 classes'):
        build(root, palette=[[0, 0, 0]])


def test_mistakes(root):
    with pytest.raises(UserError, match=r"names 'x' twice"):
        build(root, classes=['x', 'x'])
    with pytest.raises(UserError, match='is empty'):
        build(root, classes=[])
    cv2.imwrite(str(root / 'images' / 'a.png'), np.zeros((4, 6, 3), np.uint8))
    with pytest.raises(UserError, match='share a name'):
        build(root)
    (root / 'images' / 'a.png').unlink()
    (root / 'annotations' / 'b.png').unlink()
    with pytest.raises(UserError, match=r"b\.png' has no mask"):
        build(root)
    (root / 'classes.txt').unlink()
    with pytest.raises(UserError, match='class names are missing: write one a line into'):
        build(root)

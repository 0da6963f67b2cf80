"""Pseudo-labels, the review of labels, and extra training data: what is written, kept, resumed, drawn and refused."""

import csv
import json
import shutil

import cv2
import numpy as np
import pytest
import tiny
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS

from volo_seg.commands import run
from volo_seg.config.checks import check_run
from volo_seg.config.extra_data import add_extra_data
from volo_seg.config.load import load_config, set_data_root
from volo_seg.errors import UserError
from volo_seg.label_png import read_labels


@pytest.fixture(scope='module')
def masks(trained, tmp_path_factory):
    """Masks of the training images with half of the pixels of each class kept, and the words that made them."""
    out = tmp_path_factory.mktemp('pseudo') / 'masks'
    words = [str(trained.checkpoint), str(trained.data / 'images' / 'train'), '--out', str(out)]
    assert run('pseudo-label', [*words, '--keep-share', '0.5']) == 0
    return out, words


def read(out):
    labels, levels, kept = ([], [], [])
    for path in sorted(out.glob('*.png')):
        kept.append(read_labels(path))
        labels.append(read_labels(out / '.predictions' / 'labels' / path.name))
        levels.append(read_labels(out / '.predictions' / 'confidence16' / path.name))
    return np.array(labels), np.array(levels), np.array(kept)


def test_share_of_each_class_is_kept_and_resuming_changes_the_threshold(masks):
    out, words = masks
    labels, levels, kept = read(out)
    assert len(kept) == 5 and levels.max() > 255
    summary = json.loads((out / 'pseudo_labels.json').read_text())
    assert summary['images'] == 5 and [row['class'] for row in summary['classes']] == ['a', 'b', 'c']
    for label, row in enumerate(summary['classes']):
        own = labels == label
        if own.any():
            share = (kept[own] == label).mean()
            assert row['kept_share'] == pytest.approx(share) and 0.5 <= share < 0.55
            assert levels[own & (kept == 255)].max(initial=0) < levels[own & (kept == label)].min()
            assert row['images'] == (kept == label).any((1, 2)).sum()
    assert set(np.unique(kept)) <= {0, 1, 2, 255}
    assert run('pseudo-label', [*words, '--resume', '--confidence', '0.4']) == 0
    labels, levels, kept = read(out)
    np.testing.assert_array_equal(kept, np.where(levels >= np.ceil(0.4 * 65535), labels, 255))
    assert run('pseudo-label', [*words, '--resume', '--keep-share', '0.5']) == 0


def test_results_of_another_model_and_masks_of_others_are_refused(masks, trained, capsys, tmp_path):
    out, words = masks
    other = shutil.copy(trained.work_dir / 'iter_1.pth', tmp_path / 'other.pth')
    assert run('pseudo-label', [str(other), *words[1:], '--resume']) == 2
    assert 'has results of another checkpoint' in capsys.readouterr().err
    assert run('pseudo-label', [*words[:2], '--out', str(trained.data / 'annotations' / 'train')]) == 2
    assert 'has masks that are not of volo-seg pseudo-label' in capsys.readouterr().err
    assert run('pseudo-label', [*words[:2], '--out', f'{words[1]}/masks']) == 2
    assert 'is inside the input' in capsys.readouterr().err
    assert run('pseudo-label', [*words, '--confidence', '1.5']) == 2
    assert '--confidence 1.5 is not in (0, 1]' in capsys.readouterr().err


def config_of(data):
    config = load_config(str(data / 'tiny.py'), tiny.pairs_of(tiny.OPTIONS))
    set_data_root(config, str(data))
    return config


@pytest.mark.parametrize(('weight', 'count'), [('1', 10), ('3', 20), ('0.5', 15)])
def test_extra_data_is_drawn_by_weight(data, masks, weight, count):
    config = config_of(data)
    add_extra_data(config, [str(data / 'images' / 'train'), str(masks[0]), weight])
    check_run(config, ('train', 'val'))
    assert config.train_dataloader.dataset.type == 'SeededDataset'
    init_default_scope('mmseg')
    dataset = DATASETS.build(config.train_dataloader.dataset)
    assert (
        len(dataset) == count
        and dataset.metainfo['classes'] == DATASETS.build(config.val_dataloader.dataset).metainfo['classes']
    )
    masks = [dataset[index]['data_samples'].gt_sem_seg.data.numpy() for index in range(count)]
    assert any((mask == 255).any() for mask in masks)


def test_extra_masks_are_read_like_the_own_ones_and_pseudo_labels_as_they_are(data, masks):
    config = config_of(data)
    config.train_dataloader.dataset.dataset.label_map = {0: 2}
    images = str(data / 'images' / 'train')
    add_extra_data(config, [images, str(data / 'annotations' / 'train')])
    add_extra_data(config, [images, str(masks[0])])
    old, pseudo = config.train_dataloader.dataset.dataset.datasets
    assert old.datasets[1].label_map == {0: 2} and 'label_map' not in pseudo


def test_training_runs_on_extra_data_and_the_printed_config_shows_it(data, masks, tmp_path, capsys):
    flags = ['--extra-data', str(data / 'images' / 'train'), str(masks[0]), '2']
    assert len(tiny.train(data, tmp_path, *flags, train_cfg__max_iters=2)) == 2
    assert run('print_config', tiny.words(data, tmp_path, *flags)) == 0
    shown = capsys.readouterr().out
    assert 'ConcatDataset' in shown and 'RepeatDataset' in shown and str(masks[0]) in shown


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['images'], 'is not IMAGES MASKS'),
        (['images', 'masks', 'much'], 'is not IMAGES MASKS'),
        (['images', 'masks', '20'], r'weight 20 is not in \[0.1, 10\]'),
        (['images', 'nowhere'], 'is not a folder'),
    ],
)
def test_mistakes_in_extra_data(data, words, message):
    with pytest.raises(UserError, match=message):
        add_extra_data(config_of(data), [str(data / word) if word == 'images' else word for word in words])


def test_review_writes_a_page_and_a_table(trained, tmp_path, capsys):
    for kind in ('images', 'annotations'):
        shutil.copytree(trained.data / kind, tmp_path / 'data' / kind)
    shutil.copy(trained.data / 'classes.txt', tmp_path / 'data')
    labels = cv2.imread(str(tmp_path / 'data' / 'annotations' / 'val' / '0.png'), 0)
    cv2.imwrite(str(tmp_path / 'data' / 'annotations' / 'val' / '0.png'), (labels + 1) % 3)
    words = [str(trained.checkpoint), str(trained.config), '--data-root', str(tmp_path / 'data')]
    words += ['--out', str(tmp_path / 'out'), '--count', '2']
    assert run('review', words) == 0
    page = (tmp_path / 'out' / 'review.html').read_text()
    assert page.count('data:image/jpeg') == 2 and 'http' not in page.replace('http-equiv', '')
    with (tmp_path / 'out' / 'review.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert {row['image'].split('/')[-1] for row in rows} == {'0.png', '1.png', '2.png'}
    assert [int(row['rank']) for row in rows] == sorted(int(row['rank']) for row in rows)
    for row in rows:
        if row['kind'] == 'region':
            assert 0 <= int(row['left']) < int(row['right']) <= 64 and 0 <= int(row['top']) < int(row['bottom']) <= 32
            assert row['label_class'] != row['predicted_class'] and 0 < float(row['mean_confidence']) <= 1
    assert run('review', words) == 2
    assert 'exists; add --overwrite' in capsys.readouterr().err
    assert run('review', [*words, '--overwrite', '--count', '0']) == 2

"""Rare classes: counting and its cache, sampling, crops that hold a class, pasted regions, and the flags."""

import copy
import itertools
import os
import threading

import cv2
import numpy as np
import pytest
import tiny
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS, TRANSFORMS

import volo_seg.datasets.class_pixels as class_pixels_module
import volo_seg.register  # noqa: F401
from volo_seg.commands import run
from volo_seg.commands.train import build_parser, prepare
from volo_seg.config.load import load_config
from volo_seg.datasets.class_pixels import cache_folder, class_pixels
from volo_seg.datasets.rare_class_datasets import CopyPasteDataset, RareClassDataset, class_probabilities
from volo_seg.datasets.samplers import ResumableInfiniteSampler
from volo_seg.datasets.seeded_dataset import SeededDataset
from volo_seg.engine.recipe import apply_recipe
from volo_seg.errors import UserError
from volo_seg.seeding import seed_generators

NANO = 'volo-nano_upernet_1xb4-1200_toyscapes-256x256'
SIZE = (60, 80)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    init_default_scope('mmseg')


def write(root, masks):
    """Images and masks in two folders of ``root``: each image is grey with the value 20 * label."""
    for kind in ('images', 'masks'):
        (root / kind).mkdir(parents=True)
    for index, mask in enumerate(masks):
        cv2.imwrite(str(root / 'masks' / f'{index}.png'), mask)
        cv2.imwrite(str(root / 'images' / f'{index}.png'), np.repeat(20 * mask[..., None], 3, 2))
    return root


@pytest.fixture
def root(tmp_path):
    """Eight images: class 1 covers 1/4 of each, class 2 is a square of 36 pixels in image 5 alone, 255 is ignored."""
    masks = []
    for index in range(8):
        mask = np.zeros(SIZE, np.uint8)
        mask[:, :20] = 1
        mask[-2:] = 255
        if index == 5:
            mask[30:36, 50:56] = 2
        masks.append(mask)
    return write(tmp_path / 'data', masks)


def folder(root, *steps, **more):
    pipeline = [dict(type='LoadImageFromFile', _scope_='volo_seg'), dict(type='LoadLabels'), *steps]
    prefix = dict(img_path='images', seg_map_path='masks')
    more = {'classes': ['a', 'b', 'c'], **more}
    return dict(type='FolderDataset', data_root=str(root), data_prefix=prefix, pipeline=pipeline, **more)


CROP = dict(type='RandomCrop', _scope_='volo_seg', crop_size=(16, 16), cat_max_ratio=0.9)


def test_counts(root):
    counts = class_pixels(DATASETS.build(folder(root)))
    labelled = (SIZE[0] - 2) * SIZE[1]
    assert counts.shape == (8, 3) and (counts[:, 1] == 58 * 20).all()
    assert counts[:, 2].tolist() == [0, 0, 0, 0, 0, 36, 0, 0]
    assert (counts.sum(1) == labelled).all()
    # as the data set reads its labels
    mapped = class_pixels(DATASETS.build(folder(root, label_map={2: 1, 1: 0}, ignore_labels=[0])))
    assert mapped[5].tolist() == [58 * 20, 36, 0]
    joined = dict(
        type='ConcatDataset', datasets=[folder(root), dict(type='RepeatDataset', times=2, dataset=folder(root))]
    )
    assert (class_pixels(DATASETS.build(joined)) == np.tile(counts, (3, 1))).all()


def test_counts_are_cached_by_the_data(root, monkeypatch):
    counted = []
    real = class_pixels_module._count
    monkeypatch.setattr(class_pixels_module, '_count', lambda *a: counted.append(len(a[0])) or real(*a))
    dataset = DATASETS.build(folder(root))
    first = class_pixels(dataset)
    assert (class_pixels(DATASETS.build(folder(root))) == first).all() and counted == [8]
    (file,) = cache_folder().iterdir()  # the lock is gone
    file.write_bytes(file.read_bytes()[:-9])
    assert (class_pixels(dataset) == first).all() and counted == [8, 8]
    np.save(file, np.full((8, 3), None), allow_pickle=True)
    assert (class_pixels(dataset) == first).all() and counted == [8, 8, 8]
    mask = root / 'masks' / '0.png'
    cv2.imwrite(str(mask), np.full(SIZE, 2, np.uint8))
    os.utime(mask, ns=(1, 1))
    assert class_pixels(dataset)[0].tolist() == [0, 0, SIZE[0] * SIZE[1]] and len(counted) == 4
    class_pixels(DATASETS.build(folder(root, reduce_zero_label=True)))
    assert len(counted) == 5


def test_one_of_several_processes_counts(root, monkeypatch):
    """Locks exclude threads as they do processes."""
    counted = []
    real = class_pixels_module._count
    monkeypatch.setattr(class_pixels_module, '_count', lambda *a: counted.append(1) or real(*a))
    dataset = DATASETS.build(folder(root))
    threads = [threading.Thread(target=class_pixels, args=(dataset,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counted == [1]


def test_counts_where_nothing_can_be_stored(root, tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    assert class_pixels(DATASETS.build(folder(root))).sum() > 0


def test_counting_says_what_cannot_be_read(root):
    (root / 'masks' / '3.png').write_bytes(b'no image')
    with pytest.raises(UserError, match=r"3\.png'"):
        class_pixels(DATASETS.build(folder(root)))
    (root / 'images' / 'new.png').write_bytes((root / 'images' / '0.png').read_bytes())
    alone = folder(root)
    alone['data_prefix'] = dict(img_path='images')
    with pytest.raises(UserError, match='has no label image, so its classes cannot be counted'):
        class_pixels(DATASETS.build(alone))


def test_probabilities_are_those_of_the_paper():
    pixels = [700, 250, 50, 0]
    weights = [np.exp((1 - count / 1000) / 0.2) for count in pixels[:3]]
    wanted = [*(weight / sum(weights) for weight in weights), 0.0]
    assert class_probabilities(pixels, temperature=0.2) == pytest.approx(wanted)
    assert class_probabilities([10**9, 1], temperature=1e-4) == pytest.approx([0, 1])


def rare(root, *steps, temperature=0.1, **more):
    return RareClassDataset(folder(root, *steps), temperature=temperature, **more)


def test_images_of_rare_classes_are_drawn_by_the_probabilities(root):
    dataset = rare(root, temperature=0.5)
    shares = np.array([58 * 60 * 8 - 36, 58 * 20 * 8, 36]) / (58 * 80 * 8)
    wanted = np.exp((1 - shares) / 0.5)
    wanted /= wanted.sum()
    assert dataset.probabilities == pytest.approx(wanted)
    seed_generators(0)
    draws = [dataset[0] for _ in range(2000)]
    classes = np.bincount([draw['rare_class'] for draw in draws], minlength=3) / 2000
    assert classes == pytest.approx(wanted, abs=0.04)
    images = {label: {d['img_path'][-5] for d in draws if d['rare_class'] == label} for label in range(3)}
    assert images == {0: set('01234567'), 1: set('01234567'), 2: {'5'}}
    assert len(dataset) == 8 and dataset.metainfo['classes'] == ['a', 'b', 'c']


def test_images_with_few_pixels_of_a_class_only_where_there_is_no_other(root):
    mask = np.zeros(SIZE, np.uint8)
    mask[5, 5:8] = 2
    cv2.imwrite(str(root / 'masks' / '2.png'), mask)
    assert [list(rare(root, min_pixels=least).holders[2]) for least in (1, 10, 100)] == [[2, 5], [5], [2, 5]]


def equal(one, other):
    return all(np.array_equal(one[key], other[key]) for key in ('img', 'gt_seg_map'))


@pytest.mark.parametrize('kind', [RareClassDataset, CopyPasteDataset])
def test_samples_depend_on_the_position_alone(root, kind):
    """So each of two processes draws its share of what one draws, and a resumed run goes on with the same samples."""
    dataset = SeededDataset(kind(folder(root, CROP), temperature=0.5, min_pixels=1))

    def draws(rank, world_size, start=0):
        sampler = ResumableInfiniteSampler(dataset, seed=3)
        sampler.rank, sampler.world_size = rank, world_size
        sampler.start_at(start)
        return [dataset[draw] for draw in itertools.islice(sampler, 8 // world_size)]

    alone = draws(0, 1)
    first, second = draws(0, 2), draws(1, 2)
    assert all(equal(one, other) for one, other in zip(alone[::2], first, strict=True))
    assert all(equal(one, other) for one, other in zip(alone[1::2], second, strict=True))
    assert all(equal(one, other) for one, other in zip(alone[5:], draws(0, 1, start=5), strict=False))
    assert not all(equal(alone[0], other) for other in alone[1:])


def test_crops_hold_the_class(root):
    dataset = rare(root, CROP, temperature=0.05)
    seed_generators(1)
    found = [dataset[0] for _ in range(200)]
    assert {sample['rare_class'] for sample in found} >= {1, 2}
    for sample in found:
        assert sample['gt_seg_map'].shape == sample['img'].shape[:2] == (16, 16)
        assert (sample['gt_seg_map'] == sample['rare_class']).any()
    # every offset at which the crop touches the square occurs
    corners = {tuple(np.argwhere(s['gt_seg_map'] == 2)[0]) for s in found if s['rare_class'] == 2}
    assert len(corners) > 25


@pytest.mark.parametrize('results', [{}, {'rare_class': 2}], ids=['no class', 'a class that is not there'])
def test_without_the_class_the_crop_is_that_of_mmseg(results):
    labels = np.random.default_rng(0).integers(0, 2, (50, 70)).astype(np.uint8)
    image = np.repeat(labels[..., None], 3, 2)
    found = []
    for scope in ({}, {'_scope_': 'volo_seg'}):
        seed_generators(4)
        crop = TRANSFORMS.build(dict(type='RandomCrop', crop_size=(20, 30), cat_max_ratio=0.75, **scope))
        found.append(crop(dict(img=image, gt_seg_map=labels, seg_fields=['gt_seg_map'], **results)))
    assert equal(*found)


def test_a_crop_that_is_larger_than_the_image():
    crop = TRANSFORMS.build(dict(type='RandomCrop', _scope_='volo_seg', crop_size=64))
    labels = np.zeros((50, 70), np.uint8)
    labels[49, 69] = 1
    sample = crop(dict(img=labels[..., None], gt_seg_map=labels, seg_fields=['gt_seg_map'], rare_class=1))
    assert sample['gt_seg_map'].shape == (50, 64) and sample['gt_seg_map'][-1, -1] == 1


def paste(root, **more):
    more = {'temperature': 0.01, 'min_pixels': 5, 'prob': 1.0, **more}
    return CopyPasteDataset(folder(root), **more)


def test_whole_regions_are_pasted_with_their_labels(root):
    seed_generators(0)
    dataset = paste(root)
    for index in (0, 1, 2, 3, 4, 6, 7):
        plain, sample = dataset.dataset[index], dataset[index]
        pasted = sample['gt_seg_map'] != plain['gt_seg_map']
        assert (sample['gt_seg_map'][pasted] == 2).all() and sample['rare_class'] == 2
        rows, columns = np.nonzero(sample['gt_seg_map'] == 2)
        assert len(rows) == 36 and np.ptp(rows) == np.ptp(columns) == 5, 'the region is not whole'
        assert rows.min() == 30, 'the region left its height'
        assert (sample['img'] == 20 * sample['gt_seg_map'][..., None])[sample['gt_seg_map'] != 255].all()
    places = {np.nonzero(dataset[0]['gt_seg_map'] == 2)[1].min() for _ in range(40)}
    assert len(places) > 15


def test_cut_and_small_regions_stay_out(root):
    mask = np.zeros(SIZE, np.uint8)
    mask[40:50, 70:] = 2  # touches the border
    mask[10, 10:13] = 2  # too small
    cv2.imwrite(str(root / 'masks' / '5.png'), mask)
    dataset = paste(root)
    for _ in range(20):
        sample = dataset[0]
        assert not (sample['gt_seg_map'] == 2).any() and 'rare_class' not in sample


def test_number_scale_and_share_of_pasted_regions(root):
    mask = np.zeros((2 * SIZE[0], 2 * SIZE[1]), np.uint8)
    for left in range(10, 150, 20):
        mask[60:68, left : left + 8] = 2
    cv2.imwrite(str(root / 'masks' / '5.png'), mask)
    cv2.imwrite(str(root / 'images' / '5.png'), np.repeat(20 * mask[..., None], 3, 2))
    seed_generators(0)
    counts = []
    dataset = paste(root, max_regions=2)
    for _ in range(60):
        labels = dataset[0]['gt_seg_map']
        rows = np.nonzero(labels == 2)[0]
        assert rows.min() == 30 and rows.max() == 33  # half of 8 rows
        counts.append((labels == 2).sum() / 16)
    assert max(counts) == 2 and min(counts) == 1 and len(set(counts)) > 1
    dataset = paste(root, prob=0.25)
    assert 0.1 < np.mean([(dataset[0]['gt_seg_map'] == 2).any() for _ in range(200)]) < 0.4
    assert not any((paste(root, prob=0.0)[0]['gt_seg_map'] == 2).any() for _ in range(5))


@pytest.mark.parametrize('kind', [RareClassDataset, CopyPasteDataset])
def test_inside_other_wrappers(root, kind):
    inner = folder(root)
    joined = [inner, dict(type='ClassBalancedDataset', oversample_thr=0.5, dataset=inner)]
    repeated = dict(type='RepeatDataset', times=2, dataset=inner)
    for wrapped in (dict(type='ConcatDataset', datasets=joined), repeated):
        dataset = kind(wrapped, min_pixels=1)
        samples = [dataset[index] for index in range(len(dataset))]
        assert any((sample['gt_seg_map'] == 2).any() for sample in samples)
        assert {sample['img_path'][-5] for sample in samples} == (
            {'5'} if kind is RareClassDataset else set('01234567')
        )
    both = CopyPasteDataset(RareClassDataset(inner, min_pixels=1), prob=1.0, min_pixels=1)
    assert (both[0]['gt_seg_map'] == 2).sum() > 36 and both[0]['img_path'].endswith('5.png')
    mixed = dict(type='MultiImageMixDataset', dataset=inner, pipeline=[CROP])
    with pytest.raises(UserError, match='MultiImageMixDataset cannot be inside'):
        kind(mixed)[0]


def test_a_pipeline_that_refuses_samples_and_one_without_labels(root):
    dataset, turns = rare(root), itertools.cycle([False, False, True])
    dataset.dataset.pipeline.transforms.append(lambda results: results if next(turns) else None)
    assert all(dataset[0] is not None for _ in range(10))
    dataset.dataset.pipeline.transforms.append(lambda results: None)
    dataset.dataset.max_refetch = 3
    with pytest.raises(UserError, match='RareClassDataset: the pipeline gives no sample'):
        dataset[0]
    dataset = paste(root)
    del dataset.dataset.pipeline.transforms[1]
    with pytest.raises(UserError, match='does not load labels; add LoadLabels'):
        dataset[0]


def test_mistakes(root):
    with pytest.raises(UserError, match='RareClassDataset: temperature=0 must be above 0'):
        rare(root, temperature=0)
    with pytest.raises(UserError, match=r'CopyPasteDataset: prob=2 is not in \[0, 1\]'):
        paste(root, prob=2)
    for index in range(8):
        cv2.imwrite(str(root / 'masks' / f'{index}.png'), np.full(SIZE, 255, np.uint8))
    with pytest.raises(UserError, match='RareClassDataset: the training data has no labelled pixel'):
        rare(root)


# the flags


def test_flags_change_the_config():
    config = load_config(NANO)
    before = copy.deepcopy(config.train_dataloader.dataset.dataset)
    apply_recipe(config, rare_sampling=True, sampling_temperature=0.05, copy_paste=True)
    seeded = config.train_dataloader.dataset
    paste, rare = seeded.dataset, seeded.dataset.dataset
    assert seeded.type == 'SeededDataset'
    assert (paste.type, paste.prob, paste.temperature) == ('CopyPasteDataset', 0.5, 0.01)
    assert (rare.type, rare.temperature, rare.dataset.type) == ('RareClassDataset', 0.05, before.type)
    crops = [step for step in rare.dataset.pipeline if step.type == 'RandomCrop']
    assert [crop['_scope_'] for crop in crops] == ['volo_seg'] and crops[0].crop_size == (256, 256)
    again = copy.deepcopy(config)
    apply_recipe(again, rare_sampling=True, sampling_temperature=0.05, copy_paste=True, crop=(64, 96))
    assert again.train_dataloader.dataset.dataset.dataset.dataset.pipeline[3].crop_size == (64, 96)
    assert again.train_dataloader.dataset.dataset.dataset.dataset.type == before.type


def test_flags_say_what_is_wrong():
    with pytest.raises(UserError, match=r'--sampling-temperature 0 is not above 0; the default is 0\.01'):
        apply_recipe(load_config(NANO), rare_sampling=True, sampling_temperature=0.0)
    with pytest.raises(UserError, match='--sampling-temperature is of --sampling rare; give both'):
        apply_recipe(load_config(NANO), sampling_temperature=0.1)
    with pytest.raises(UserError, match='--copy-paste: the config has no train_dataloader.dataset to sample from'):
        apply_recipe(Config(dict(train_dataloader=None)), copy_paste=True)


def test_the_other_tools_work_with_the_flags(data, tmp_path, capsys):
    """The data set is fingerprinted, checked, looked at; extra data can be added; the trained model predicts."""
    flags = ('--sampling', 'rare', '--copy-paste', '--loss', 'ce+dice', '--class-weights')
    extra = ('--extra-data', data / 'images' / 'train', data / 'annotations' / 'train', '0.5')
    words = tiny.words(data, tmp_path / 'run', *flags, *extra, train_cfg__max_iters=2)
    config = prepare(build_parser().parse_args(words))
    assert config.train_dataloader.dataset.dataset.dataset.dataset.type == 'ConcatDataset'
    assert [loss.class_weight for loss in config.model.decode_head.loss_decode][0] is not None
    config.dump(str(tmp_path / 'full.py'))
    assert run('train', [str(tmp_path / 'full.py'), '--work-dir', str(tmp_path / 'run'), '--plain']) == 0
    assert 'decode.loss_dice' in capsys.readouterr().out
    assert run('browse', [str(tmp_path / 'full.py'), str(tmp_path / 'samples')]) == 0
    image = str(data / 'images' / 'val' / '0.png')
    words = [str(tmp_path / 'full.py'), str(tmp_path / 'run' / 'iter_2.pth'), image, '--out', str(tmp_path / 'out')]
    assert run('infer', words) == 0, capsys.readouterr().err

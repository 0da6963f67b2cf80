"""``ExactIoUMetric`` beside ``IoUMetric``: the same operations, the same results (differences: docs/evaluation.md)."""

import inspect
import math
import os

import evaluated
import numpy as np
import pytest
import tiny
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.evaluation.metrics import IoUMetric
from mmseg.registry import DATASETS, METRICS
from mmseg.structures import SegDataSample
from PIL import Image

from volo_seg.commands.test import write_predictions
from volo_seg.evaluation import ExactIoUMetric

NAMES = evaluated.NAMES
ALL = ['mIoU', 'mDice', 'mFscore']


def samples(**options):
    return [evaluated.sample(seed, path=f'data/{seed}.jpg', **options) for seed in range(4)]


def scores(kind, arguments, found, *, batch=2):
    made = kind(*arguments[0], **arguments[1])
    made.dataset_meta = {'classes': NAMES}
    for start in range(0, len(found), batch):
        made.process({}, found[start : start + batch])
    return made.evaluate(len(found))


def agree(ours, theirs):
    """Each score of ``IoUMetric`` is there; it rounds to two decimals and computes in float32."""
    assert theirs
    for key, value in theirs.items():
        assert ours[key] == pytest.approx(float(value), abs=0.011), key


def test_arguments():
    """All arguments of ``IoUMetric``, in its order, with its defaults."""

    def positional(kind):
        parameters = inspect.signature(kind).parameters.values()
        listed = [p for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
        return {p.name: list(p.default) if isinstance(p.default, tuple) else p.default for p in listed}

    assert list(positional(ExactIoUMetric).items()) == list(positional(IoUMetric).items())
    assert len(positional(IoUMetric)) == 8
    made = METRICS.build({'type': 'ExactIoUMetric', 'backend_args': None, 'nan_to_num': 0, 'beta': 2})
    assert (made.metrics, made.nan_to_num, made.beta) == (['mIoU'], 0, 2)


@pytest.mark.parametrize('present', [5, 4])
@pytest.mark.parametrize(
    'arguments',
    [
        ((), {}),
        ((255, 'mIoU'), {}),
        ((255, ['mDice']), {}),
        ((255, ['mFscore']), {}),
        ((255, ALL, None, 2), {}),
        ((255, ALL, 0), {}),
        ((255, ALL, -1, 3, 'cpu', None, False, 'val'), {}),
        ((), dict(iou_metrics=ALL, nan_to_num=0, beta=0.5, backend_args=None, keep_results=True)),
        ((), dict(iou_metrics=['mIoU', 'mDice'], ignore_index=0)),
    ],
    ids=str,
)
def test_scores(arguments, present):
    found = samples(present=present, ignore=arguments[1].get('ignore_index', 255))
    agree(scores(ExactIoUMetric, arguments, found), scores(IoUMetric, arguments, found))


def test_a_class_that_is_never_predicted():
    """Its F-score is 0. ``IoUMetric`` divides 0 by 0 there and leaves the class out; so does ours with mPrecision."""
    found = evaluated.sample(1)
    labels = found['pred_sem_seg']['data']
    labels[labels == 2] = 1
    arguments = ((), dict(iou_metrics=ALL))
    ours, theirs = (scores(kind, arguments, [found]) for kind in (ExactIoUMetric, IoUMetric))
    assert ours['mFscore'] == ours['mDice'] == pytest.approx(theirs['mFscore'] * 4 / 5, abs=0.011)
    agree(ours, {key: value for key, value in theirs.items() if key != 'mFscore'})


def test_through_the_evaluator():
    """Data samples, as the loops of MMEngine pass them."""
    init_default_scope('mmseg')
    results = []
    for kind in ('ExactIoUMetric', 'IoUMetric'):
        evaluator = Evaluator([dict(type=kind, iou_metrics=ALL, prefix='a'), dict(type=kind, prefix='b')])
        evaluator.dataset_meta = {'classes': NAMES}
        for plain in samples():
            whole = SegDataSample(metainfo={'img_path': plain['img_path'], 'reduce_zero_label': False})
            for key in ('gt_sem_seg', 'pred_sem_seg'):
                setattr(whole, key, PixelData(data=plain[key]['data']))
            evaluator.process([whole], {})
        results.append(evaluator.evaluate(4))
    agree(*results)


@pytest.mark.parametrize('reduce_zero_label', [False, True])
@pytest.mark.parametrize('format_only', [False, True])
def test_files(tmp_path, reduce_zero_label, format_only):
    found = [dict(sample, reduce_zero_label=reduce_zero_label) for sample in samples()]
    files = {}
    for kind in (ExactIoUMetric, IoUMetric):
        folder = tmp_path / kind.__name__
        result = scores(kind, ((), dict(output_dir=str(folder), format_only=format_only)), found)
        assert bool(result) is not format_only
        files[kind] = {name: np.array(Image.open(folder / name)) for name in sorted(os.listdir(folder))}
    ours, theirs = files.values()
    assert list(ours) == list(theirs) == ['0.png', '1.png', '2.png', '3.png']
    for name, labels in theirs.items():
        assert ours[name].dtype == labels.dtype
        assert np.array_equal(ours[name], labels)


@pytest.mark.parametrize('iou_metrics', ['mIou', ['unknown']])
def test_unknown_scores_are_refused(iou_metrics):
    with pytest.raises(ValueError, match='is not known; choose from mDice, mFscore, mIoU'):
        ExactIoUMetric(iou_metrics=iou_metrics)
    with pytest.raises(KeyError):
        scores(IoUMetric, ((), dict(iou_metrics=iou_metrics)), samples())


def test_two_ways_to_count_absent_classes_are_refused():
    with pytest.raises(ValueError, match="nan_to_num=0 and definition='ade' both say what absent classes count"):
        ExactIoUMetric(nan_to_num=0, definition='ade')


def test_nothing_counted():
    """No defined score: NaN there, an error here."""
    found = samples()
    for sample in found:
        sample['gt_sem_seg'] = {'data': torch.full_like(sample['gt_sem_seg']['data'], 255)}
    assert math.isnan(scores(IoUMetric, ((), {}), found)['mIoU'])
    with pytest.raises(ValueError, match='no score is defined'):
        scores(ExactIoUMetric, ((), {}), found)


# what MMSegmentation's confusion_matrix.py reads


def test_out_is_read_by_confusion_matrix_py(trained, tmp_path):
    """It lists the folder and takes the files, sorted, as the predictions of the data set's images in their order."""
    out = tmp_path / 'out'
    matrix = tiny.test(trained.data, tmp_path / 'work', trained.checkpoint, '--out', str(out))
    config = Config.fromfile(next((tmp_path / 'work').glob('*.py')))
    dataset = DATASETS.build(config.test_dataloader.dataset)
    predictions = [np.array(Image.open(out / name)) for name in sorted(os.listdir(out))]
    count = len(dataset.METAINFO['classes'])
    assert (len(dataset), len(predictions), count) == (3, 3, 3)
    found = np.zeros((count, count), int)
    for index, predicted in enumerate(predictions):
        truth = dataset[index]['data_samples'].gt_sem_seg.data[0].numpy()
        seen = truth != dataset.ignore_index
        np.add.at(found, (truth[seen], predicted[seen] - int(dataset.reduce_zero_label)), 1)
    assert found.sum() > 0
    assert np.array_equal(found, np.array(matrix))


@pytest.mark.parametrize(
    ('names', 'flat'), [(('a/1', 'b/2'), True), (('a/2', 'b/1'), False), (('a/1', 'b/1'), False), (('1', '2'), True)]
)
def test_subfolders_are_kept_where_names_have_another_order(tmp_path, names, flat):
    for name in names:
        path = tmp_path / 'images' / f'{name}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    dataset = dict(type='FolderDataset', data_root=str(tmp_path), data_prefix=dict(img_path='images'), classes=['x'])
    evaluator = dict(type='Evaluator', metrics=dict(type='ExactIoUMetric'))
    config = Config(dict(test_dataloader=dict(dataset=dataset), test_evaluator=evaluator))
    write_predictions(config, 'out')
    metric = config.test_evaluator.metrics
    assert metric.output_dir == 'out'
    assert metric.get('img_dir') == (None if flat else str(tmp_path / 'images'))

"""The exact metric against independent definitions, and its promises one by one."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from evaluated import NAMES, evaluated, maps, metric, sample
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn import metrics as sk

from volo_seg.errors import UserError
from volo_seg.evaluation import ExactIoUMetric
from volo_seg.evaluation.boundary import boundary_counts, boundary_distance, inner_boundary
from volo_seg.evaluation.calibration import calibration_counts, expected_calibration_error
from volo_seg.evaluation.confusion_figure import confusion_figure, row_percent
from volo_seg.evaluation.confusion_matrix import confusion, count_pairs
from volo_seg.evaluation.folders import Pair, score_folders, shift_table
from volo_seg.evaluation.prediction_writer import PredictionWriter, check_sources
from volo_seg.evaluation.report import class_csv, class_table, report_content, sorted_worst_first, summary
from volo_seg.evaluation.scores import compute_scores, unique_names
from volo_seg.evaluation.tally import Tally
from volo_seg.label_png import read_labels, write_labels

ROOT = Path(__file__).parents[2]
few = settings(max_examples=30, deadline=None)


def tally_of(pairs, classes, ignore=255):
    total = Tally.empty(classes)
    for truth, prediction in pairs:
        truth, prediction = torch.as_tensor(truth), torch.as_tensor(prediction)
        matrix, ignored = confusion(
            truth, prediction, num_classes=classes, ignore_index=ignore, where='x', count_missed=True
        )
        total.add(Tally.of_image(matrix, ignored=ignored, pixels=truth.numel()))
    return total


# counting


@few
@given(
    seed=st.integers(0, 10**6),
    classes=st.integers(1, 40),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    ignore=st.sampled_from([255, -100, 65535, 0]),
    dtype=st.sampled_from([torch.int64, torch.int32, torch.int16, torch.uint8]),
)
def test_matrix_equals_scikit_learn(seed, classes, height, width, ignore, dtype):
    truth, prediction = maps(seed, classes=classes, size=(height, width), ignore=ignore)
    fits = torch.iinfo(dtype).min <= ignore <= torch.iinfo(dtype).max
    truth_map = torch.from_numpy(truth).to(dtype if fits else torch.int64)
    matrix, ignored = confusion(
        truth_map,
        torch.from_numpy(prediction).to(dtype),
        num_classes=classes,
        ignore_index=ignore,
        where='x',
    )
    kept = truth != ignore
    assert ignored == (~kept).sum()
    assert matrix.dtype == torch.int64
    if kept.any():
        expected = sk.confusion_matrix(truth[kept], prediction[kept], labels=range(classes))
        assert np.array_equal(matrix[:, :-1].numpy(), expected)
    assert int(matrix[:, -1].sum()) == 0


@few
@given(seed=st.integers(0, 10**6), classes=st.integers(2, 12), present=st.integers(1, 12))
def test_scores_equal_scikit_learn(seed, classes, present):
    pairs = [maps(seed + i, classes=classes, present=min(present, classes)) for i in range(2)]
    scores = compute_scores(tally_of(pairs, classes), [str(i) for i in range(classes)])
    truth = np.concatenate([t[t != 255] for t, _ in pairs])
    prediction = np.concatenate([p[t != 255] for t, p in pairs])
    seen = np.union1d(truth, prediction)
    for got, expected in (
        ([row.iou for row in scores.classes], sk.jaccard_score),
        ([row.f_score for row in scores.classes], sk.f1_score),
    ):
        assert [i for i, value in enumerate(got) if value is not None] == list(seen)
        wanted = expected(truth, prediction, labels=seen, average=None, zero_division=0)
        assert np.allclose([value for value in got if value is not None], wanted, atol=1e-15)
    assert scores.pixel_accuracy == pytest.approx(sk.accuracy_score(truth, prediction), abs=1e-15)
    recall = sk.recall_score(truth, prediction, labels=np.unique(truth), average='macro', zero_division=0)
    assert scores.mean_accuracy == pytest.approx(recall, abs=1e-14)


def test_pair_counts_work_on_any_values():
    truth = torch.tensor([[-7, 40000], [40000, 3]])
    prediction = torch.tensor([[2**40, 5], [5, 2**40]])
    pairs = count_pairs(truth, prediction)
    assert pairs.truth.tolist() == [-7, 3, 40000]
    assert pairs.counts.tolist() == [[0, 1], [0, 1], [2, 0]]


def test_non_contiguous_boolean_and_float_maps_count_like_others():
    truth, prediction = torch.rand(7, 9) > 0.5, (torch.rand(9, 7) > 0.5).t()
    expected = count_pairs(truth.long(), prediction.long().contiguous()).counts[:2, :2]
    assert torch.equal(count_pairs(truth, prediction).counts[:2, :2], expected)
    assert torch.equal(count_pairs(truth, prediction.float()).counts[:2, :2], expected)
    with pytest.raises(ValueError, match='fractions'):
        count_pairs(truth, prediction + 0.5)


def test_counts_stay_exact_where_float32_does_not():
    truth = torch.zeros(2, 2**23 + 1, dtype=torch.uint8)
    matrix, _ = confusion(truth, truth, num_classes=2, ignore_index=255, where='x')
    assert matrix[0, 0] == 2**24 + 2
    total = Tally.empty(2)
    total.add(Tally.of_image(torch.tensor([[2**40, 0, 0], [0, 0, 0]]), ignored=0, pixels=2**40))
    total.add(Tally.of_image(torch.tensor([[1, 0, 0], [0, 0, 0]]), ignored=0, pixels=1))
    assert total.matrix[0, 0] == 2**40 + 1


def test_matrix_grows_by_exactly_the_pixels_counted():
    with pytest.raises(RuntimeError, match='accounts for 3 pixels of 4'):
        Tally.of_image(torch.tensor([[3, 0]]), ignored=0, pixels=4)
    total = Tally.of_image(torch.tensor([[3, 0]]), ignored=1, pixels=4)
    broken = Tally.empty(1)
    broken.matrix += 1
    with pytest.raises(RuntimeError, match='accounts for'):
        total.add(broken)


@pytest.mark.parametrize(
    ('values', 'options', 'words'),
    [
        ([0, 5], {}, ['gt.png', 'holds 5 (1 pixels)', '0..4', 'reduce_zero_label']),
        ([1, 255], {'ignore_index': 0}, ['gt.png', 'holds 255', 'ignore_index=0', 'set ignore_index=255']),
        ([7, 9], {}, ['gt.png', 'holds 7, 9', 'name all classes']),
        (list(range(20, 40)), {}, ['20, 21, 22, 23, 24, 25, 26, 27, 28, 29 and 10 more']),
    ],
)
def test_label_out_of_range_names_file_and_values(values, options, words):
    truth = torch.tensor([values])
    rule = {'num_classes': 5, 'ignore_index': 255} | options
    with pytest.raises(UserError) as caught:
        confusion(truth, torch.zeros_like(truth), where='gt.png', **rule)
    assert all(word in str(caught.value) for word in words), caught.value


def test_prediction_out_of_range_size_mismatch_and_no_label_maps_are_errors():
    rule = {'num_classes': 5, 'ignore_index': 255, 'where': 'gt.png', 'prediction_where': 'pred.png'}
    truth = torch.tensor([[0, 1]])
    with pytest.raises(UserError, match=r'pred\.png: the prediction holds 9.*0\.\.4.*a model of 5 classes'):
        confusion(truth, torch.tensor([[9, 1]]), **rule)
    with pytest.raises(UserError, match=r'pred\.png: the prediction holds 255'):
        confusion(truth, torch.tensor([[255, 1]]), **rule)
    with pytest.raises(UserError, match=r'gt\.png: the ground truth is 1 x 2 but the prediction is 2 x 1'):
        confusion(truth, truth.t(), **rule)
    noise = torch.arange(10**4).view(100, 100) - 5
    with pytest.raises(UserError, match=r'gt\.png: maps of 10000 and 10000 different values'):
        confusion(noise, noise, **rule)
    with pytest.raises(UserError, match='the prediction holds 9'):  # even where nothing is scored
        confusion(torch.tensor([[255, 1]]), torch.tensor([[9, 1]]), **rule)


def test_a_missed_pixel_hurts_its_class_and_no_other():
    truth, prediction = torch.tensor([[0, 0, 1, 255]]), torch.tensor([[0, 255, 1, 255]])
    rows = compute_scores(tally_of([(truth, prediction)], 2), ['a', 'b']).classes
    assert [row.iou for row in rows] == [0.5, 1.0]


# scores


def test_the_three_definitions_of_mean_iou():
    # class 0 half right, class 1 never in the truth but predicted, class 2 right, class 3 absent
    truth, prediction = torch.tensor([[0, 0, 2, 2]]), torch.tensor([[0, 1, 2, 2]])
    scores = compute_scores(tally_of([(truth, prediction)], 4), list('abcd'))
    assert scores.mean_iou == {'mmseg': 0.5, 'ade': 0.375, 'gt_classes': 0.75}
    assert scores.mean_accuracy == 0.75
    assert [row.absent for row in scores.classes] == [False, False, False, True]
    with pytest.raises(UserError, match="'voc' is unknown; choose one of mmseg, ade, gt_classes"):
        metric(definition='voc')


def ade_devkit(pairs, classes):
    """The development kit's formula; labels count from 1, and 0 is none."""
    intersection, union = np.zeros((2, classes))
    correct = labelled = 0
    for truth, prediction in pairs:
        prediction = prediction * (truth > 0)
        for c in range(1, classes + 1):
            both = ((truth == c) & (prediction == c)).sum()
            intersection[c - 1] += both
            union[c - 1] += np.spacing(1.0) + (truth == c).sum() + (prediction == c).sum() - both
        correct += ((prediction == truth) & (truth > 0)).sum()
        labelled += (truth > 0).sum()
    return (intersection / union).mean(), correct / labelled


def test_equals_the_ade_devkit(tmp_path):
    rng = np.random.default_rng(3)
    pairs = []
    for i in range(4):
        truth = rng.integers(0, 100, (30, 40), dtype=np.uint8)
        prediction = np.where(rng.random(truth.shape) < 0.7, truth, rng.integers(0, 120, truth.shape)).astype(np.uint8)
        pair = Pair(tmp_path / f't{i}.png', tmp_path / f'p{i}.png')
        Image.fromarray(truth).save(pair.truth)
        Image.fromarray(prediction).save(pair.prediction)
        pairs.append(pair)
    table = shift_table(150, ignore_index=255)
    tally = score_folders(pairs, num_classes=150, ignore_index=255, truth_table=table, prediction_table=table)
    scores = compute_scores(tally, [str(i) for i in range(150)])
    expected = ade_devkit([(read_labels(p.truth), read_labels(p.prediction)) for p in pairs], 150)
    assert (scores.mean_iou['ade'], scores.pixel_accuracy) == pytest.approx(expected, abs=1e-12)
    assert int(tally.matrix[:, -1].sum()) > 0  # predictions of 0 were among them


CITYSCAPES = """
import json, sys
import cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling as scripts
scripts.args.evalInstLevelScore = scripts.args.evalPixelAccuracy = scripts.args.JSONOutput = False
scripts.args.quiet = True
predictions, truths = json.load(sys.stdin)
found = scripts.evaluateImgLists(predictions, truths, scripts.args)
print(json.dumps([found['averageScoreClasses'], found['classScores']]))
"""


def cityscapes_scripts(pairs):
    """Class mIoU by the benchmark's own script, in a process of its own: it keeps state and may exit."""
    lists = [[str(p.prediction) for p in pairs], [str(p.truth) for p in pairs]]
    done = subprocess.run(
        [sys.executable, '-c', CITYSCAPES],
        input=json.dumps(lists),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.replace('NaN', 'null').splitlines()[-1])


def cityscapes_truths(folder):
    """Random label ids (all that the benchmark draws), and real ones where VOLO_SEG_DATA has them."""
    rng = np.random.default_rng(5)
    for i in range(3):
        blocks = rng.integers(0, 32, (6, 8), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(blocks).save(folder / f'ulm_00000{i}_000019_gtFine_labelIds.png')
    real = Path(os.environ.get('VOLO_SEG_DATA', folder / 'none'), 'cityscapes', 'gtFine')
    return sorted(folder.glob('*.png')) + sorted(real.rglob('*_labelIds.png'))


def test_equals_cityscapes_scripts(tmp_path):
    pytest.importorskip('cityscapesscripts')
    from volo_seg.datasets.cityscapes_labels import LABELS

    rng = np.random.default_rng(6)
    truths = cityscapes_truths(tmp_path)
    pairs = []
    for i, path in enumerate(truths):
        truth = np.asarray(Image.open(path))
        shifted = np.roll(truth, 5, axis=1)
        prediction = np.where(rng.random(truth.shape) < 0.1, rng.integers(0, 34, truth.shape), shifted)
        pairs.append(Pair(path, tmp_path / f'pred_{i}.png'))
        write_labels(pairs[-1].prediction, prediction)
    ids = {label.id: 255 if label.ignored else label.train_id for label in LABELS}
    tally = score_folders(pairs, num_classes=19, ignore_index=255, truth_table=ids, prediction_table=ids)
    names = [label.name for label in sorted(LABELS, key=lambda label: label.train_id) if not label.ignored]
    scores = compute_scores(tally, names)
    mean, by_class = cityscapes_scripts(pairs)
    assert len(pairs) >= 3
    assert scores.mean_iou['mmseg'] == pytest.approx(mean, abs=1e-12)
    assert {row.name: row.iou for row in scores.classes} == pytest.approx({n: by_class[n] for n in names}, abs=1e-12)


# boundary and calibration


def published_boundary(mask, ratio=0.02):
    """The mask's pixels that vanish when it is eroded d times by a 3x3 square, zeros around the image."""
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    distance = max(1, int(round(ratio * np.hypot(*mask.shape))))
    return mask & ~cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=distance)[1:-1, 1:-1].astype(bool)


@few
@given(seed=st.integers(0, 10**6), height=st.integers(1, 60), width=st.integers(1, 90), block=st.integers(1, 9))
def test_boundary_iou_is_the_published_one(seed, height, width, block):
    rng = np.random.default_rng(seed)
    shape = (-(-height // block), -(-width // block))
    truth, prediction = (rng.integers(0, 4, shape).repeat(block, 0).repeat(block, 1)[:height, :width] for _ in range(2))
    got = boundary_counts(torch.tensor(truth), torch.tensor(prediction), num_classes=5, ignore_index=255)
    for c in range(5):
        t, p = published_boundary(truth == c), published_boundary(prediction == c)
        assert got[:, c].tolist() == [(t & p).sum(), t.sum(), p.sum()]


def test_boundary_leaves_ignored_pixels_out_and_a_perfect_map_perfect():
    truth = torch.zeros(40, 40, dtype=torch.int64)
    truth[10:20] = 255
    prediction = torch.where(truth == 255, 1, truth)
    agree, of_truth, of_prediction = boundary_counts(truth, prediction, num_classes=2, ignore_index=255)
    assert agree.tolist() == of_truth.tolist() == of_prediction.tolist()
    assert of_truth[0] > 0
    assert of_truth[1] == 0
    missed = boundary_counts(truth, torch.full_like(truth, 255), num_classes=2, ignore_index=255, count_missed=True)
    assert missed[2].tolist() == [0, 0]


def test_boundary_width():
    assert boundary_distance(1024, 2048) == 46
    assert boundary_distance(3, 3) == 1
    lone = torch.zeros(9, 9, dtype=torch.uint8)
    assert int((~inner_boundary(lone, distance=2)).sum()) == 25


def plain_calibration_error(confidence, right):
    """Equation 3 of the paper as it is written."""
    error = 0.0
    for m in range(1, 16):
        inside = (confidence > (m - 1) / 15) & (confidence <= m / 15)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return error


@few
@given(seed=st.integers(0, 10**6), classes=st.integers(2, 7), sharpness=st.floats(0.1, 8))
def test_calibration_error_is_the_published_one(seed, classes, sharpness):
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(classes, 70, 9, generator=generator)
    truth = torch.randint(0, classes, (70, 9), generator=generator)
    truth[0, 0], truth[3] = 0, 255
    prediction = logits.argmax(0)
    counts = calibration_counts(logits, truth, prediction, ignore_index=255)
    kept = (truth != 255).numpy()
    confidence = logits.double().softmax(0).amax(0).numpy()[kept]
    expected = plain_calibration_error(confidence, (truth == prediction).numpy()[kept])
    assert int(counts[0].sum()) == kept.sum()
    assert expected_calibration_error(counts) == pytest.approx(expected, abs=2e-6)
    # averaged predictions are probabilities already
    again = calibration_counts(logits.softmax(0), truth, prediction, ignore_index=255)
    assert expected_calibration_error(again) == pytest.approx(expected, abs=2e-6)


def test_calibration_of_one_channel_and_of_nothing():
    probability = torch.tensor([[[0.9, 0.2]]])
    counts = calibration_counts(probability, torch.tensor([[1, 1]]), torch.tensor([[1, 0]]), ignore_index=255)
    assert expected_calibration_error(counts) == pytest.approx((0.1 + 0.8) / 2, abs=1e-6)
    # a bin holds its upper end: 0.8 = 12 / 15 is in the twelfth, 1 in the last
    assert counts[0].nonzero().flatten().tolist() == [11, 13]
    certain = calibration_counts(torch.ones(1, 1, 1), torch.ones(1, 1), torch.ones(1, 1), ignore_index=255)
    assert certain[0, 14] == certain[1, 14] == 1
    with pytest.raises(ValueError, match='undefined without pixels'):
        expected_calibration_error(counts * 0)


# the metric


def test_agrees_with_mmseg_and_has_its_keys():
    from mmseg.evaluation.metrics import IoUMetric

    samples = [sample(i, present=4) for i in range(3)]
    theirs = IoUMetric(iou_metrics=['mIoU'])
    theirs.dataset_meta = {'classes': NAMES}
    theirs.process({}, samples)
    expected = theirs.evaluate(3)
    got = evaluated(samples)
    assert next(iter(got)) == 'mIoU'
    assert {key: round(got[key], 2) for key in expected} == pytest.approx(expected, abs=0.011)
    assert [key for key in got if key.startswith('IoU/')] == [f'IoU/{name}' for name in NAMES[:4]]
    assert all(type(value) is float and value == value for value in got.values())


def test_options_add_their_keys_and_nothing_else():
    samples = [sample(i, scores=True) for i in range(2)]
    plain = evaluated(samples, per_class=False)
    assert set(plain) == {'mIoU', 'mAcc', 'aAcc'}
    rich = evaluated(samples, per_class=False, boundary=True, calibration=True, iou_metrics=['mIoU', 'mFscore'])
    assert set(rich) - set(plain) == {'mFscore', 'mPrecision', 'mRecall', 'boundary_mIoU', 'ECE'}
    assert {key: rich[key] for key in plain} == plain
    assert set(evaluated(samples, per_class=False, prefix='val')) == {'val/mIoU', 'val/mAcc', 'val/aAcc'}
    assert evaluated(samples, keep_results=False)['mIoU'] == plain['mIoU']


def test_definition_chooses_the_reported_mean():
    samples = [sample(i, present=4) for i in range(2)]
    values = {name: evaluated(samples, definition=name)['mIoU'] for name in ('mmseg', 'ade', 'gt_classes')}
    assert values['ade'] == pytest.approx(values['mmseg'] * 4 / 5)


@few
@given(order=st.permutations(range(5)), cuts=st.sets(st.integers(1, 4)))
def test_same_result_for_any_order_and_batch_split(order, cuts):
    options = {'boundary': True, 'calibration': True}
    samples = [sample(i, scores=True, size=(9 + i, 8)) for i in range(5)]
    expected = evaluated(samples, **options)
    made = metric(**options)
    edges = [0, *sorted(cuts), 5]
    for start, stop in zip(edges, edges[1:], strict=False):
        made.process({}, [samples[i] for i in order[start:stop]])
    assert made.evaluate(5) == expected


def test_evaluate_starts_afresh_and_knows_the_size():
    made = metric()
    for seed in (1, 2):
        made.process({}, [sample(seed)])
        assert made.evaluate(1) == evaluated([sample(seed)])
    made.process({}, [sample(1), sample(2), sample(3)])
    with pytest.raises(RuntimeError, match='2 images were counted in a data set of 1'):
        made.evaluate(1)


def test_works_on_data_samples_through_the_evaluator():
    from mmengine.evaluator import Evaluator
    from mmengine.structures import PixelData
    from mmseg.registry import METRICS
    from mmseg.structures import SegDataSample

    evaluator = Evaluator(METRICS.build({'type': 'ExactIoUMetric'}))
    evaluator.dataset_meta = {'classes': NAMES}
    plain = sample(4)
    whole = SegDataSample(metainfo={'img_path': 'a.jpg'})
    whole.gt_sem_seg = PixelData(data=plain['gt_sem_seg']['data'])
    whole.pred_sem_seg = PixelData(data=plain['pred_sem_seg']['data'])
    evaluator.process([whole], {})
    assert evaluator.evaluate(1) == evaluated([plain])


WORKER = """
import sys, torch
from torch.utils.data import DataLoader
from mmengine.dataset import DefaultSampler
from tests.evaluated import metric, sample
rank, store, out, images = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
torch.distributed.init_process_group('gloo', init_method=f'file://{store}', rank=rank, world_size=2)
data = list(range(images))
made = metric(out_dir=out, boundary=True, calibration=True, output_dir=out + '/predictions')
seen = 0
for batch in DataLoader(data, batch_size=2, sampler=DefaultSampler(data, shuffle=False)):
    made.process({}, [sample(int(i), scores=True) for i in batch])
    seen += len(batch)
found = made.evaluate(images)
print(seen, found['mIoU'])
"""


@pytest.mark.parametrize('images', [5])
def test_same_result_in_two_processes(tmp_path, images):
    """An odd number of images: the sampler repeats one, which must not count twice."""
    alone = tmp_path / 'alone'
    expected = evaluated(
        [sample(i, scores=True) for i in range(images)], out_dir=str(alone), boundary=True, calibration=True
    )
    together = tmp_path / 'together'
    workers = [
        subprocess.Popen(
            [sys.executable, '-c', WORKER, str(rank), str(tmp_path / 'store'), str(together), str(images)],
            cwd=ROOT,
            env={**os.environ, 'OMP_NUM_THREADS': '1'},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    results = [worker.communicate(timeout=300) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], results
    lines = [out.splitlines()[-1].split() for out, _ in results]
    assert sum(int(seen) for seen, _ in lines) == images + 1
    assert {float(value) for _, value in lines} == {expected['mIoU']}
    for name in ('metrics.json', 'per_image.csv', 'worst/01.jpg'):
        assert (together / name).read_bytes() == (alone / name).read_bytes(), name
    assert len(list((together / 'predictions').glob('*.png'))) == images


@pytest.mark.parametrize(
    ('change', 'options', 'message'),
    [
        ({'pred_sem_seg': None}, {}, r'images/1\.jpg: the result has no pred_sem_seg'),
        ({'gt_sem_seg': None}, {}, r'images/1\.jpg: the result has no gt_sem_seg; load annotations'),
        ({}, {'calibration': True}, r'images/1\.jpg: the result has no seg_logits; calibration=True'),
    ],
)
def test_results_that_lack_something_are_errors(change, options, message):
    found = {key: value for key, value in sample(1).items() if key not in change}
    with pytest.raises(UserError, match=message):
        metric(**options).process({}, [found])


def test_label_file_is_named_in_the_metric_too():
    found = sample(1)
    found['seg_map_path'] = 'labels/1.png'
    found['gt_sem_seg']['data'][0, 0, 0] = 77
    with pytest.raises(UserError, match=r'labels/1\.png: the ground truth holds 77'):
        metric().process({}, [found])


def test_nothing_to_score_is_an_error_and_not_a_nan():
    found = sample(1)
    found['gt_sem_seg']['data'][:] = 255
    with pytest.raises(UserError, match='all 221 pixels of 1 image.* are ignored.*check ignore_index'):
        evaluated([found])
    with pytest.raises(UserError, match='no image was evaluated'):
        evaluated([])
    made = ExactIoUMetric()
    made.dataset_meta = {}
    with pytest.raises(UserError, match='has no class names'):
        made.process({}, [sample(1)])


def test_options_that_contradict_are_errors(tmp_path):
    with pytest.raises(UserError, match='format_only=True writes predictions and needs output_dir'):
        metric(format_only=True)
    with pytest.raises(UserError, match="iou_metrics='mIou' is not known"):
        metric(iou_metrics=['mIou'])
    file = tmp_path / 'file'
    file.write_text('mine')
    with pytest.raises(UserError, match='is a file; name a folder'):
        metric(output_dir=str(file))
    with pytest.raises(UserError, match='is a file; name a folder for the metrics'):
        metric(out_dir=str(file))


# reports


def no_constants(name):
    raise AssertionError(f'{name} in the JSON')


def test_report_holds_everything_and_no_nan(tmp_path):
    samples = [sample(i, present=4, scores=True) for i in range(2)]
    got = evaluated(samples, out_dir=str(tmp_path), boundary=True, calibration=True)
    content = json.loads((tmp_path / 'metrics.json').read_text(), parse_constant=no_constants)
    assert content['definition'] == 'mmseg'
    assert set(content['mIoU_by_definition']) == {'mmseg', 'ade', 'gt_classes'}
    for key in ('mIoU', 'mAcc', 'aAcc', 'boundary_mIoU'):
        assert content[key] == got[key]
    assert content['expected_calibration_error'] == got['ECE']
    assert [row['absent'] for row in content['classes']] == [False] * 4 + [True]
    assert content['classes'][4]['IoU'] is None
    matrix = np.array(content['confusion_matrix'])
    assert matrix.sum() == content['counted_pixels'] == 2 * 13 * 17 - content['ignored_pixels']
    rows = list(csv.DictReader((tmp_path / 'metrics.csv').open()))
    assert [row['class'] for row in rows] == list(NAMES)
    assert [[int(row[f'predicted as {name}']) for name in NAMES] for row in rows] == matrix.tolist()
    assert rows[4]['IoU'] == ''
    assert 'nan' not in (tmp_path / 'metrics.csv').read_text().lower()
    with Image.open(tmp_path / 'confusion_matrix.png') as picture:
        assert max(picture.size) <= 3000


def test_reports_replace_only_their_own(tmp_path):
    evaluated([sample(1)], out_dir=str(tmp_path))
    before = (tmp_path / 'metrics.json').read_text()
    evaluated([sample(2)], out_dir=str(tmp_path))
    assert (tmp_path / 'metrics.json').read_text() != before
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        'confusion_matrix.png',
        'metrics.csv',
        'metrics.json',
        'per_image.csv',
        'worst',
    ]
    evaluated([sample(2)], out_dir=str(tmp_path), figure=False)
    assert not (tmp_path / 'confusion_matrix.png').exists() and (tmp_path / 'metrics.csv').exists()
    for name, text in (('metrics.json', '{"mine": 1}'), ('metrics.csv', 'mine')):
        folder = tmp_path / name.replace('.', '_')
        folder.mkdir()
        (folder / name).write_text(text)
        with pytest.raises(UserError, match=f'{name} exists and was not written by volo-seg'):
            metric(out_dir=str(folder))
        assert (folder / name).read_text() == text


def test_tables_are_aligned_sorted_and_show_absent_classes():
    scores = compute_scores(tally_of([maps(1, present=4)], 5), NAMES)
    lines = class_table(scores.classes).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[5].split()[:2] == ['fence', 'absent']
    assert 'nan' not in class_table(scores.classes)
    worst = sorted_worst_first(scores.classes)
    assert [row.iou for row in worst[:4]] == sorted(row.iou for row in scores.classes[:4])
    assert worst[-1].name == 'fence'
    text = summary(scores, definition='ade')
    assert text.startswith(f'mIoU {scores.mean_iou["ade"]:.2%} (mean IoU over all classes')
    assert 'mmseg' in text
    assert 'gt_classes' in text


def test_log_shows_the_tables(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr('volo_seg.evaluation.metric.print_log', lambda text, *_, **__: lines.append(text))
    evaluated([sample(1, present=4)])
    assert lines[0].startswith('by class:\nclass')
    assert lines[1].startswith('by class, worst first:\nclass')
    assert lines[2].startswith('mIoU ')


def test_names_that_occur_twice_stay_apart():
    assert unique_names(['a', 'b', 'a']) == ['a #0', 'b', 'a #2']
    with pytest.raises(ValueError, match='2 class names for a matrix of 3'):
        compute_scores(Tally.empty(3), ['a', 'b'])


@pytest.mark.parametrize('classes', [2, 19, 150, 400])
def test_picture_is_capped(classes):
    rng = np.random.default_rng(0)
    matrix = rng.integers(0, 100, (classes, classes + 1))
    matrix[1] = 0
    names = [f'class {i} ' + 'x' * i for i in range(classes)]
    content = confusion_figure(matrix, names)
    with Image.open(io.BytesIO(content)) as picture:
        assert 700 <= min(picture.size) <= max(picture.size) <= 3000
    percent = row_percent(matrix)
    assert np.isnan(percent[1]).all()
    assert np.allclose(np.delete(percent, 1, 0).sum(1), 100)


def test_report_functions_agree_on_classes():
    tally = tally_of([maps(3)], 5)
    scores = compute_scores(tally, NAMES)
    content = report_content(tally, scores, definition='mmseg', ignore_index=255)
    assert len(class_csv(tally, scores).splitlines()) == 1 + len(content['classes']) == 6


# predictions


def test_predictions_are_written_under_image_names(tmp_path):
    found = sample(1, path='data/leftImg8bit/val/ulm/a.jpg')
    made = metric(output_dir=str(tmp_path))
    made.process({}, [found])
    labels = read_labels(tmp_path / 'a.png')
    assert labels.dtype == np.uint8
    assert np.array_equal(labels, found['pred_sem_seg']['data'][0].numpy())
    found['reduce_zero_label'] = True
    metric(output_dir=str(tmp_path)).process({}, [found])
    assert np.array_equal(read_labels(tmp_path / 'a.png'), labels + 1)
    assert [path.name for path in tmp_path.rglob('*') if path.is_file()] == ['a.png']


def test_format_only_needs_no_ground_truth_and_deletes_nothing(tmp_path):
    (tmp_path / 'mine.txt').write_text('mine')
    found = sample(1)
    del found['gt_sem_seg']
    made = metric(output_dir=str(tmp_path), format_only=True, keep_results=False)
    made.process({}, [found])
    assert made.evaluate(1) == {}
    del made
    assert sorted(path.name for path in tmp_path.iterdir()) == ['1.png', 'mine.txt']


def test_predictions_never_replace_what_is_not_theirs(tmp_path):
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / '1.png')
    before = (tmp_path / '1.png').read_bytes()
    with pytest.raises(UserError, match=r'1\.png exists and was not written by volo-seg'):
        metric(output_dir=str(tmp_path)).process({}, [sample(1)])
    assert (tmp_path / '1.png').read_bytes() == before
    (tmp_path / '2.png').write_text('no picture')
    with pytest.raises(UserError, match='was not written by volo-seg'):
        write_labels(tmp_path / '2.png', np.zeros((2, 2), int))


def test_two_images_of_one_name_are_an_error_without_img_dir(tmp_path):
    labels = np.zeros((2, 2), np.uint8)
    writer = PredictionWriter(tmp_path)
    writer.write(labels, img_path='data/a/1.jpg')
    writer.write(labels, img_path='data/a/1.jpg')
    with pytest.raises(UserError, match=r'data/a/1\.jpg and data/b/1\.jpg would both be written to 1\.png'):
        writer.write(labels, img_path='data/b/1.jpg')
    with pytest.raises(UserError, match='would both be written'):
        check_sources([{'1.png': 'data/a/1.jpg'}, {'1.png': 'data/b/1.jpg'}])
    kept = PredictionWriter(tmp_path, img_dir='data')
    for folder in 'ab':
        kept.write(labels, img_path=f'data/{folder}/1.jpg')
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob('*.png')) == [
        '1.png',
        'a/1.png',
        'b/1.png',
    ]
    with pytest.raises(UserError, match="is not below img_dir='data'"):
        kept.write(labels, img_path='elsewhere/1.jpg')


@pytest.mark.parametrize('largest', [3, 255, 300, 65535])
def test_labels_survive_the_file(tmp_path, largest):
    labels = np.array([[0, 1], [2, largest]])
    write_labels(tmp_path / 'deep' / 'a.png', labels)
    assert np.array_equal(read_labels(tmp_path / 'deep' / 'a.png'), labels)
    with pytest.raises(ValueError, match='cannot hold'):
        write_labels(tmp_path / 'b.png', labels + 65535)
    assert not (tmp_path / 'b.png').exists()


def test_files_that_hold_no_labels_are_errors(tmp_path):
    Image.new('RGB', (2, 2)).save(tmp_path / 'rgb.png')
    with pytest.raises(UserError, match=r'rgb\.png is a colour image \(mode RGB\)'):
        read_labels(tmp_path / 'rgb.png')
    (tmp_path / 'text.png').write_text('hello')
    with pytest.raises(UserError, match=r'text\.png cannot be read as an image'):
        read_labels(tmp_path / 'text.png')
    whole = (tmp_path / 'rgb.png').read_bytes()
    (tmp_path / 'half.png').write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r'half\.png'):
        read_labels(tmp_path / 'half.png')
    with pytest.raises(UserError, match='does not exist'):
        read_labels(tmp_path / 'none.png')
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='cannot be written'):
        write_labels(tmp_path / 'file' / 'a.png', np.zeros((1, 1), int))

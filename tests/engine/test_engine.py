"""The runner's parts: evaluation beside the network, config trees, files that cannot be read."""

import os
import threading

import cv2
import numpy as np
import pytest
from mmengine.evaluator import BaseMetric

from volo_seg.config.load import find_config, parse_options, shipped_configs
from volo_seg.engine.data_files import check_files, unreadable_file, why_unreadable
from volo_seg.engine.launch import replace_types
from volo_seg.errors import UserError
from volo_seg.evaluation import OverlappedEvaluator


class Recorder(BaseMetric):
    """Remembers what it saw and where; fails on a negative number; may be held up."""

    def __init__(self):
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.threads = set()

    def process(self, data_batch, data_samples):
        assert self.gate.wait(10)
        self.threads.add(threading.get_ident())
        if data_samples[0] < 0:
            raise UserError('a bad label')
        self.results.extend(data_samples)

    def compute_metrics(self, results):
        return {'seen': list(results)}


def test_batches_are_counted_in_order_beside_the_caller():
    metric = Recorder()
    evaluator = OverlappedEvaluator([metric])
    metric.gate.clear()
    evaluator.process([0], None)  # returns although the metric cannot go on
    assert metric.results == []
    metric.gate.set()
    for number in range(1, 20):
        evaluator.process([number], None)
    assert evaluator.evaluate(20) == {'seen': list(range(20))}
    assert len(metric.threads) == 1 and threading.get_ident() not in metric.threads


@pytest.mark.parametrize('after', ['batch', 'end'])
def test_what_a_metric_raises_is_raised_here(after):
    evaluator = OverlappedEvaluator([Recorder()])
    evaluator.process([-1], None)
    with pytest.raises(UserError, match='a bad label'):
        evaluator.process([1], None) if after == 'batch' else evaluator.evaluate(1)


def test_replace_types_copies():
    tree = dict(type='SyncBN', inner=[dict(type='SyncBN'), ('SyncBN', dict(type='GN'))], name='SyncBN')
    assert replace_types(tree, {'SyncBN': 'BN'}) == dict(
        type='BN', inner=[dict(type='BN'), ('SyncBN', dict(type='GN'))], name='SyncBN'
    )
    assert tree['type'] == 'SyncBN'


def test_options_parse_as_in_mmengine():
    assert parse_options(['a.b=1', 'c=[1,2]', 'd="(3,4)"', 'e=None', 'f=x=y']) == {
        'a.b': 1,
        'c': [1, 2],
        'd': (3, 4),
        'e': None,
        'f': 'x=y',
    }
    with pytest.raises(UserError, match="'=1' is not of the form"):
        parse_options(['=1'])


def test_every_shipped_config_is_found_by_name_and_with_suffix(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, path in shipped_configs().items():
        assert find_config(name) == find_config(f'{name}.py') == path


def test_why_unreadable(tmp_path):
    good = tmp_path / 'good.png'
    cv2.imwrite(str(good), np.zeros((4, 4, 3), np.uint8))
    (tmp_path / 'cut.png').write_bytes(good.read_bytes()[:30])
    (tmp_path / 'empty.png').touch()
    assert why_unreadable(good) is None
    assert 'does not exist' in why_unreadable(tmp_path / 'none.png')
    assert 'not a file' in why_unreadable(tmp_path)
    assert 'empty' in why_unreadable(tmp_path / 'empty.png')
    assert why_unreadable(tmp_path / 'cut.png')


class Files:
    """A data set of one image and its label file."""

    data_root = '.'

    def __init__(self, *paths):
        self.paths = paths

    def __len__(self):
        return 1

    def get_data_info(self, index):
        return dict(zip(('img_path', 'seg_map_path'), map(str, self.paths), strict=True))


@pytest.mark.parametrize('label', [False, True])
def test_pipes_and_devices_are_never_opened(label, tmp_path):
    good = tmp_path / 'good.png'
    cv2.imwrite(str(good), np.zeros((4, 4, 3), np.uint8))
    check_files(Files(good, good))
    os.mkfifo(tmp_path / 'fifo.png')
    (tmp_path / 'zero.png').symlink_to('/dev/zero')
    for name in ('fifo.png', 'zero.png'):
        files = Files(good, tmp_path / name) if label else Files(tmp_path / name, good)
        with pytest.raises(UserError, match=rf"cannot read '.*{name}': it is a pipe, socket or device, not a file"):
            check_files(files)


def test_the_unreadable_file_is_named(tmp_path):
    good, cut, empty = (tmp_path / name for name in ('good.png', 'cut.png', 'empty.png'))
    cv2.imwrite(str(good), np.zeros((4, 4, 3), np.uint8))
    cut.write_bytes(good.read_bytes()[:30])
    empty.touch()

    class Wrapper:
        dataset = Files(good, cut)

    wrapped = [Wrapper()]
    assert f'{cut}' in str(unreadable_file(AssertionError(f'failed to load image: {cut}'), wrapped))
    assert unreadable_file(AssertionError('a bug'), wrapped) is None
    assert unreadable_file(KeyError(str(cut)), wrapped) is None
    assert unreadable_file(AssertionError(f'{good}: a bug'), wrapped) is None
    missing = unreadable_file(FileNotFoundError(), [Files(good, tmp_path / 'none.png')])
    assert "none.png': the file does not exist; copy the file again" in str(missing)
    assert "empty.png': the file is empty" in str(unreadable_file(cv2.error('!buf.empty()'), [Files(good, empty)]))

"""Many images: in their order, in batches of one size, few in memory, whatever fails among them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from volo_seg.errors import UserError
from volo_seg.inference import BasePredictor, Failure
from volo_seg.inference.base import Prediction

SETTINGS = settings(max_examples=80, deadline=None, database=None)


class Counting(BasePredictor):
    """Labels are the first channel modulo 3; batches are noted, and those above ``fits`` images are refused."""

    def __init__(self, *, fits=99, **options):
        super().__init__(('a', 'b', 'c'), [[0, 0, 0], [1, 2, 3], [255, 255, 255]], **options)
        self.batches, self.fits, self.asked = [], fits, []

    def _segment(self, batch, *, confidence, probabilities):
        self.batches.append([image.shape[:2] for image in batch])
        self.asked.append((confidence, probabilities))
        if len(batch) > self.fits or any(image.max() == 255 for image in batch):
            raise UserError('it does not fit into the memory')
        return [Prediction(image[..., 0] % 3) for image in batch]


def pictures(sizes):
    """Images whose values are their numbers, so that they can be told apart."""
    return [np.full((*size, 3), number, np.uint8) for number, size in enumerate(sizes)]


SIZES = st.lists(st.sampled_from([(2, 3), (4, 4), (1, 9), (3, 2)]), max_size=14)


@SETTINGS
@given(SIZES, st.integers(1, 5), st.integers(1, 9), st.integers(0, 3))
def test_order_batches_and_memory(sizes, batch_size, look_ahead, readers):
    predictor = Counting()
    images = pictures(sizes)
    taken = []

    def items():
        for number, image in enumerate(images):
            taken.append(number)
            yield image

    given = 0
    for result in predictor.stream(items(), batch_size=batch_size, look_ahead=look_ahead, readers=readers):
        np.testing.assert_array_equal(result.image, images[given])
        np.testing.assert_array_equal(result.labels, images[given][..., 0] % 3)
        given += 1
        assert len(taken) - given <= look_ahead + 2 * readers
    assert given == len(images) and sum(map(len, predictor.batches)) == len(images)
    assert all(len(set(batch)) == 1 and len(batch) <= batch_size for batch in predictor.batches)


def test_batches_are_full_where_they_can_be():
    predictor = Counting(batch_size=3)
    predictor(pictures([(2, 3), (4, 4)] * 6))
    assert sorted(map(len, predictor.batches)) == [3, 3, 3, 3]


@SETTINGS
@given(st.lists(st.booleans(), max_size=10), st.integers(1, 4), st.integers(0, 2))
def test_failures_keep_their_place(broken, batch_size, readers):
    sources = [np.zeros((2, 2)) if bad else np.full((2, 2, 3), n, np.uint8) for n, bad in enumerate(broken)]
    results = list(Counting().stream(sources, batch_size=batch_size, readers=readers, on_error='yield'))
    assert [isinstance(result, Failure) for result in results] == broken
    for source, result in zip(sources, results, strict=True):
        if isinstance(result, Failure):
            assert result.source is source or np.array_equal(result.source, source)
            assert 'of float64' in result.reason
        else:
            np.testing.assert_array_equal(result.image, source)


def test_raises_after_the_results_before():
    sources = [*pictures([(2, 3), (4, 4)]), 'missing.png', *pictures([(2, 3)])]
    stream = Counting().stream(sources, batch_size=4)
    assert [next(stream).labels.shape for _ in range(2)] == [(2, 3), (4, 4)]
    with pytest.raises(UserError, match=r'missing.png. does not exist'):
        next(stream)
    with pytest.raises(UserError, match='missing'):
        Counting()(sources)


def test_a_batch_that_does_not_fit_is_taken_apart():
    predictor = Counting(batch_size=4, fits=2)
    images = pictures([(2, 3)] * 3) + [np.full((2, 3, 3), 255, np.uint8)]
    results = list(predictor.stream(images, on_error='yield'))
    assert [type(result).__name__ for result in results] == ['Result', 'Result', 'Result', 'Failure']
    assert [len(batch) for batch in predictor.batches] == [4, 1, 1, 1, 1]


def test_kinds_of_input(tmp_path):
    predictor = Counting()
    array = pictures([(5, 7)])[0]
    Image.fromarray(array).save(tmp_path / 'street.one.png')
    for source in (array, Image.fromarray(array), tmp_path / 'street.one.png', str(tmp_path / 'street.one.png')):
        result = predictor(source)
        assert result.labels.shape == (5, 7)
        assert result.name == ('street.one' if isinstance(source, (str, type(tmp_path))) else None)
    for several in ([array, array], (array, array)):
        assert [result.labels.shape for result in predictor(several)] == [(5, 7), (5, 7)]
    assert predictor([]) == []
    assert predictor.classes == ('a', 'b', 'c') and predictor.palette.dtype == np.uint8


def test_iterables_are_read_as_results_are_asked_for():
    predictor = Counting()
    taken = []
    results = predictor(taken.append(n) or image for n, image in enumerate(pictures([(2, 2)] * 5)))
    assert taken == []
    next(results)
    assert taken == [0]
    assert len(list(results)) == 4


def test_an_array_that_is_used_again():
    """As a video reader does that writes each frame into the same array."""
    buffer = np.zeros((2, 2, 3), np.uint8)

    def frames():
        for number in range(7):
            buffer[:] = number
            yield buffer

    for readers in (0, 2):
        results = list(Counting().stream(frames(), batch_size=3, readers=readers))
        assert [result.image[0, 0, 0] for result in results] == list(range(7))


def test_reader_threads_end(tmp_path):
    import threading

    before = threading.active_count()
    stream = Counting().stream((image for image in pictures([(2, 2)] * 9)), readers=3)
    next(stream)
    stream.close()
    del stream
    assert threading.active_count() == before


def test_a_broken_generator_is_not_hidden():
    def items():
        yield pictures([(2, 2)])[0]
        raise RuntimeError('mine')

    for readers in (0, 2):
        with pytest.raises(RuntimeError, match='mine'):
            list(Counting().stream(items(), readers=readers))


def test_what_is_asked_for():
    predictor = Counting(confidence=True)
    image = pictures([(2, 2)])[0]
    predictor(image)
    list(predictor.stream([image], confidence=False, probabilities=True))
    assert predictor.asked == [(True, False), (False, True)]


@pytest.mark.parametrize(
    ('options', 'reason'),
    [
        ({'batch_size': 0}, 'batch_size=0 must be a whole number, 1 or more'),
        ({'batch_size': True}, 'batch_size=True'),
        ({'look_ahead': 1.5}, 'look_ahead=1.5'),
        ({'readers': -1}, 'readers=-1 must be a whole number, 0 or more'),
        ({'on_error': 'ignore'}, "on_error='ignore' is not known; choose 'raise' or 'yield'"),
    ],
)
def test_wrong_options(options, reason):
    with pytest.raises(UserError, match=reason):
        Counting().stream([], **options)


def test_wrong_sources():
    with pytest.raises(UserError, match='this is of type int'):
        Counting()(7)
    with pytest.raises(UserError, match=r'shape \(2, 4, 4, 3\).*as a list'):
        Counting()(np.zeros((2, 4, 4, 3), np.uint8))

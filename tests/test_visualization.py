"""Palettes, overlays and contact sheets."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from volo_seg.inference.result import Result
from volo_seg.visualization import (
    colourize,
    default_palette,
    draw_sheet,
    image_of_batch,
    make_row,
    overlay,
    palette_array,
)


@pytest.mark.parametrize(
    'image',
    [
        None,
        torch.zeros(3, 30, 50, dtype=torch.uint8),
        torch.zeros(1, 30, 50, dtype=torch.uint8),
        torch.rand(6, 30, 50) * 4000,
        np.full((2, 30, 50), np.nan, np.float32),
    ],
    ids=['none', 'bgr', 'grey', 'six floats', 'two nan'],
)
def test_sheets_take_any_image(image):
    labels = np.zeros((30, 50), np.int64)
    row = make_row('x' * 300, image=image, labels=(labels, labels), note='\n<b>')
    assert row.image.shape == (192, 320, 3) and row.labels[1].shape == (192, 320)
    jpeg = draw_sheet([row], title='t' * 500, classes=['ü' * 90], palette=None)
    assert cv2.imdecode(np.frombuffer(jpeg, np.uint8), 1).shape[1] == 976


def test_sheet_shows_image_prediction_and_truth():
    image = torch.zeros(3, 100, 40, dtype=torch.uint8)
    image[0] = 200  # blue
    prediction, truth = torch.zeros(100, 40, dtype=torch.int64), torch.full((100, 40), 255)
    truth[50:] = 1
    row = make_row('tall', image=image, labels=(prediction, truth))
    assert row.image.shape == (480, 192, 3)
    jpeg = draw_sheet([row], title='', classes=('a', 'b'), palette=[[255, 0, 0], [0, 255, 0]])
    sheet = cv2.imdecode(np.frombuffer(jpeg, np.uint8), 1)[..., ::-1].astype(int)
    top = 60
    for column, upper, lower in (
        (0, (0, 0, 200), (0, 0, 200)),
        (1, (178, 0, 60), (178, 0, 60)),
        (2, (0, 0, 0), (0, 178, 60)),
    ):
        at = 4 + 324 * column + 160
        assert np.abs(sheet[top + 100, at] - upper).max() < 12, column
        assert np.abs(sheet[top + 380, at] - lower).max() < 12, column
    with pytest.raises(ValueError, match='needs at least one row'):
        draw_sheet([], title='', classes=(), palette=None)


def test_rows_stand_side_by_side_and_the_legend_names_what_occurs():
    labels = np.zeros((30, 60), np.int64)
    rows = [make_row(str(i), image=None, labels=(labels,)) for i in range(3)]
    words = dict(title='', classes=('a', 'b'), palette=[[255, 0, 0], [0, 255, 0]], columns=('image', 'labels'))
    one, two = (
        cv2.imdecode(np.frombuffer(draw_sheet(rows, across=n, format='PNG', **words), np.uint8), 1) for n in (1, 2)
    )
    assert one.shape[1] == 2 * 324 + 4 and two.shape[1] == 4 * 324 + 4
    assert one.shape[0] - two.shape[0] == 160 + 24  # a line of pictures less
    assert (one == (0, 0, 255)).all(2).any() and not (one == (0, 255, 0)).all(2).any()  # red is used, green is not
    large = make_row('large', image=None, labels=(labels,), size=(640, 480))
    assert large.image.shape == (320, 640, 3)
    wide = cv2.imdecode(np.frombuffer(draw_sheet([large], **words), np.uint8), 1)
    assert wide.shape[1] == 2 * 644 + 4


def test_palettes():
    assert default_palette(4).tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert default_palette(3, first=1).tolist() == default_palette(4)[1:].tolist()
    assert len(np.unique(default_palette(256), axis=0)) == 256
    assert palette_array([[1, 2, 3]] * 3, 2).tolist() == [[1, 2, 3]] * 2
    for unusable in (None, [[1, 2, 3]], [[1, 2], [3, 4]], [[0, 0, 256]] * 2, [['a', 0, 0]] * 2, [[1], [2, 3]], 5):
        assert palette_array(unusable, 2, first=1).tolist() == [[128, 0, 0], [0, 128, 0]], unusable


few = settings(max_examples=30, deadline=None)


@few
@given(seed=st.integers(0, 10**6), classes=st.integers(1, 300), opacity=st.floats(0, 1))
def test_overlay_is_the_weighted_sum(seed, classes, opacity):
    """Each pixel equals ``cv2.addWeighted`` of the indexed palette and the image."""
    generator = np.random.default_rng(seed)
    palette = generator.integers(0, 256, (classes, 3), dtype=np.uint8)
    labels = generator.integers(0, classes, (13, 17)).astype(np.uint8 if classes <= 256 else np.int32)
    image = generator.integers(0, 256, (13, 17, 3), dtype=np.uint8)
    result = Result(image, labels, tuple(map(str, range(classes))), palette)
    colour = palette[:, ::-1][labels]
    assert np.array_equal(result.colour(), colour) and np.array_equal(colourize(labels, palette), palette[labels])
    expected = cv2.addWeighted(colour, opacity, image, 1.0 - opacity, 0.0)
    assert np.array_equal(result.overlay(opacity=opacity), expected)
    unknown = labels.astype(np.int64)
    unknown[0, 0], unknown[5, 5] = -1, classes
    mixed = overlay(image, unknown, palette[:, ::-1], opacity=opacity)
    assert not mixed[0, 0].any() and not mixed[5, 5].any()
    mixed[0, 0], mixed[5, 5] = expected[0, 0], expected[5, 5]
    assert np.array_equal(mixed, expected)
    for wrong in (-0.1, 1.1, float('nan')):
        with pytest.raises(ValueError, match='is not in'):
            result.overlay(opacity=wrong)


def test_images_come_out_of_any_batch():
    stacked = torch.arange(24).reshape(2, 3, 2, 2)
    assert image_of_batch({'inputs': stacked}, 1).equal(stacked[1])
    assert image_of_batch({'inputs': [stacked[0]]}, 0).equal(stacked[0])
    assert image_of_batch({'inputs': [[stacked[0], stacked[1]]] * 2}, 1).equal(stacked[1])  # views first: TTA
    for batch in (None, {}, {'inputs': []}, [stacked], {'inputs': ['x']}):
        assert image_of_batch(batch, 0) is None

"""What an answer holds: labels, masks, shares, confidence, overlay, in each output."""

import base64
import io
import json

import cv2
import numpy as np
import pytest
from fastapi import HTTPException
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageDraw
from serving import NAMES, PALETTE, Thirds, noise

from volo_seg.errors import UserError
from volo_seg.inference.base import Prediction
from volo_seg.inference.result import Result
from volo_seg.serve.models import Model, open_models
from volo_seg.serve.responses import Answer, choose_output, class_shares, encode, jpeg, label_png

LABELS = arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 2))


def result_of(labels, confidence=None, classes=NAMES):
    palette = np.array((PALETTE * len(classes))[: len(classes)], np.uint8)
    return Result(np.full((*labels.shape, 3), 77, np.uint8), labels, tuple(classes), palette, confidence)


def file_of(text):
    return Image.open(io.BytesIO(base64.b64decode(text)))


def drawn_runs(rle):
    """The mask of COCO's run lengths, pixel by pixel."""
    height, width = rle.size
    flat = [i % 2 for i, count in enumerate(rle.counts) for _ in range(count)]
    assert len(flat) <= height * width
    flat += [0] * (height * width - len(flat))
    return np.array([[flat[x * height + y] for x in range(width)] for y in range(height)], bool)


@settings(max_examples=40, deadline=None)
@given(LABELS)
def test_shares_and_run_lengths_are_the_labels(labels):
    rows = class_shares(result_of(labels), masks='rle')
    assert [row.share for row in rows] == sorted((row.share for row in rows), reverse=True)
    assert {row.id: row.share for row in rows} == {i: (labels == i).mean() for i in np.unique(labels)}
    for row in rows:
        assert (row.name, row.colour) == (NAMES[row.id], PALETTE[row.id])
        assert np.array_equal(drawn_runs(row.rle), labels == row.id)
        assert all(row.rle.counts[1:])


@settings(max_examples=40, deadline=None)
@given(LABELS)
def test_polygons_cover_their_class(labels):
    for row in class_shares(result_of(labels), masks='polygons'):
        cover = np.zeros(np.array(labels.shape) * 4, bool)
        for outer, *holes in row.polygons:
            sheet = Image.new('1', cover.shape[::-1])
            for value, ring in [(1, outer), *((0, hole) for hole in holes)]:
                ImageDraw.Draw(sheet).polygon([(4 * x, 4 * y) for x, y in ring], fill=value)
            cover |= np.array(sheet)
        assert np.array_equal(cover[2::4, 2::4], labels == row.id)


@pytest.mark.parametrize('classes', [3, 256, 300])
def test_files_are_the_labels(classes):
    kind = np.uint8 if classes <= 256 else np.int32
    labels = np.random.default_rng(0).integers(0, classes, (7, 11)).astype(kind)
    sure = np.linspace(0, 1, 77, dtype=np.float32).reshape(7, 11)
    result = result_of(labels, sure, [str(i) for i in range(classes)])
    content = encode('json', result, model='m', seconds=1.5, include=('labels', 'confidence', 'image'))
    answer = Answer.model_validate_json(content)
    assert np.array_equal(np.array(file_of(answer.labels)), labels)
    if classes <= 256:
        picture = file_of(answer.labels)
        assert picture.mode == 'P'
        assert np.array_equal(np.array(picture.convert('RGB')), result.palette[labels])
    np.testing.assert_allclose(np.array(file_of(answer.confidence)) / 255, sure, atol=0.5 / 255 + 1e-6)
    assert answer.mean_confidence == pytest.approx(0.5)
    assert file_of(answer.image).size == (11, 7)
    arrays = np.load(io.BytesIO(encode('npz', result, model='m', seconds=0)), allow_pickle=False)
    assert np.array_equal(arrays['labels'], labels)
    assert np.array_equal(arrays['confidence'], sure)
    assert arrays['classes'].tolist() == list(result.classes)
    overlay = cv2.imdecode(np.frombuffer(encode('overlay', result, model='m', seconds=0, opacity=0.25), np.uint8), 1)
    assert np.array_equal(overlay, result.overlay(opacity=0.25))


def test_without_confidence_there_is_none():
    result = result_of(noise(1)[..., 0] % 3)
    assert 'confidence' not in encode('json', result, model='m', seconds=0).decode()
    assert 'confidence' not in np.load(io.BytesIO(encode('npz', result, model='m', seconds=0)))


def test_a_large_image_is_shown_smaller_and_filed_whole():
    result = result_of(noise(2, (3, 6144))[..., None].squeeze() % 3)
    answer = json.loads(encode('json', result, model='m', seconds=0, include=('labels', 'image')))
    assert (answer['width'], answer['height']) == (6144, 3)
    assert file_of(answer['image']).size == (2048, 1)
    assert np.array_equal(np.array(file_of(answer['labels'])), result.labels)
    assert Image.open(io.BytesIO(jpeg(noise(0, (30, 10, 3)), longest=30))).size == (10, 30)


def test_label_png_is_as_small_as_its_palette():
    assert len(label_png(result_of(np.zeros((64, 64), np.uint8)))) < 200


def test_a_model_without_confidence_is_found_out(monkeypatch):
    predictor = Thirds()
    whole = predictor._segment

    def labels_alone(batch, *, confidence, probabilities):
        if confidence:
            raise UserError('labels alone')
        return [Prediction(score.labels) for score in whole(batch, confidence=False, probabilities=False)]

    monkeypatch.setattr(predictor, '_segment', labels_alone)
    monkeypatch.setattr('volo_seg.inference.load.load_predictor', lambda *a, **k: predictor)
    assert not open_models(['argmax.onnx'])[0].confidence
    monkeypatch.setattr(predictor, '_segment', whole)
    assert open_models(['logits.onnx']) == [Model('logits', predictor)]


@pytest.mark.parametrize(
    ('accept', 'output', 'expected'),
    [
        (None, None, 'json'),
        ('', None, 'json'),
        ('*/*', None, 'json'),
        ('application/json', None, 'json'),
        ('image/png', None, 'labels'),
        ('IMAGE/*', None, 'labels'),
        ('image/png; kind=overlay', None, 'overlay'),
        ('image/png;kind=labels', None, 'labels'),
        ('application/x-npz', None, 'npz'),
        ('text/html, image/png;q=0.5, application/json;q=0.9', None, 'json'),
        ('application/json;q=0, image/png;q=0.001', None, 'labels'),
        ('image/png', 'npz', 'npz'),
        ('text/html', 'overlay', 'overlay'),
    ],
)
def test_output_by_accept(accept, output, expected):
    assert choose_output(accept, output) == expected


@pytest.mark.parametrize('accept', ['text/html', 'image/png;kind=x', 'application/json;q=0', 'image/png;q=x', ';;,'])
def test_what_cannot_be_answered_is_406(accept):
    with pytest.raises(HTTPException) as caught:
        choose_output(accept, None)
    assert caught.value.status_code == 406
    assert 'application/x-npz' in caught.value.detail

"""What is written of a result: every kind read back, polygons that give the labels back, and nothing outside."""

import csv
import errno
import json
import os

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from volo_seg.errors import UserError
from volo_seg.inference.output_formats import OUTPUT_FORMATS
from volo_seg.inference.polygons import geojson, labelme, regions, signed_area
from volo_seg.inference.result import Result
from volo_seg.io import WriteError

CLASSES = ('road', 'café', 'sky, blue')
PALETTE = np.array([(128, 64, 128), (1, 2, 3), (70, 130, 180)], np.uint8)
MAPS = arrays.arrays(
    np.uint8, arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12), elements=st.integers(0, 2)
)


def result_of(labels, classes=CLASSES, palette=PALETTE, **scores):
    image = np.random.default_rng(0).integers(0, 255, (*labels.shape, 3), dtype=np.uint8)
    return Result(image, labels, classes, palette, **scores)


def rasterise(rings, shape):
    """The rule, by itself: the pixels whose centre has an odd number of edges to its left."""
    flips = np.zeros((shape[0], shape[1] + 1), np.uint8)
    for ring in rings:
        for (x0, y0), (x1, y1) in zip(ring[:-1], ring[1:], strict=True):
            assert (x0 == x1) != (y0 == y1)
            if x0 == x1:
                flips[min(y0, y1) : max(y0, y1), x0] ^= 1
    return np.bitwise_xor.accumulate(flips, axis=1)[:, :-1].astype(bool)


@given(MAPS)
@settings(max_examples=150, deadline=None)
def test_polygons_give_the_labels_back(labels):
    seen = np.zeros(labels.shape, int)
    for region in regions(labels):
        inside = rasterise(region.rings, labels.shape)
        assert (labels[inside] == region.label).all()
        assert inside.sum() == region.pixels == sum(signed_area(ring) for ring in region.rings)
        seen += inside
    assert (seen == 1).all()


@given(MAPS)
@settings(max_examples=150, deadline=None)
def test_outlines_painted_in_order_give_the_labels_back(labels):
    canvas = np.full(labels.shape, 255, np.uint8)
    for region in regions(labels):
        canvas[rasterise(region.rings[:1], labels.shape)] = region.label
    assert (canvas == labels).all()


@given(MAPS)
@settings(max_examples=150, deadline=None)
def test_rings_are_closed_turn_the_right_way_and_do_not_touch_themselves(labels):
    for region in regions(labels):
        for index, ring in enumerate(region.rings):
            assert (ring[0] == ring[-1]).all()
            assert len({tuple(point) for point in ring[:-1].tolist()}) == len(ring) - 1
            assert (signed_area(ring) > 0) == (index == 0)


def test_polygons_of_all_small_masks():
    """Every region that fits into 3x4 pixels, as the zeros or as the ones."""
    for bits in range(2**11):
        labels = (bits >> np.arange(12) & 1).astype(np.uint8).reshape(3, 4)
        canvas = np.full(labels.shape, 9, np.uint8)
        for region in regions(labels):
            canvas[rasterise(region.rings, labels.shape)] = region.label
        assert (canvas == labels).all(), labels


def test_polygons_are_what_rasterio_fills():
    features = pytest.importorskip('rasterio.features')
    labels = cv2.resize(np.random.default_rng(1).integers(0, 3, (9, 12), dtype=np.uint8), (60, 45), interpolation=0)
    document = geojson(labels, CLASSES, PALETTE)
    assert (document['width'], document['height']) == (60, 45)
    pairs = [(feature['geometry'], feature['properties']['id']) for feature in document['features']]
    assert (features.rasterize(pairs, out_shape=labels.shape, fill=255, dtype='uint8') == labels).all()


def test_documents_name_class_and_colour():
    labels = np.zeros((4, 5), np.uint8)
    labels[1:3, 1:3] = 1
    document = json.loads(json.dumps(geojson(labels, CLASSES, PALETTE)))
    outer, inner = document['features']
    assert outer['properties'] == {'class': 'road', 'id': 0, 'pixels': 16, 'colour': '#804080'}
    assert sorted(map(tuple, outer['geometry']['coordinates'][0])) == sorted([(0, 0), (5, 0), (5, 4), (0, 4), (0, 0)])
    assert len(outer['geometry']['coordinates']) == 2
    assert inner['properties']['class'] == 'café'
    shapes = labelme(labels, CLASSES, image_path='x.jpg')['shapes']
    assert [shape['label'] for shape in shapes] == ['road', 'café']
    assert sorted(map(tuple, shapes[1]['points'])) == [(1, 1), (1, 2), (2, 1), (2, 2)]


def test_every_kind_is_written_and_read_back(tmp_path):
    rng = np.random.default_rng(3)
    probabilities = rng.dirichlet(np.ones(3), (6, 7)).astype(np.float32).transpose(2, 0, 1)
    labels = probabilities.argmax(0).astype(np.uint8)
    result = result_of(labels, confidence=probabilities.max(0), probabilities=probabilities)
    source = tmp_path / 'in' / 'a b.jpg'
    written = result.save(tmp_path / 'out', tuple(OUTPUT_FORMATS), name='sub/a b', source=source)
    assert len(written) == len(OUTPUT_FORMATS)
    files = {path.parent.parent.name: path for path in written if path.parent != tmp_path / 'out'}
    assert set(files) == {kind.folder for kind in OUTPUT_FORMATS.values() if kind.suffix}
    assert (cv2.imread(str(files['labels']), -1) == labels).all()
    assert (cv2.imread(str(files['colours']))[..., ::-1] == PALETTE[labels]).all()
    assert cv2.imread(str(files['overlays'])).shape == (6, 7, 3)
    assert np.abs(cv2.imread(str(files['confidence']), -1) / 255 - probabilities.max(0)).max() <= 0.5 / 255 + 1e-6
    with np.load(files['probabilities'], allow_pickle=False) as content:
        assert np.abs(content['probabilities'] - probabilities).max() < 1e-3
        assert tuple(content['classes']) == CLASSES
    document = json.loads(files['labelme'].read_text())
    assert (files['labelme'].parent / document['imagePath']).resolve() == source.resolve()
    assert (document['imageWidth'], document['imageHeight']) == (7, 6)
    [row] = csv.DictReader(written[-1].open(newline='', encoding='utf-8'))
    assert (row['name'], row['source'], row['width'], row['height']) == ('sub/a b', str(source), '7', '6')
    assert [float(row[name]) for name in CLASSES] == pytest.approx(
        np.bincount(labels.ravel(), minlength=3) / 42, abs=1e-6
    )


def test_labels_above_256_classes_have_16_bits(tmp_path):
    classes = tuple(f'c{i}' for i in range(300))
    labels = np.arange(300, dtype=np.int32).reshape(15, 20)
    result = result_of(labels, classes, np.zeros((300, 3), np.uint8))
    [path] = result.save(tmp_path, ('labels',), name='x')
    back = cv2.imread(str(path), -1)
    assert back.dtype == np.uint16 and (back == labels).all()
    [path] = result_of(labels % 3).save(tmp_path, ('labels',), name='y')
    assert cv2.imread(str(path), -1).dtype == np.uint8


def test_table_holds_one_row_an_image(tmp_path):
    for value in (0, 1):
        for name in ('a', 'b'):
            result_of(np.full((2, 2), value, np.uint8)).save(tmp_path, ('shares',), name=name)
    rows = list(csv.DictReader((tmp_path / 'shares.csv').open()))
    assert [row['name'] for row in rows] == ['a', 'b']
    assert {row['café'] for row in rows} == {'1.000000'}
    other = result_of(np.zeros((2, 2), np.uint8), ('x',), PALETTE[:1])
    with pytest.raises(UserError, match='is a table of other classes'):
        other.save(tmp_path, ('shares',), name='c')
    (tmp_path / 'shares.csv').write_text('mine\n')
    with pytest.raises(UserError, match='is not a table of class shares'):
        other.save(tmp_path, ('shares',), name='c')
    (tmp_path / 'shares.csv').write_bytes(b'\xff\xfe')
    with pytest.raises(UserError, match='cannot be read as a table'):
        other.save(tmp_path, ('shares',), name='c')


@pytest.mark.parametrize('name', ['../x', '/x', '.', 'a/../../x', '..'])
def test_names_that_lead_out_are_refused(tmp_path, name):
    folder = tmp_path / 'out'
    with pytest.raises(WriteError, match=r'(leads out of|is empty or absolute)'):
        result_of(np.zeros((2, 2), np.uint8)).save(folder, name=name)
    assert not [path for path in tmp_path.rglob('*') if path.is_file()]


def test_links_that_lead_out_are_refused(tmp_path):
    (tmp_path / 'away').mkdir()
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'labels').symlink_to(tmp_path / 'away')
    with pytest.raises(WriteError, match='leads out of'):
        result_of(np.zeros((2, 2), np.uint8)).save(tmp_path / 'out', name='x')
    assert not list((tmp_path / 'away').iterdir())
    (tmp_path / 'link').symlink_to(tmp_path / 'away')
    result_of(np.zeros((2, 2), np.uint8)).save(tmp_path / 'link', name='x')
    assert (tmp_path / 'away/labels/x.png').is_file()


def test_full_disk_leaves_no_piece(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, 'replace', full)
    with pytest.raises(WriteError, match=r"x\.png' cannot be written \(No space left on device\)"):
        result_of(np.zeros((2, 2), np.uint8)).save(tmp_path, name='x')
    assert not [path for path in tmp_path.rglob('*') if path.is_file()]


def test_what_does_not_fit_is_said(tmp_path):
    wide = result_of(np.zeros((1, 70_000), np.uint8))
    with pytest.raises(UserError, match='cannot hold 70000 x 1 pixels; choose other --kinds'):
        wide.save(tmp_path, ('overlay',), name='x')
    small = result_of(np.zeros((2, 2), np.uint8))
    for kind, what in (('confidence', 'needs the confidence'), ('probabilities', 'needs the probabilities')):
        with pytest.raises(UserError, match=what):
            small.save(tmp_path, (kind,), name='x')
    with pytest.raises(UserError, match="'gif' is not a kind of output; choose from labels, overlay"):
        small.save(tmp_path, ('gif',), name='x')


@given(MAPS, st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_overlay_mixes_colours_into_the_image(labels, opacity):
    result = result_of(labels)
    colour = PALETTE[:, ::-1][labels]
    assert (result.colour() == colour).all()
    expected = opacity * colour + (1 - opacity) * result.image.astype(float)
    assert np.abs(result.overlay(opacity=opacity) - expected).max() <= 0.51

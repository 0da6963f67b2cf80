"""Predictions as COCO, CVAT and labelme files, which ``volo-seg import`` and the formats' libraries read back."""

import json
import sys
from unittest.mock import patch
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from fake_infer import CLASSES, Brightness
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from images import film, pictures
from PIL import Image, ImageDraw
from pycocotools.coco import COCO

from volo_seg.commands import infer, run
from volo_seg.datasets.importers import coco, cvat, labelme
from volo_seg.datasets.importers.records import Tree
from volo_seg.datasets.importers.write import Options, _painter, import_annotations
from volo_seg.errors import UserError
from volo_seg.inference.annotation_files import ANNOTATION_FILES
from volo_seg.inference.polygons import labelme as labelme_document
from volo_seg.inference.result import Result
from volo_seg.label_png import read_labels

READERS = {'coco': coco.read, 'cvat': cvat.read, 'labelme': labelme.read}
NAMES = ('road', 'café & <b>', 'background', 'sky, "blue"')
PALETTE = np.array([(128, 64, 128), (1, 2, 3), (70, 130, 180), (0, 255, 9)], np.uint8)
MAPS = arrays.arrays(
    np.uint8, arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12), elements=st.integers(0, 3)
)


def shapes():
    """Label maps: one class, single pixels, thin and crossing lines, rings in rings, and parts that meet in corners."""
    yield np.full((7, 5), 3, np.uint8)
    yield np.array([[1]], np.uint8)
    yield (np.indices((9, 9)).sum(0) % 2).astype(np.uint8)
    lines = np.zeros((20, 31), np.uint8)
    lines[4], lines[:, 7] = 1, 2
    cv2.line(lines, (0, 19), (30, 1), 3)
    cv2.line(lines, (3, 0), (29, 19), 1)
    lines[10, 20] = lines[0, 0] = 2
    yield lines
    rings = np.zeros((25, 25), np.uint8)
    for number, radius in enumerate(range(11, 0, -2)):
        cv2.circle(rings, (12, 12), radius, number % 4, -1)
    yield rings


def both_ways(labels, kind, folder):
    """``labels`` through the file of ``kind`` and its importer."""
    result = Result(np.zeros((*labels.shape, 3), np.uint8), labels, NAMES, PALETTE)
    (folder / 'images').mkdir(parents=True)
    cv2.imwrite(str(folder / 'images/a.png'), result.image)
    [path] = result.save(folder / 'out', [kind], source=folder / 'images/a.png', name='a')
    tree = Tree(path.parent if kind == 'labelme' else path, skip=folder / 'x', images=folder / 'images')
    found = READERS[kind](tree)
    assert tuple(found.classes) == NAMES
    [item] = found.items
    assert item.image == folder / 'images/a.png' and item.size == labels.shape[::-1]
    names, painter = _painter(found, Options(), folder)
    assert tuple(names) == NAMES, 'a class called background stays where it is'
    return painter.paint(item, item.image.read_bytes())


@pytest.mark.parametrize('kind', READERS)
def test_the_importer_reads_equal_masks(kind, tmp_path_factory):
    for labels in shapes():
        assert (both_ways(labels, kind, tmp_path_factory.mktemp('x')) == labels).all(), f'\n{labels}'

    @given(MAPS)
    @settings(max_examples=25, deadline=None)
    def random_maps(labels):
        assert (both_ways(labels, kind, tmp_path_factory.mktemp('x')) == labels).all()

    random_maps()


@given(MAPS)
@settings(max_examples=100, deadline=None)
def test_labelme_itself_fills_the_labels(labels):
    """Shape by shape as ``labelme.utils.shapes_to_label``: Pillow's polygon, outline included, later ones on top."""
    canvas = np.full(labels.shape, 255, np.uint8)
    for shape in labelme_document(labels, NAMES, image_path='x')['shapes']:
        assert len(shape['points']) >= 3
        mask = Image.new('L', labels.shape[::-1])
        ImageDraw.Draw(mask).polygon([tuple(point) for point in shape['points']], outline=1, fill=1)
        canvas[np.array(mask, bool)] = NAMES.index(shape['label'])
    assert (canvas == labels).all()


def test_pycocotools_reads_the_file(tmp_path, capsys):
    labels = np.random.default_rng(0).integers(0, 4, (30, 41), dtype=np.uint8) * (np.indices((30, 41))[0] > 12)
    file = ANNOTATION_FILES['coco'](tmp_path, NAMES, PALETTE)
    file.add([('b.png', labels), ('a/ü.png', labels[:5])])
    data = COCO(str(file.path))
    assert [image['file_name'] for image in data.loadImgs(data.getImgIds())] == ['a/ü.png', 'b.png']
    assert {entry['id']: entry['name'] for entry in data.loadCats(data.getCatIds())} == dict(enumerate(NAMES, 1))
    for entry in data.loadAnns(data.getAnnIds(imgIds=[2])):
        mask = labels == entry['category_id'] - 1
        assert (data.annToMask(entry) == mask).all()
        assert entry['area'] == mask.sum() and entry['bbox'] == list(cv2.boundingRect(mask.astype(np.uint8)))
    assert len({entry['id'] for entry in data.anns.values()}) == len(data.anns) == 4 + 1


def test_cvat_has_its_documented_form(tmp_path):
    labels = np.array([[1, 1, 0], [1, 0, 0]], np.uint8)
    file = ANNOTATION_FILES['cvat'](tmp_path, NAMES, PALETTE)
    file.add([('a.png', labels)])
    root = ElementTree.parse(file.path).getroot()
    assert root.findtext('version') == '1.1'
    [image] = root.iterfind('image')
    assert image.attrib == {'id': '0', 'name': 'a.png', 'width': '3', 'height': '2'}
    first, second = image
    assert first.attrib['label'] == 'road' and first.attrib['rle'] == '1, 3'
    assert (first.attrib['left'], first.attrib['top']) == ('1', '0')
    assert second.attrib['rle'] == '0, 3, 1' and second.attrib['z_order'] == '0'
    assert root.findtext('meta/task/labels/label/color') == '#804080'


@pytest.fixture
def network(monkeypatch):
    monkeypatch.delenv('RANK', raising=False)
    opened = []
    monkeypatch.setattr(infer, 'load_model', lambda *args: opened.append(Brightness()) or opened[-1])
    return opened


def call(*words):
    return run('infer', [str(word) for word in words])


def test_command_and_import(network, tmp_path, capsys):
    images = pictures(tmp_path / 'images', 'a/0.png', 'b/0.png', 'c.jpg')
    (images / 'broken.png').write_bytes(b'\x89PNG')
    out = tmp_path / 'out'
    assert call('x.pth', images, '--out-dir', out, '--kinds', *READERS) == 1
    written = {path.name for path in out.iterdir()}
    assert written == {'coco.json', 'cvat.xml', 'labelme', 'labels', 'infer.json'}
    for number, source in enumerate((out / 'coco.json', out / 'cvat.xml', out / 'labelme')):
        data = tmp_path / f'data{number}'
        (images / 'broken.png').unlink(missing_ok=True)
        words = [str(source), str(data), '--images', str(images), '--background', 'ignore', '--val', '0']
        assert run('import', words) == 0, capsys.readouterr().err
        assert (data / 'classes.txt').read_text().split() == list(CLASSES)
        for name in ('a/0', 'b/0', 'c'):
            want = read_labels(out / f'labels/{name}.png')
            assert (read_labels(data / f'annotations/train/{name}.png') == want).all()


def test_going_on_completes_the_files(network, tmp_path):
    images = pictures(tmp_path / 'images', '0.png', '1.png', '2.png')
    words = ('x.pth', images, '--kinds', 'coco', 'cvat', '--out-dir')
    assert call(*words, tmp_path / 'whole') == 0
    out = tmp_path / 'out'
    with patch.object(ANNOTATION_FILES['coco'], 'add', side_effect=KeyboardInterrupt):
        assert call(*words, out) == 130
    assert not (out / 'coco.json').exists()
    assert call(*words, out, '--resume') == 0
    assert network[-1].seen == 0, 'the labels were there'
    (out / 'labels/1.png').unlink()
    assert call(*words, out, '--resume') == 0
    assert network[-1].seen == 1
    assert not list(out.glob('.*'))
    for name in ('coco.json', 'cvat.xml'):
        assert (out / name).read_bytes() == (tmp_path / 'whole' / name).read_bytes()
    count = len(network)
    assert call(*words, out, '--resume') == 0
    assert len(network) == count, 'nothing was left, and a network was opened'
    more = pictures(tmp_path / 'more', '3.png')
    assert call('x.pth', more, '--kinds', 'coco', '--out-dir', out) == 0
    assert len(json.loads((out / 'coco.json').read_text())['images']) == 4, 'other images are kept'


def test_mistakes_get_one_sentence(network, tmp_path, capsys, monkeypatch):
    images = pictures(tmp_path / 'images', '0.png')
    clip = film(tmp_path / 'clip.mp4', 2)
    assert call('x.pth', clip, '--kinds', 'cvat', '--out-dir', tmp_path / 'a') == 2
    assert 'is a video, and annotations of the kind cvat are of image files' in capsys.readouterr().err
    out = tmp_path / 'out'
    assert call('x.pth', images, '--kinds', 'coco', '--out-dir', out) == 0
    document = json.loads((out / 'coco.json').read_text())
    document['categories'][0]['name'] = 'other'
    (out / 'coco.json').write_text(json.dumps(document))
    assert call('x.pth', images, '--kinds', 'coco', '--out-dir', out, '--overwrite') == 2
    assert "coco.json' is of other classes; name another --out-dir" in capsys.readouterr().err
    for name, kind, content in (('coco.json', 'coco', b'[1]'), ('cvat.xml', 'cvat', b'<annotations><image/>')):
        (out / name).write_bytes(content)
        assert call('x.pth', images, '--kinds', kind, '--out-dir', out, '--resume') == 2
        assert f"{name}' cannot be read as {name[-4:].strip('.').upper()}" in capsys.readouterr().err
        assert (out / name).read_bytes() == content
    with pytest.raises(UserError, match='has a character that XML cannot hold'):
        ANNOTATION_FILES['cvat'](tmp_path, NAMES, PALETTE).add([('a\x01.png', np.zeros((2, 2), np.uint8))])
    monkeypatch.setitem(sys.modules, 'pycocotools', None)
    assert call('x.pth', images, '--kinds', 'coco', '--out-dir', tmp_path / 'b') == 2
    assert 'needs pycocotools: pip install "volo-seg[import]"' in capsys.readouterr().err
    monkeypatch.undo()
    with pytest.raises(UserError, match='--images .* is for coco, cvat, labelme, label-studio'):
        import_annotations(tmp_path, tmp_path.parent / 'y', Options(form='voc', images=str(images)))
    with pytest.raises(UserError, match='is not a folder; give the one that holds the images'):
        import_annotations(out, tmp_path.parent / 'y', Options(images=str(tmp_path / 'none')))

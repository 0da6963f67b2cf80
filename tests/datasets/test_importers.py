"""``volo-seg import``: every format against the library or program that defines its pixels, and every mistake."""

import base64
import io
import json
import os
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from volo_seg.commands import run
from volo_seg.datasets.importers import drawing
from volo_seg.datasets.importers.write import FORMATS
from volo_seg.label_png import read_labels

W, H = 16, 12
TRIANGLE = [2.4, 1.2, 13.6, 2.8, 9.1, 10.7, -3, 8]
SMALL = [6, 3, 11, 3, 11, 7, 6, 7]
# what labelme 6.3.1 (labelme.utils.shape_to_mask) and label-studio-sdk 2.1.2 (mask2rle) make of these, packed bits
LABELME = {
    'polygon': ([[2.4, 1.2], [13.6, 2.8], [9.1, 10.7], [-3, 8]], '000020007ffc7ff8fff8fff0fff0ffe0ffe01fc000400000'),
    'circle': ([[8, 6], [10.5, 7]], '000000000000018003c007e007e003c00180000000000000'),
    'rectangle': ([[12.2, 9.4], [4, 3.5]], '0000000000000ff80ff80ff80ff80ff80ff80ff800000000'),
    'point': ([[3, 3]], 'ff00ff80ff80ff80ff80ff80ff00fe007c00000000000000'),
    'linestrip': ([[0, 11], [7, 2], [15, 9]], '107038f87ffc7ffffffffffffffffffffffffffffe7ffc3e'),
}
BRUSH = [
    *(0, 0, 3, 0, 57, 27, 254, 71, 0, 143, 255, 27, 128, 99, 63, 251, 96, 24, 191, 254, 216, 6, 51, 255, 182, 1, 139),
    *(255, 239, 128, 98, 255, 251, 224, 24, 175, 255, 9, 128, 98, 191, 252, 62, 1, 134, 255, 241, 216, 4, 127, 249, 92),
    0,
]


def unpacked(bits):
    return np.unpackbits(np.frombuffer(bytes.fromhex(bits), np.uint8)).reshape(H, W).astype(bool)


def coco_area(*parts):
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([list(p) for p in parts], H, W))).astype(bool)


def photo(path, size=(W, H), orientation=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.new('RGB', size, (90, 120, 30)).save(path, exif=exif)


def png(path, array, palette=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(array, np.uint8))
    if palette is not None:
        image.putpalette(palette)
    image.save(path)


def dump(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def do(source, out, *flags, code=0):
    assert run('import', [str(source), str(out), *flags]) == code
    return json.loads((out / 'import.json').read_text()) if code == 0 else None


def refuse(capsys, source, *flags, out=None):
    """The one sentence with which the import ends."""
    out = out or source.parent / 'refused'
    capsys.readouterr()
    do(source, out, *flags, code=2)
    text = capsys.readouterr().err
    (line,) = [line for line in text.splitlines() if line.startswith('error: ')]
    assert 'Traceback' not in text
    return line


def labels(out, name='a', split='train'):
    return read_labels(out / 'annotations' / split / f'{name}.png')


def maps_equal(got, want):
    assert got.shape == want.shape and (got == want).all(), f'\n{got}\n{want}'


# ---------------------------------------------------------------------------------------------------------- COCO


def coco(images, annotations, names=('car', 'person'), ids=(1, 18)):
    return dict(
        images=[dict(id=n, file_name=f, width=w, height=h) for n, (f, w, h) in enumerate(images, 1)],
        categories=[dict(id=i, name=n) for i, n in zip(ids, names, strict=True)],
        annotations=[dict(id=n, **entry) for n, entry in enumerate(annotations, 100)],
    )


def note(segmentation, category=1, image=1, **more):
    return dict(image_id=image, category_id=category, segmentation=segmentation, **more)


@pytest.fixture
def source(tmp_path):
    photo(tmp_path / 'source' / 'images' / 'a.png')
    return tmp_path / 'source'


def write_coco(source, annotations, images=(('a.png', W, H),), **more):
    dump(source / 'annotations.json', coco(images, annotations, **more))


def test_coco_polygons_rle_crowd_and_overlaps(source, tmp_path):
    ring = np.zeros((H, W), np.uint8, order='F')
    ring[1:11, 1:15], ring[4:7, 5:9] = 1, 0
    packed = coco_mask.encode(ring)
    crowd = [H * 2, H, H * 14 - H]  # columns 2 .. 2, uncompressed
    parts = [TRIANGLE, [0, 0, 4, 0, 4, 4], [1, 1, 2, 2]]
    write_coco(
        source,
        [
            note(parts, 1),
            note([SMALL], 18),
            note(dict(size=[H, W], counts=packed['counts'].decode()), 18),
            note(dict(size=[H, W], counts=crowd), 1, iscrowd=1),
        ],
    )
    record = do(source, tmp_path / 'out')
    areas = [(coco_area(*parts[:2]), 1), (coco_area(SMALL), 2), (ring.astype(bool), 2)]
    want = np.zeros((H, W), np.uint8)
    want[:, 2] = 1
    for area, label in sorted(areas, key=lambda pair: -pair[0].sum()):
        want[area] = label
    maps_equal(labels(tmp_path / 'out'), want)
    assert (tmp_path / 'out' / 'classes.txt').read_text() == 'background\ncar\nperson\n'
    assert record['format'] == 'coco' and 'categories' in record['recognised_by'] and record['crowds'] == 1
    assert record['ignored'] == {'polygons with fewer than three points': 1}
    assert record['classes']['person'] == dict(label=2, source_id=18, shapes=2, pixels=int((want == 2).sum()))
    record = do(source, tmp_path / 'other', '--crowd', 'ignore', '--background', 'ignore')
    assert record['ignored']['crowds'] == 1 and list(record['classes']) == ['car', 'person']
    want[:] = np.where(want == 0, 255, np.maximum(want, 1) - 1)
    want[:, 2][~np.any([area for area, _ in areas], axis=0)[:, 2]] = 255
    maps_equal(labels(tmp_path / 'other'), want)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_run_lengths_equal_pycocotools(height, width, seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((height, width)) < rng.random()
    packed = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))['counts'].decode()
    maps_equal(drawing.coco_rle(packed, 'here', height, width), mask)


def test_splits_subsets_of_classes_and_outside(source, tmp_path):
    photo(source / 'images' / 'val' / 'b.png')
    far = [30, 30, 40, 30, 40, 40]
    dump(source / 'annotations' / 'instances_train2017.json', coco([('a.png', W, H)], [note([SMALL]), note([far])]))
    dump(source / 'annotations' / 'instances_val2017.json', coco([('b.png', W, H)], [note([TRIANGLE], 18)]))
    dump(source / 'annotations' / 'person_keypoints_val2017.json', coco([('b.png', W, H)], [note([SMALL])]))
    record = do(source, tmp_path / 'out', '--classes', 'person')
    assert record['images'] == dict(train=1, val=1) and record['ignored'] == {
        'polygons outside the image': 1,
        'JSON files beside instances_*': 1,
    }
    assert record['other_classes'] == {'car': 'background'}
    assert (labels(tmp_path / 'out') == 0).all()
    maps_equal(labels(tmp_path / 'out', 'b', 'val'), coco_area(TRIANGLE).astype(np.uint8))
    assert (tmp_path / 'out' / 'val.txt').read_text() == 'b\n'


@pytest.mark.parametrize('orientation', range(1, 9))
def test_turned_images(tmp_path, orientation):
    """Where the size says that the annotation is of the stored pixels, labels are turned as the image is."""
    source = tmp_path / 'source'
    photo(source / 'a.jpg', orientation=orientation)
    write_coco(source, [note([SMALL])], images=[('a.jpg', W, H)])
    do(source, tmp_path / 'out')
    want = coco_area(SMALL).astype(np.uint8)
    if orientation > 4:
        turns = {5: lambda m: m.T, 6: lambda m: np.rot90(m, -1), 7: lambda m: np.rot90(m, 2).T, 8: np.rot90}
        want = turns[orientation](want)
    maps_equal(labels(tmp_path / 'out'), want)
    if orientation > 4:  # annotated upright
        write_coco(source, [note([[0, 0, 3, 0, 3, 3]])], images=[('a.jpg', H, W)])
        do(source, tmp_path / 'upright')
        assert labels(tmp_path / 'upright').shape == (W, H) and labels(tmp_path / 'upright')[:3, :3].any()


def test_panoptic(source, tmp_path):
    ids = np.zeros((H, W), np.int64)
    ids[:6], ids[6:, 8:] = 1 + 256 * 2 + 65536 * 3, 70000
    colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1)
    png(source / 'panoptic_val2017' / 'a.png', colours)
    segments = [dict(id=int(ids[0, 0]), category_id=18), dict(id=70000, category_id=1, iscrowd=1)]
    data = coco([('a.png', W, H)], [])
    data['annotations'] = [dict(image_id=1, file_name='a.png', segments_info=segments)]
    dump(source / 'annotations' / 'panoptic_val2017.json', data)
    record = do(source, tmp_path / 'out')
    assert record['format'] == 'coco-panoptic' and record['images'] == dict(val=1)
    want = np.where(ids == 70000, 0, np.where(ids == 0, 255, 1))
    maps_equal(labels(tmp_path / 'out', split='val'), want)
    do(source, tmp_path / 'named', '--background', 'other')
    maps_equal(labels(tmp_path / 'named', split='val'), np.where(want == 255, 0, want + 1))


def test_coco_stuff(tmp_path):
    """Values are id - 1, the ids have gaps, 255 is unlabelled."""
    source = tmp_path / 'source'
    photo(source / 'train2017' / 'a.jpg')
    names = [f'{n}: class{n}' for n in range(183)]
    (source / 'labels.txt').write_text('\n'.join(names))
    mask = np.full((H, W), 255)
    mask[0], mask[1], mask[2] = 0, 12, 181
    png(source / 'stuffthingmaps' / 'train2017' / 'a.png', mask)
    record = do(source, tmp_path / 'out')
    assert record['format'] == 'coco-stuff' and len(record['classes']) == 171
    got = labels(tmp_path / 'out')
    classes = (tmp_path / 'out' / 'classes.txt').read_text().splitlines()
    assert [classes[got[row, 0]] for row in range(3)] == ['class1', 'class13', 'class182'] and (got[3:] == 255).all()


# ------------------------------------------------------------------------------------------------- other formats


def test_yolo(source, tmp_path):
    photo(source / 'images' / 'val' / 'b.png')
    (source / 'data.yaml').write_text('path: .\ntrain: images\nval: images/val\nnames:\n  0: car\n  1: person\n')
    polygons = [(1, SMALL), (0, [1, 1, 15, 1.5, 14.7, 11.2, 2, 10.9])]
    for name, lines in (('a', polygons), ('val/b', polygons[:1])):
        text = [f'{c} ' + ' '.join(f'{v / (W, H)[i % 2]:.6f}' for i, v in enumerate(p)) for c, p in lines]
        (source / 'labels' / name).parent.mkdir(parents=True, exist_ok=True)
        (source / 'labels' / f'{name}.txt').write_text('\n'.join([*text, '0 0.1 0.1 0.2 0.2']))
    record = do(source, tmp_path / 'out', '--boxes', 'ignore')
    assert record['format'] == 'yolo' and record['ignored'] == {'bounding boxes': 2}
    want = np.zeros((H, W), np.uint8)
    for label, points in ((1, polygons[1][1]), (2, SMALL)):  # the larger one first
        shares = np.array([round(v / (W, H)[i % 2], 6) for i, v in enumerate(points)], np.float32).reshape(1, -1, 2)
        cv2.fillPoly(want, (shares * np.array([W, H], np.float32)).astype(np.int32), label)
    maps_equal(labels(tmp_path / 'out'), want)
    assert record['images'] == {'train': 1, 'val': 1}


def write_voc(source, masks, palette=None):
    for name, mask in masks.items():
        photo(source / 'JPEGImages' / f'{name}.jpg')
        png(source / 'SegmentationClass' / f'{name}.png', mask, palette)
    lists = source / 'ImageSets' / 'Segmentation'
    lists.mkdir(parents=True)
    (lists / 'train.txt').write_text('a\n')
    (lists / 'val.txt').write_text('b\n')
    (lists / 'trainval.txt').write_text('a\nb\n')


def test_voc(tmp_path):
    mask = np.arange(H * W).reshape(H, W) % 21
    mask[0] = 255
    write_voc(tmp_path / 'source', dict(a=mask, b=mask))
    photo(tmp_path / 'source' / 'JPEGImages' / 'unlabelled.jpg')
    record = do(tmp_path / 'source', tmp_path / 'out')
    assert record['format'] == 'voc' and record['images'] == dict(train=1, val=1)
    assert record['ignored'] == {'images that no annotation names': 1}
    maps_equal(labels(tmp_path / 'out'), mask)
    do(tmp_path / 'source', tmp_path / 'things', '--background', 'ignore')
    maps_equal(labels(tmp_path / 'things'), np.where((mask == 0) | (mask == 255), 255, mask - 1))


@pytest.mark.parametrize('palette', [False, True])
def test_cvat_masks_have_no_shift(tmp_path, palette):
    """The order and the colours are those of labelmap.txt, wherever its background stands."""
    colours = np.array([[250, 50, 83], [0, 0, 0], [52, 209, 183]], np.uint8)
    mask = np.arange(H * W).reshape(H, W) % 3
    image = mask if palette else colours[mask]
    write_voc(tmp_path / 'source', dict(a=image, b=image), colours.tobytes() if palette else None)
    lines = ['# label:color_rgb:parts:actions', 'car:250,50,83::', 'background:0,0,0::', 'person:52,209,183::']
    (tmp_path / 'source' / 'labelmap.txt').write_text('\n'.join(lines))
    record = do(tmp_path / 'source', tmp_path / 'out')
    assert record['format'] == 'cvat-masks' and list(record['classes']) == ['car', 'background', 'person']
    maps_equal(labels(tmp_path / 'out'), mask)


CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><task><labels>
<label><name>car</name><color>#fa3253</color></label><label><name>person</name></label></labels></task></meta>
<image id="0" name="a.png" width="16" height="12">{}</image></annotations>"""


def test_cvat(source, tmp_path):
    points = ';'.join(f'{x},{y}' for x, y in zip(TRIANGLE[::2], TRIANGLE[1::2], strict=True))
    small = ';'.join(f'{x},{y}' for x, y in zip(SMALL[::2], SMALL[1::2], strict=True))
    shapes = (
        f'<polygon label="car" points="{small}" z_order="1"></polygon>'
        f'<polygon label="person" points="{points}" z_order="0"></polygon>'
        '<mask label="person" rle="1, 3, 2" left="13" top="0" width="3" height="2" z_order="2"></mask>'
        '<ellipse label="car" cx="3.5" cy="9.9" rx="2.2" ry="1.1" z_order="3" rotation="90"></ellipse>'
        '<polyline label="car" points="1,1;2,2"></polyline><points label="car" points="1,1"></points>'
    )
    (source / 'annotations.xml').write_text(CVAT.format(shapes))
    record = do(source, tmp_path / 'out')
    want = np.zeros((H, W), np.uint8)
    want[coco_area(TRIANGLE)], want[coco_area(SMALL)] = 2, 1
    want[:2, 13:][np.array([[0, 1, 1], [1, 0, 0]], bool)] = 2
    round_one = np.zeros((H, W), np.uint8)
    cv2.ellipse(round_one, (4, 10), (2, 1), 90.0, 0, 360, 255, thickness=-1)
    want[round_one > 0] = 1
    maps_equal(labels(tmp_path / 'out'), want)
    assert record['format'] == 'cvat' and record['ignored'] == {'polylines': 1, 'points': 1}


def labelme(path, shapes, **more):
    entries = [dict(label=label, points=p, shape_type=kind, group_id=None, flags={}) for label, kind, p in shapes]
    document = dict(version='5.5.0', flags={}, shapes=entries, imagePath='a.png', imageData=None)
    dump(path, {**document, 'imageHeight': H, 'imageWidth': W, **more})
    return entries


@pytest.mark.parametrize('kind', LABELME)
def test_labelme_shapes_equal_labelme(source, tmp_path, kind):
    points, bits = LABELME[kind]
    labelme(source / 'images' / 'a.json', [('car', kind, points)])
    record = do(source, tmp_path / 'out')
    maps_equal(labels(tmp_path / 'out', 'images/a'), unpacked(bits))
    assert record['format'] == 'labelme' and list(record['classes']) == ['background', 'car']


def test_labelme_order_masks_and_ignored(source, tmp_path):
    photo(source / 'images' / 'without.png')
    shapes = [('person', 'polygon', LABELME['polygon'][0]), ('car', 'rectangle', [[6, 3], [11, 7]])]
    shapes += [('__ignore__', 'rectangle', [[0, 0], [1, 1]]), ('car', 'polygon', [[1, 1], [2, 2]])]
    stream, mask = io.BytesIO(), np.array([[1, 0], [1, 1]], bool)
    Image.fromarray(mask).save(stream, 'PNG')
    labelme(source / 'images' / 'a.json', shapes)
    data = json.loads((source / 'images' / 'a.json').read_text())
    text = base64.b64encode(stream.getvalue()).decode()
    data['shapes'].append(dict(label='car', points=[[14, 10], [15, 11]], shape_type='mask', mask=text))
    dump(source / 'images' / 'a.json', data)
    record = do(source, tmp_path / 'out', '--empty', 'background', '--val', '0')
    want = 2 * unpacked(LABELME['polygon'][1]).astype(np.uint8)
    want[3:8, 6:12], want[:2, :2] = 1, 255
    want[10:, 14:][mask] = 1
    maps_equal(labels(tmp_path / 'out', 'images/a'), want)
    assert (labels(tmp_path / 'out', 'images/without') == 0).all()
    assert record['ignored'] == {'polygons with fewer than three points': 1}
    record = do(source, tmp_path / 'fewer', '--empty', 'skip', '--val', '0')
    assert record['ignored']['images without annotation (skipped)'] == 1 and record['images'] == dict(train=1)


def test_labelme_image_inside_the_annotation(tmp_path):
    photo(tmp_path / 'a.png')
    content = base64.b64encode((tmp_path / 'a.png').read_bytes()).decode()
    labelme(tmp_path / 'source' / 'a.json', [('car', *('rectangle', [[1, 1], [2, 2]]))], imageData=content)
    do(tmp_path / 'source', tmp_path / 'out')
    assert (tmp_path / 'out' / 'images' / 'train' / 'a.png').read_bytes() == (tmp_path / 'a.png').read_bytes()


def label_studio(results, image='/data/upload/1/1a2b3c4d-a.png'):
    size = dict(original_width=W, original_height=H, image_rotation=0)
    entries = [dict(id=str(n), type=kind, value=value, **size) for n, (kind, value) in enumerate(results)]
    return [dict(id=7, data=dict(image=image), annotations=[dict(id=1, result=entries, was_cancelled=False)])]


def test_label_studio(source, tmp_path):
    shares = [[100 * x / W, 100 * y / H] for x, y in zip(SMALL[::2], SMALL[1::2], strict=True)]
    results = [
        ('brushlabels', dict(format='rle', rle=BRUSH, brushlabels=['person'])),
        ('polygonlabels', dict(points=shares, closed=True, polygonlabels=['car'])),
        ('polygonlabels', dict(points=shares[:2], polygonlabels=['car'])),
        ('keypointlabels', dict(x=1, y=1, keypointlabels=['car'])),
        ('ellipselabels', dict(x=25, y=75, radiusX=12.5, radiusY=10, rotation=90, ellipselabels=['car'])),
    ]
    dump(source / 'project.json', label_studio(results))
    record = do(source, tmp_path / 'out')
    want = 2 * unpacked(LABELME['polygon'][1]).astype(np.uint8)
    want[coco_area(SMALL)] = 1
    cv2.ellipse(want, (4, 9), (2, 1), 90, 0, 360, 1, thickness=-1)
    maps_equal(labels(tmp_path / 'out', 'images/a'), want)
    assert record['format'] == 'label-studio'
    assert record['ignored'] == {
        'polygons with fewer than three points': 1,
        'results of type keypointlabels': 1,
    }


def test_roboflow_masks(tmp_path):
    source = tmp_path / 'source'
    mask = np.arange(H * W).reshape(H, W) % 3
    for split in ('train', 'valid'):
        photo(source / split / 'a_jpg.rf.1f.jpg')
        png(source / split / 'a_jpg.rf.1f_mask.png', mask)
        (source / split / '_classes.csv').write_text('Pixel Value, Class\n0, background\n1, car\n2, person\n')
    record = do(source, tmp_path / 'out')
    assert record['format'] == 'roboflow' and record['images'] == dict(train=1, val=1)
    assert list(record['classes']) == ['background', 'car', 'person']
    maps_equal(labels(tmp_path / 'out', 'a_jpg.rf.1f', 'val'), mask)


def test_roboflow_coco_without_its_group(tmp_path):
    source = tmp_path / 'source'
    data = coco([('a.jpg', W, H)], [note([SMALL], 1)], names=('things', 'car'), ids=(0, 1))
    data['categories'] = [
        dict(id=0, name='things', supercategory='none'),
        dict(id=1, name='car', supercategory='things'),
    ]
    for split in ('train', 'valid'):
        photo(source / split / 'a.jpg')
        dump(source / split / '_annotations.coco.json', data)
    record = do(source, tmp_path / 'out')
    assert record['format'] == 'roboflow' and list(record['classes']) == ['background', 'car']
    maps_equal(labels(tmp_path / 'out', split='val'), coco_area(SMALL).astype(np.uint8))


def test_supervisely(tmp_path):
    source = tmp_path / 'source'
    dump(source / 'meta.json', dict(classes=[dict(title='car', shape='any'), dict(title='person', shape='any')]))
    photo(source / 'ds' / 'img' / 'a.png')
    outer, hole = [[1, 1], [14, 2], [9, 10]], [[7, 4], [10, 4], [9, 6]]
    mask = np.array([[1, 0, 1], [1, 1, 1]], bool)
    stream = io.BytesIO()
    bitmap = Image.fromarray(mask.astype(np.uint8))
    bitmap.putpalette([0, 0, 0, 255, 255, 255])
    bitmap.save(stream, 'PNG', transparency=0)
    data = base64.b64encode(zlib.compress(stream.getvalue())).decode()
    objects = [
        dict(classTitle='person', geometryType='polygon', points=dict(exterior=outer, interior=[hole])),
        dict(classTitle='car', geometryType='bitmap', bitmap=dict(data=data, origin=[0, 9])),
        dict(classTitle='car', geometryType='line', points=dict(exterior=[[1, 1], [2, 2]], interior=[])),
    ]
    dump(source / 'ds' / 'ann' / 'a.png.json', dict(size=dict(height=H, width=W), objects=objects))
    record = do(source, tmp_path / 'out')
    want = np.zeros((H, W), np.uint8)
    cv2.fillPoly(want, [np.array(outer)], 2)
    cv2.fillPoly(want, [np.array(hole)], 0)
    want[9:11, :3][mask] = 1
    maps_equal(labels(tmp_path / 'out', 'ds/a'), want)
    assert record['format'] == 'supervisely' and record['ignored'] == {'objects of type line': 1}


@pytest.mark.parametrize('kind', ['parquet', 'arrow', 'jsonl', 'csv'])
def test_hugging_face(tmp_path, kind):
    import pyarrow
    from pyarrow import ipc, parquet

    source = tmp_path / 'source'
    mask = np.arange(H * W).reshape(H, W) % 4 * 2
    photo(source / 'train' / 'a.png')
    png(source / 'train' / 'a_mask.png', mask)
    dump(source / 'id2label.json', {'2': 'car', '4': 'person', '6': 'sky'})
    name = 'a'
    if kind in ('parquet', 'arrow'):
        cells = [dict(bytes=(source / 'train' / f).read_bytes(), path=None) for f in ('a.png', 'a_mask.png')]
        table = pyarrow.table(dict(image=[cells[0], cells[0]], label=[cells[1], None]))
        for file in ('a.png', 'a_mask.png'):
            (source / 'train' / file).unlink()
        if kind == 'parquet':
            parquet.write_table(table, source / 'train-00000-of-00001.parquet', row_group_size=1)
        else:
            with ipc.new_stream(source / 'train' / 'data-00000-of-00001.arrow', table.schema) as file:
                file.write_table(table)
        name = 'train-00000-of-00001-000000' if kind == 'parquet' else 'data-00000-of-00001-000000'
    elif kind == 'jsonl':
        dump(source / 'train' / 'metadata.jsonl', dict(file_name='a.png', mask_file_name='a_mask.png'))
    else:
        (source / 'train' / 'metadata.csv').write_text('file_name,mask_file_name\na.png,a_mask.png\n')
    record = do(source, tmp_path / 'out', '--val', '0', '--empty', 'skip')
    assert record['format'] == 'hf' and list(record['classes']) == ['car', 'person', 'sky']
    maps_equal(labels(tmp_path / 'out', name), np.where(mask == 0, 255, mask // 2 - 1))


# ------------------------------------------------------------------------------------------------ what all share


def snapshot(folder):
    return {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in folder.rglob('*')}


def test_source_is_only_read_and_images_are_linked_or_copied(source, tmp_path):
    write_coco(source, [note([SMALL])])
    before = snapshot(source)
    do(source, tmp_path / 'linked')
    do(source, tmp_path / 'copied', '--copy')
    assert snapshot(source) == before
    linked, copied = (tmp_path / name / 'images' / 'train' / 'a.png' for name in ('linked', 'copied'))
    assert linked.is_symlink() and linked.resolve() == (source / 'images' / 'a.png').resolve()
    assert not copied.is_symlink() and copied.read_bytes() == linked.read_bytes()


def many(source, count=10):
    names = [f'{n}.png' for n in range(count)]
    for name in names:
        photo(source / 'images' / name)
    write_coco(source, [note([SMALL], image=n + 1) for n in range(count)], images=[(name, W, H) for name in names])


def test_val_share_is_repeatable(source, tmp_path):
    many(source)
    assert do(source, tmp_path / 'one')['images'] == dict(train=8, val=2)
    assert do(source, tmp_path / 'two', '--nproc', '2')['images'] == dict(train=8, val=2)
    assert (tmp_path / 'one' / 'val.txt').read_text() == (tmp_path / 'two' / 'val.txt').read_text()
    assert do(source, tmp_path / 'none', '--val', '0')['images'] == dict(train=10)


def test_interrupted_import_goes_on(source, tmp_path, monkeypatch, capsys):
    from volo_seg.datasets.importers import write

    many(source)
    do(source, tmp_path / 'whole')
    painted = []
    paint = write.Painter.paint

    def stop(self, item, content):
        painted.append(item.name)
        if len(painted) == 5:
            raise KeyboardInterrupt
        return paint(self, item, content)

    monkeypatch.setattr(write.Painter, 'paint', stop)
    out = tmp_path / 'out'
    assert run('import', [str(source), str(out)]) == 130
    assert 'goes on' in capsys.readouterr().err and not json.loads((out / 'import.json').read_text())['finished']
    record = do(source, out)
    assert len(painted) == 11 and record['finished']  # the one that was interrupted is painted again
    files = [{p.relative_to(root): p.read_bytes() for p in root.rglob('*.png')} for root in (out, tmp_path / 'whole')]
    assert files[0] == files[1] and len(files[0]) == 20
    assert record == json.loads((tmp_path / 'whole' / 'import.json').read_text())
    assert 'with other options' in refuse(capsys, source, '--crowd', 'ignore', out=out)
    (out / 'import.json').write_text(json.dumps({**record, 'finished': False}))
    write_coco(source, [note([TRIANGLE])])
    assert do(source, out)['images'] == dict(train=1) and len(list(out.rglob('*.png'))) == 2
    write_coco(source, [note([SMALL])])
    assert 'other files' in refuse(capsys, source, out=out)


def test_imported_folders_are_read_by_the_recipe(source, tmp_path):
    from mmengine.registry import init_default_scope

    from volo_seg.datasets.folder_dataset import FolderDataset

    many(source)
    do(source, tmp_path / 'out')
    init_default_scope('mmseg')
    prefix = dict(img_path='images/train', seg_map_path='annotations/train')
    steps = [dict(type='LoadImageFromFile', _scope_='volo_seg'), dict(type='LoadLabels')]
    data = FolderDataset(data_root=str(tmp_path / 'out'), data_prefix=prefix, ann_file='train.txt', pipeline=steps)
    assert len(data) == 8 and data.metainfo['classes'] == ['background', 'car', 'person']
    maps_equal(data[0]['gt_seg_map'], coco_area(SMALL).astype(np.uint8))


def test_two_formats_are_named(source, capsys):
    write_coco(source, [note([SMALL])])
    (source / 'annotations.xml').write_text(CVAT.format(''))
    line = refuse(capsys, source)
    assert 'coco (annotations.json has' in line and 'cvat (annotations.xml is' in line and '--format' in line
    assert do(source, source.parent / 'out', '--format', 'coco')['recognised_by'] == 'given by --format'


def test_every_format_has_a_tool_and_no_format_fits_nothing(tmp_path, capsys):
    from volo_seg.commands import importlib

    listed = importlib.import_module('volo_seg.commands.import').FORMATS
    assert listed == ['auto', *FORMATS] and len(FORMATS) == 12
    tools = Path(__file__).parents[2] / 'tools' / 'dataset_converters'
    for name in FORMATS:
        assert f"'--format', '{name}'" in (tools / f'{name.replace("-", "_")}.py').read_text()
    photo(tmp_path / 'source' / 'a.png')
    assert 'no known format' in refuse(capsys, tmp_path / 'source')
    assert 'does not exist' in refuse(capsys, tmp_path / 'absent')
    for name in FORMATS:
        refuse(capsys, tmp_path / 'source', '--format', name)


def edited(**change):
    """COCO with one value replaced."""
    data = coco([('a.png', W, H)], [note([SMALL])])
    for key, value in change.items():
        data[key] = value
    return data


WRONG_COCO = [
    (edited(annotations=[dict(id=1, category_id=1)]), "no 'image_id'"),
    (edited(annotations=[note([SMALL], image=5)]), 'image_id 5, which no image has'),
    (edited(annotations=[note([SMALL], category=7)]), 'category_id 7, which categories lacks'),
    (edited(annotations=[note([[1, 2, 3]])]), 'not pairs of numbers'),
    (edited(annotations=[note([[1, 2, 'x', 3, 5, 6]])]), 'not pairs of numbers'),
    (edited(annotations=[note([[0, 0, 1e12, 0, 5, 5]])]), 'in no image'),
    (edited(annotations=[note([])]), 'is a bounding box (1 in all)'),
    (edited(annotations=[note(dict(size=[W, H], counts=[W * H]))]), 'mask of size'),
    (edited(annotations=[note(dict(size=[H, W], counts=[5, 7]))]), 'run-length code that does not fit'),
    (edited(annotations=[note(dict(size=[H, W], counts='zzz~é'))]), 'run-length code that does not fit'),
    (edited(annotations=[note(dict(size=[H, W], counts=[-1, W * H + 1]))]), 'run-length code that does not fit'),
    (edited(images=[dict(id=1, file_name='no.png', width=W, height=H)]), "image 'no.png' is not found"),
    (edited(images=[dict(id=1, file_name='a.png', width=W + 1, height=H)]), 'is for 17 x 12 pixels'),
    (edited(images=[dict(id=1, file_name='a.png', width=0, height=H)]), 'which no image has'),
    (edited(categories=[dict(id=1, name='car'), dict(id=1, name='bus')]), 'two categories with one id'),
    (edited(categories=[dict(id=1)]), "no 'name'"),
    ({'images': [], 'annotations': []}, "annotations.json has no 'categories'"),
    ([1], "annotations.json has no 'categories'"),
    (edited(annotations=[]), "image 'a.png' has no annotation (1 in all); give --empty"),
]


@pytest.mark.parametrize(('data', 'said'), WRONG_COCO, ids=[said for _, said in WRONG_COCO])
def test_wrong_coco(source, capsys, data, said):
    dump(source / 'annotations.json', data)
    assert said in refuse(capsys, source, '--format', 'coco')


def test_broken_json_and_xml(source, capsys):
    (source / 'instances.json').write_text('{"images": [], "annotations": [], "categories": [')
    assert 'instances.json cannot be read as JSON' in refuse(capsys, source, '--format', 'coco')
    (source / 'instances.json').unlink()
    (source / 'a.xml').write_text('<annotations><image>')
    assert 'a.xml cannot be read as XML' in refuse(capsys, source)
    (source / 'a.xml').write_text(CVAT.format('<polygon label="tree" points="1,1;2,2;3,3"/>'))
    assert "label 'tree'" in refuse(capsys, source)
    (source / 'a.xml').write_text(CVAT.format('<polygon label="car" points="1,1;2,b;3,3"/>'))
    assert 'not pairs of numbers' in refuse(capsys, source)
    (source / 'a.xml').write_text(CVAT.format('<mask label="car" rle="5" left="0" top="0" width="2" height="2"/>'))
    assert 'rle that does not fill' in refuse(capsys, source)
    (source / 'a.xml').write_text(CVAT.format('<box label="car" xtl="1" ytl="1" xbr="2" ybr="2"/>'))
    assert 'bounding box' in refuse(capsys, source)


@pytest.mark.parametrize(
    ('line', 'said'),
    [
        ('car 0.1 0.1 0.2 0.2 0.3 0.3', 'is not "class x y x y …"'),
        ('0 0.1 0.1 0.2', 'is not "class x y x y …"'),
        ('0 10 10 20 20 30 30', 'outside 0..1'),
        ('0 nan 0 1 1 0 1', 'outside 0..1'),
        ('4 0.1 0.1 0.2 0.2 0.3 0.3', 'has the class 4'),
        ('0 0.1 0.1 0.2 0.2', 'bounding box'),
    ],
)
def test_wrong_yolo(source, capsys, line, said):
    (source / 'labels').mkdir()
    (source / 'classes.txt').write_text('car\nperson\n')
    (source / 'labels' / 'a.txt').write_text(line)
    assert said in refuse(capsys, source)


def test_wrong_labelme_label_studio_and_supervisely(source, capsys):
    labelme(source / 'a.json', [('car', 'blob', [[1, 1], [2, 2], [3, 3]])])
    assert "shape_type 'blob'" in refuse(capsys, source)
    labelme(source / 'a.json', [('car', 'circle', [[1, 1], [2, 2], [3, 3]])])
    assert 'circle of 3 points' in refuse(capsys, source)
    labelme(source / 'a.json', [('car', 'polygon', [[1, 1], [2, 2], [3, 3]])], imageWidth=W + 4)
    assert 'is for 20 x 12 pixels' in refuse(capsys, source)
    brush = ('brushlabels', dict(format='rle', rle=BRUSH[:-9], brushlabels=['car']))
    dump(source / 'a.json', label_studio([brush]))
    assert 'brush code that does not fit' in refuse(capsys, source)
    dump(source / 'a.json', label_studio([('brushlabels', dict(format='rle', rle=BRUSH))]))
    assert 'has no label' in refuse(capsys, source)
    dump(source / 'a.json', label_studio([], image='s3://bucket/gone.png'))
    assert "'gone.png'" in refuse(capsys, source)
    (source / 'a.json').unlink()
    dump(source / 'meta.json', dict(classes=[]))
    dump(source / 'ann' / 'a.png.json', dict(size=dict(height=H, width=W), objects=[dict(classTitle='car')]))
    assert "class 'car'" in refuse(capsys, source)


def test_wrong_label_maps(source, capsys):
    write_voc(source, dict(a=np.full((H, W), 77), b=np.zeros((H, W))))
    assert 'has the value 77' in refuse(capsys, source)
    (source / 'labelmap.txt').write_text('car:1,2,3::\nbackground:0,0,0::\n')
    assert 'holds colour' in refuse(capsys, source)
    png(source / 'SegmentationClass' / 'a.png', np.zeros((H, W + 2)))
    assert 'is for 18 x 12 pixels' in refuse(capsys, source, '--format', 'voc', out=source.parent / 'sizes')
    (source / 'SegmentationClass' / 'a.png').write_bytes(b'\x89PNG')
    assert 'cannot be read' in refuse(capsys, source, '--format', 'voc', out=source.parent / 'cut')


def test_wrong_output_and_options(source, tmp_path, capsys):
    write_coco(source, [note([SMALL])])
    assert 'is in the source' in refuse(capsys, source, out=source / 'out')
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'notes').write_text('mine')
    assert 'is not empty' in refuse(capsys, source, out=tmp_path / 'full')
    assert 'is not a share' in refuse(capsys, source, '--val', '1.5')
    assert "--classes names 'tree'" in refuse(capsys, source, '--classes', 'tree')
    assert '--nproc 0' in refuse(capsys, source, '--nproc', '0')
    photo(source / 'other' / 'a.png')
    assert '2 of that name' in refuse(capsys, source)
    (source / 'other' / 'a.png').unlink()
    dump(source / 'more.json', coco([('a.png', W, H)], []))
    assert 'both annotate all images' in refuse(capsys, source)
    (source / 'more.json').unlink()
    write_coco(source, [note([SMALL])], names=('0 car', '1 person'))
    assert "names ['background'" not in refuse(capsys, source, '--background', 'ignore', out=tmp_path / 'numbers')
    assert do(source / 'annotations.json', source / 'beside')['images'] == dict(train=1)


def test_names_that_lead_out_stay_inside(source, tmp_path):
    photo(tmp_path / 'secret.png')
    write_coco(source, [note([SMALL])], images=[('../../a.png', W, H)])
    do(source, tmp_path / 'out')
    assert os.listdir(tmp_path / 'out' / 'images' / 'train') == ['a.png']


def test_drawing_by_pillow_is_that_of_the_installed_version():
    """The stored bits of labelme depend on Pillow's rasterisation, which has not changed."""
    image = Image.new('L', (W, H))
    ImageDraw.Draw(image).polygon([tuple(point) for point in LABELME['polygon'][0]], outline=1, fill=1)
    maps_equal(np.array(image, bool), unpacked(LABELME['polygon'][1]))


# ------------------------------------------------------------------------------------------------- damaged input


def nodes(value, place=()):
    """The places of values in a JSON document; of lists, the first two."""
    yield place
    children = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, child in children:
        yield from nodes(child, (*place, key))


def changed(document, place, new):
    """A copy of ``document`` with ``new`` at ``place``; the key is removed for ``...``."""
    if not place:
        return new
    copy = json.loads(json.dumps(document))
    spot = copy
    for key in place[:-1]:
        spot = spot[key]
    if new is ...:
        del spot[place[-1]]
    else:
        spot[place[-1]] = new
    return copy


def documents():
    """Format -> the file that is damaged, and its content."""
    shares = [[100 * x / W, 100 * y / H] for x, y in zip(SMALL[::2], SMALL[1::2], strict=True)]
    mask = base64.b64encode(zlib.compress(b'\x89PNG')).decode()
    objects = [
        dict(classTitle='car', geometryType='polygon', points=dict(exterior=[[1, 1], [9, 2], [5, 9]], interior=[])),
        dict(classTitle='car', geometryType='bitmap', bitmap=dict(data=mask, origin=[0, 9])),
    ]
    shape = dict(label='car', points=[[1, 1], [9, 2], [5, 9]], shape_type='polygon')
    rle = dict(size=[H, W], counts=[W * H - 5, 5])
    panoptic = coco([('a.png', W, H)], [])
    panoptic['annotations'] = [dict(image_id=1, file_name='a.png', segments_info=[dict(id=7, category_id=18)])]
    results = [
        ('polygonlabels', dict(points=shares, polygonlabels=['car'])),
        ('brushlabels', dict(format='rle', rle=BRUSH[:20], brushlabels=['car'])),
    ]
    return {
        'coco': ('x.json', coco([('a.png', W, H)], [note([SMALL]), note(rle, 18, iscrowd=1)])),
        'coco-panoptic': ('x.json', panoptic),
        'labelme': ('x.json', dict(shapes=[shape], imagePath='a.png', imageHeight=H, imageWidth=W, imageData=None)),
        'label-studio': ('x.json', label_studio(results)),
        'supervisely': ('ann/a.png.json', dict(size=dict(height=H, width=W), objects=objects)),
        'hf': ('id2label.json', {'0': 'car', '3': 'person'}),
    }


@pytest.mark.parametrize('form', documents())
def test_damaged_documents_give_one_sentence(source, tmp_path, capsys, form):
    """Any value replaced by one of another kind: an import, or one sentence."""
    file, document = documents()[form]
    dump(source / 'meta.json', dict(classes=[dict(title='car')]))
    (source / 'metadata.csv').write_text('file_name,mask_file_name\na.png,a.png\n')
    count, refused = 0, 0
    for place in nodes(document):
        for new in (..., None, -1, 2.5, 'x', [], {}, 10**30):
            if place or new is not ...:
                dump(source / file, changed(document, place, new))
                out = tmp_path / f'out{count}'
                status = run('import', [str(source), str(out), '--format', form, '--empty', 'background'])
                said = capsys.readouterr().err
                lines = [line for line in said.splitlines() if line.startswith('error: ')]
                assert (status, len(lines)) in ((0, 0), (2, 1)), f'{place} {new!r}: {said}'
                count, refused = count + 1, refused + (status == 2)
    assert count > 20 and refused > count // 3


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_text_gives_one_sentence(tmp_path_factory, data):
    """CVAT and YOLO with some characters changed."""
    root = tmp_path_factory.mktemp('text')
    photo(root / 'source' / 'a.png')
    xml = CVAT.format(
        '<polygon label="car" points="1,1;9,2;5,9" z_order="1"/>'
        '<mask label="person" rle="1, 3, 2" left="13" top="0" width="3" height="2" z_order="2"/>'
        '<ellipse label="car" cx="3.5" cy="9.9" rx="2.2" ry="1.1" z_order="3" rotation="90"/>'
    )
    form, name, text = data.draw(
        st.sampled_from([('cvat', 'a.xml', xml), ('yolo', 'a.txt', '0 .1 .1 .2 .2 .3 .4\n' * 2)])
    )
    letters = list(text)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(letters) - 1))
        letters[place] = data.draw(st.sampled_from(['', '-', '9', 'e9', 'x', ' ', '"', '<', '.', '\n', '1e400', 'nan']))
    (root / 'source' / 'classes.txt').write_text('car\n')
    (root / 'source' / name).write_text(''.join(letters))
    status = run('import', [str(root / 'source'), str(root / 'out'), '--format', form, '--empty', 'skip'])
    assert status in (0, 2)

"""One's own images and masks as a data set."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.registry import init_default_scope
from mmseg.datasets import BaseSegDataset

from volo_seg.datasets.folder_dataset import FolderDataset
from volo_seg.datasets.transforms import LoadLabels
from volo_seg.errors import UserError
from volo_seg.visualization import default_palette

PREFIX = dict(img_path='images', seg_map_path='annotations')


@pytest.fixture
def root(tmp_path):
    (tmp_path / 'images' / 'sub').mkdir(parents=True)
    (tmp_path / 'annotations' / 'sub').mkdir(parents=True)
    for name in ('b.png', 'a.jpg', 'sub/c.JPG'):
        cv2.imwrite(str(tmp_path / 'images' / name), np.full((4, 6, 3), 90, np.uint8))
        mask = tmp_path / 'annotations' / (name.rsplit('.', 1)[0] + '.png')
        cv2.imwrite(str(mask), np.array([[0, 1, 2, 3, 255, 0]] * 4, np.uint8))
    (tmp_path / 'classes.txt').write_text('road\n\ncar\nsky\n')
    return tmp_path


def build(root, **options):
    init_default_scope('mmseg')
    pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadLabels')]
    return FolderDataset(data_root=str(root), data_prefix=PREFIX, pipeline=pipeline, **options)


def test_pairs_by_relative_name(root):
    data = build(root)
    assert data.metainfo['classes'] == ['road', 'car', 'sky']
    assert [data[i]['img_path'].split('images/')[1] for i in range(len(data))] == ['a.jpg', 'b.png', 'sub/c.JPG']
    assert data[2]['seg_map_path'].endswith('annotations/sub/c.png')


def test_ignore_labels(root):
    assert set(np.unique(build(root, ignore_labels=[3])[0]['gt_seg_map'])) == {0, 1, 2, 255}
    assert 3 in build(root)[0]['gt_seg_map']


def test_reduce_zero_label(root):
    labels = build(root, reduce_zero_label=True)[0]['gt_seg_map']
    assert labels[0].tolist() == [255, 0, 1, 2, 255, 255]


def test_classes_given_or_in_another_file(root):
    assert build(root, classes=['x', 'y']).metainfo['classes'] == ['x', 'y']
    (root / 'names').write_text('p\nq\n')
    assert build(root, classes=str(root / 'names')).metainfo['classes'] == ['p', 'q']


def test_colours_are_distinct_and_stable():
    colours = [tuple(c) for c in default_palette(150, first=1).tolist()]
    assert len(set(colours)) == 150
    assert colours[:3] == [(128, 0, 0), (0, 128, 0), (128, 128, 0)]


def test_palette_is_checked_against_classes(root):
    with pytest.raises(UserError, match='palette has 1 colours for 3 classes'):
        build(root, palette=[[0, 0, 0]])


@pytest.mark.parametrize('names', ['sub/c\nb\n', 'b\n\nsub/c'])
def test_list_of_images_as_in_mmseg(root, names):
    """The images and masks of ``ann_file``, in its order: as ``BaseSegDataset``, for images of one suffix."""
    (root / 'list.txt').write_text(names)
    (root / 'images' / 'b.png').rename(root / 'images' / 'b.JPG')
    (root / 'images' / 'unlisted.JPG').touch()  # without a mask
    options = dict(data_root=str(root), data_prefix=PREFIX, ann_file='list.txt')
    theirs = BaseSegDataset(metainfo=dict(classes=['x']), img_suffix='.JPG', **options)
    ours = FolderDataset(classes=['x'], **options)
    keys = ('img_path', 'seg_map_path')
    listed = [name for name in names.split('\n') if name]
    expected = [[theirs[i][key] for key in keys] for i in range(len(theirs))]
    expected = [row for row in expected if not row[0].endswith('/.JPG')]  # it makes an image of an empty line
    assert [[ours[i][key] for key in keys] for i in range(len(ours))] == expected
    assert [Path(row[0]).stem for row in expected] == [Path(name).stem for name in listed]
    assert ours.ann_file == theirs.ann_file


def test_list_of_images_mistakes(root):
    (root / 'list.txt').write_text('a\nb.png\n')
    with pytest.raises(UserError, match=r"list\.txt' names image 'b\.png', and .*images' has no file of that name"):
        build(root, ann_file='list.txt')
    with pytest.raises(UserError, match=r"ann_file '.*none\.txt' cannot be read"):
        build(root, ann_file='none.txt')
    (root / 'list.txt').write_bytes(b'\xff\xfa')
    with pytest.raises(UserError, match=r"ann_file '.*list\.txt' cannot be read"):
        build(root, ann_file='list.txt')
    assert len(build(root, ann_file='')) == len(build(root, ann_file='images')) == 3
    (root / 'list.txt').write_text('a\n')
    (root / 'annotations' / 'a.png').unlink()
    with pytest.raises(UserError, match=r"a\.jpg' has no mask"):
        build(root, ann_file='list.txt')


def test_meta_information_as_in_mmseg(root):
    given = dict(classes=['x', 'y'], palette=[[1, 2, 3], [4, 5, 6]], source='camera 3')
    options = dict(data_root=str(root), data_prefix=PREFIX, metainfo=given, filter_cfg=dict(least=1))
    ours, theirs = FolderDataset(**options), BaseSegDataset(**options)
    assert ours.metainfo == theirs.metainfo
    assert ours.filter_cfg == theirs.filter_cfg
    assert {key: given[key] for key in ('classes', 'palette')} == ours.METAINFO
    assert FolderDataset.METAINFO == {}
    assert build(root, classes=['x', 'y'], metainfo=dict(source='camera 3')).metainfo['source'] == 'camera 3'
    with pytest.raises(UserError, match=r"classes=\['x'\] and metainfo.classes=\['x', 'y'\] differ; give one of them"):
        build(root, classes=['x'], metainfo=given)


class Filtered(FolderDataset):
    def filter_data(self):
        return [entry for entry in self.data_list if entry['img_path'].endswith(self.filter_cfg['suffix'])]


def test_a_subclass_filters(root):
    options = dict(data_root=str(root), data_prefix=PREFIX, filter_cfg=dict(suffix='.png'))
    assert [Path(entry['img_path']).name for entry in Filtered(**options)] == ['b.png']


def test_mistakes(root):
    with pytest.raises(UserError, match=r"names 'x' twice"):
        build(root, classes=['x', 'x'])
    with pytest.raises(UserError, match='is empty'):
        build(root, classes=[])
    cv2.imwrite(str(root / 'images' / 'a.png'), np.zeros((4, 6, 3), np.uint8))
    with pytest.raises(UserError, match='share a name'):
        build(root)
    (root / 'images' / 'a.png').unlink()
    (root / 'annotations' / 'b.png').unlink()
    with pytest.raises(UserError, match=r"b\.png' has no mask"):
        build(root)
    (root / 'classes.txt').unlink()
    with pytest.raises(UserError, match='class names are missing: write one per line into'):
        build(root)


def rgb(root, name, rows):
    """Write an RGB mask of rows of colours."""
    cv2.imwrite(str(root / 'annotations' / name), np.array(rows, np.uint8)[..., ::-1])


COLOURS = [[0, 0, 1], [0, 1, 0], [255, 255, 255]]


@pytest.fixture
def coloured(root):
    for name in ('a.png', 'b.png', 'sub/c.png'):
        rgb(root, name, [[[0, 0, 1], [0, 1, 0], [255, 255, 255], [0, 0, 0], [0, 1, 0], [0, 0, 1]]] * 4)
    return root


def test_masks_by_colour(coloured):
    data = build(coloured, colours=COLOURS, ignore_colours=[[0, 0, 0]])
    assert data[0]['gt_seg_map'].dtype == np.uint8
    assert data[0]['gt_seg_map'][0].tolist() == [0, 1, 2, 255, 1, 0]
    assert data.metainfo['palette'] == COLOURS
    assert build(coloured, colours=COLOURS, ignore_colours=[[0, 0, 0]], ignore_index=9)[0]['gt_seg_map'][0, 3] == 9


def test_colours_in_the_class_file(coloured):
    (coloured / 'classes.txt').write_text('road 0 0 1\ntraffic light  0 1 0\nsky, 255, 255, 255\n')
    data = build(coloured, ignore_colours=[[0, 0, 0]])
    assert data.metainfo['classes'] == ['road', 'traffic light', 'sky']
    assert data[0]['gt_seg_map'][0].tolist() == [0, 1, 2, 255, 1, 0]


def test_palette_images_are_read_by_colour_too(coloured):
    from PIL import Image

    path = coloured / 'annotations' / 'a.png'
    Image.open(path).quantize(8).save(path)
    assert Image.open(path).mode == 'P'
    labels = build(coloured, colours=COLOURS, ignore_colours=[[0, 0, 0]])[0]['gt_seg_map']
    assert labels[0].tolist() == [0, 1, 2, 255, 1, 0]


def test_colour_mistakes(coloured):
    with pytest.raises(UserError, match=r'a\.png.* holds colour \(0, 0, 0\) in 4 pixels, which no class has'):
        build(coloured, colours=COLOURS)[0]
    with pytest.raises(UserError, match='colours has 2 colours for 3 classes'):
        build(coloured, colours=COLOURS[:2])
    with pytest.raises(UserError, match=r"the colour \[0, 256, 0\] of 'car' is not RGB in 0\.\.255"):
        build(coloured, colours=[[0, 0, 1], [0, 256, 0], [1, 1, 1]])
    with pytest.raises(UserError, match=r"'road' and 'sky' have the same colour \[0, 0, 1\]"):
        build(coloured, colours=[[0, 0, 1], [0, 1, 0], [0, 0, 1]])
    with pytest.raises(UserError, match='reduce_zero_label=True has no meaning for masks read by colour'):
        build(coloured, colours=COLOURS, reduce_zero_label=True)
    (coloured / 'classes.txt').write_text('road 0 0 1\ncar\n')
    with pytest.raises(UserError, match="line 'car' has no colour; write `name R G B`"):
        build(coloured)
    (coloured / 'classes.txt').write_text('road\ncar\nsky\n')
    with pytest.raises(UserError, match=r'is a colour image \(mode RGB\): it holds no class numbers'):
        build(coloured)[0]
    cv2.imwrite(str(coloured / 'annotations' / 'a.png'), np.ones((4, 6), np.uint8))
    with pytest.raises(UserError, match='or remove the colours if masks hold class numbers'):
        build(coloured, colours=COLOURS)[0]


def test_sixteen_bit_masks(root):
    path = str(root / 'annotations' / 'a.png')
    cv2.imwrite(path, np.full((4, 6), 2, np.uint16))
    assert build(root)[0]['gt_seg_map'].max() == 2
    cv2.imwrite(path, np.full((4, 6), 300, np.uint16))
    with pytest.raises(UserError, match=r'holds label 300, but labels are read as 8 bit, where it would become 44'):
        build(root)[0]


def test_damaged_masks_and_hidden_files(root):
    (root / 'images' / '._a.jpg').write_bytes(b'resource fork')
    assert len(build(root)) == 3
    (root / 'annotations' / 'a.png').write_bytes(b'')
    with pytest.raises(UserError, match=r"cannot read '.*a\.png': the file is empty"):
        build(root)[0]


@pytest.mark.parametrize('reduce', [False, True])
@pytest.mark.parametrize('label_map', [None, {0: 255, 3: 1, 1: 3}, {255: 1}])
def test_values_are_those_of_mmseg(root, reduce, label_map):
    """All 256 values, through MMSegmentation's own LoadAnnotations and through ours."""
    from mmseg.datasets.transforms import LoadAnnotations

    path = str(root / 'annotations' / 'a.png')
    cv2.imwrite(path, np.arange(256, dtype=np.uint8).reshape(16, 16))
    found = []
    for loader in (LoadAnnotations(), LoadLabels()):
        described = dict(seg_map_path=path, reduce_zero_label=reduce, label_map=label_map, seg_fields=[])
        found.append(loader(described)['gt_seg_map'])
    assert np.array_equal(*found)
    assert found[1].dtype == np.uint8


def test_label_map_of_binary_masks(root):
    assert set(np.unique(build(root, label_map={255: 1, 3: 0})[0]['gt_seg_map'])) == {0, 1, 2}


def test_colour_masks_need_our_loading(coloured):
    init_default_scope('mmseg')
    with pytest.raises(UserError, match=r"LoadAnnotations in the pipeline .* write dict\(type='LoadLabels'\)"):
        FolderDataset(
            data_root=str(coloured), data_prefix=PREFIX, colours=COLOURS, pipeline=[dict(type='LoadAnnotations')]
        )


def test_images_without_labels_pass(root):
    """As in inference, where MMSegInferencer takes LoadAnnotations out of a pipeline and nothing else."""
    data = FolderDataset(
        data_root=str(root),
        data_prefix=dict(img_path=PREFIX['img_path']),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadLabels')],
    )
    assert 'img' in data[0] and 'gt_seg_map' not in data[0]


def test_a_transform_may_not_contradict_the_data_set(root):
    init_default_scope('mmseg')
    pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadLabels', reduce_zero_label=True)]
    data = FolderDataset(data_root=str(root), data_prefix=PREFIX, pipeline=pipeline)
    with pytest.raises(UserError, match='LoadLabels has reduce_zero_label=True and the data set False'):
        data[0]


def template_data(tmp_path, template, **options):
    init_default_scope('mmseg')
    steps = [dict(type='LoadImageFromFile'), dict(type='LoadLabels')]
    prefix = dict(img_path='photos', seg_map_path='not/there')
    return FolderDataset(
        data_root=str(tmp_path),
        data_prefix=prefix,
        mask_template=template,
        classes=['a', 'b'],
        pipeline=steps,
        **options,
    )


@pytest.mark.parametrize(
    ('template', 'place'),
    [
        ('{folder}/../labels/{stem}_mask.png', 'photos/labels/{}_mask.png'),
        ('{folder}/{stem}_mask.png', 'photos/day/{}_mask.png'),
        ('truth/{stem}.png', 'truth/{}.png'),
    ],
)
def test_mask_template(tmp_path, template, place):
    for number, name in enumerate(('x.y', 'z', 'w')):
        image, mask = tmp_path / 'photos' / 'day' / f'{name}.png', tmp_path / place.format(name)
        for path in (image, mask):
            path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(image), np.full((4, 6, 3), 90, np.uint8))
        cv2.imwrite(str(mask), np.full((4, 6), number % 2, np.uint8))
    data = template_data(tmp_path, template)
    assert [Path(data[i]['img_path']).name for i in range(len(data))] == ['w.png', 'x.y.png', 'z.png']
    assert [int(data[i]['gt_seg_map'].max()) for i in range(3)] == [0, 0, 1]
    for name in ('w', 'z'):
        (tmp_path / place.format(name)).unlink()
    with pytest.raises(UserError, match=r"w\.png' has no mask '.*w.*' \(2 masks are missing, also '.*z"):
        template_data(tmp_path, template)
    for wrong in ('{folder}/a.png', '{stem', '{stem.__class__}', '{stem}{suffix}'):
        with pytest.raises(UserError, match='is not a path with {stem}'):
            template_data(tmp_path, wrong)


@pytest.mark.parametrize('suffix', ['.csv', '.jsonl'])
def test_list_of_pairs(root, suffix):
    pairs = [('images/sub/c.JPG', 'annotations/b.png'), ('images/a.jpg', 'annotations/sub/c.png')]
    path = root / f'pairs{suffix}'

    def write(pairs):
        lines = ['image,mask', *(','.join(pair) for pair in pairs)]
        if suffix == '.jsonl':
            lines = [json.dumps(dict(image=image, mask=mask)) for image, mask in pairs]
        path.write_text('\n'.join(lines))

    write(pairs)
    data = build(root, ann_file=path.name)
    assert [data[i]['img_path'] for i in range(2)] == [str(root / image) for image, _ in pairs]
    assert [data[i]['seg_map_path'] for i in range(2)] == [str(root / mask) for _, mask in pairs]
    for pair, said in (
        (('images/no.jpg', 'annotations/b.png'), r"no\.jpg' of pair 3 does not exist"),
        (('images/b.png', 'annotations/no.png'), r"b\.png' has no mask '.*no\.png'; add it, or remove the image$"),
        (('images/b.png', ''), 'pair 3 has no image or no mask'),
        (pairs[0], 'of pair 3 is listed twice'),
    ):
        write([*pairs, pair])
        with pytest.raises(UserError, match=said):
            build(root, ann_file=path.name)
    path.write_text('{"image": ' if suffix == '.jsonl' else 'a,b\n1,2\n')
    with pytest.raises(UserError, match='write'):
        build(root, ann_file=path.name)


def test_classes_by_value_or_colour(root):
    """The order of the dict is that of the classes; other values are refused by the check of label values."""
    data = build(root, classes={'sky': 2, 'ground': [0, 1]}, ignore_labels=[3])
    assert data.metainfo['classes'] == ['sky', 'ground'] and len(data) == 3
    assert data[0]['gt_seg_map'][0].tolist() == [1, 1, 0, 255, 255, 1]
    assert build(root, classes={'sky': 2, 'ground': [0, 1]})[0]['gt_seg_map'][0].tolist() == [1, 1, 0, 254, 255, 1]
    for path in (root / 'annotations').rglob('*.png'):
        cv2.imwrite(str(path), np.array([[[0, 0, 255], [255, 0, 0]]] * 4, np.uint8))  # BGR
    found = build(root, classes={'blue': '#0000ff', 'red': '#FF0000'})
    assert found[0]['gt_seg_map'].tolist() == [[1, 0]] * 4 and found.metainfo['palette'] == [[0, 0, 255], [255, 0, 0]]
    for wrong, said in (
        ({'a': 300}, "'a' the value 300"),
        ({'a': 1, 'b': 1}, "'a' and 'b' the label value 1"),
        ({'a': '#0000ff', 'b': 2}, "'a' the value '#0000ff'"),
        ({'a': []}, 'the value'),
    ):
        with pytest.raises(UserError, match=said):
            build(root, classes=wrong)
    with pytest.raises(UserError, match='leave out label_map'):
        build(root, classes={'a': 1}, reduce_zero_label=True)


def test_template_and_list_pass_the_checks_before_training(tmp_path, capsys):
    """``--mask-template`` needs no folder of annotations, and names the first misses before anything is built."""
    from volo_seg.commands import run
    from volo_seg.config.checks import check_run
    from volo_seg.config.load import load_config, set_data_root, set_mask_template

    for split in ('train', 'val'):
        for name in 'ab':
            for folder, suffix in (('images', '.png'), ('labels', '_mask.png')):
                path = tmp_path / folder / split / f'{name}{suffix}'
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path), np.full((32, 32, 3)[: 3 if folder == 'images' else 2], name == 'b', np.uint8))
    (tmp_path / 'classes.txt').write_text('a\nb\n')
    template = '{folder}/../../labels/train/{stem}_mask.png'
    name = 'volo-nano_upernet_1xb4-20k_folders-256x256'
    config = load_config(name)
    set_data_root(config, str(tmp_path))
    set_mask_template(config, template)
    check_run(config, ('train', 'val'))
    words = [name, '--data-root', str(tmp_path), '--mask-template', template]
    assert run('check', [*words, '--fast', '--nproc', '1']) == 0
    (tmp_path / 'labels' / 'train' / 'b_mask.png').unlink()
    capsys.readouterr()
    assert run('check', [*words, '--fast', '--nproc', '1']) == 1
    assert 'b_mask.png' in capsys.readouterr().out
    assert run('train', [*words, '--work-dir', str(tmp_path / 'run')]) == 2
    said = capsys.readouterr().err
    assert "b.png' has no" in said and 'b_mask.png' in said and 'Traceback' not in said
    words[0] = 'volo-d1_upernet_8xb2-160k_ade20k-512x512'
    assert run('check', words) == 2 and '--mask-template needs FolderDataset' in capsys.readouterr().err

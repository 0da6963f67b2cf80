"""Toyscapes in both styles: labels as cityscapesScripts renders them, scenes fixed by seed, folders left intact."""

import errno
import functools
import hashlib
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volo_seg.commands import run
from volo_seg.commands.toyscapes import main
from volo_seg.datasets.cityscapes_labels import (
    BY_NAME,
    LABELS,
    TRAIN_LABELS,
    id_to_color,
    id_to_train_id,
    train_id_to_id,
    train_names,
    train_palette,
)
from volo_seg.datasets.toyscapes import Scene, generate_scene, write_toyscapes
from volo_seg.datasets.toyscapes.camera import Camera
from volo_seg.datasets.toyscapes.scene import _random_town
from volo_seg.datasets.toyscapes.writer import scene_files
from volo_seg.errors import UserError

SIZE = (64, 128)
STYLES = ('plain', 'random')
CONFIG = 'volo-nano_upernet_1xb4-1200_toyscapes-256x256'


@pytest.fixture(scope='module')
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('toys') / 'set'
    assert write_toyscapes(root, train=4, val=2, size=SIZE, seed=3) == 6
    assert json.loads((root / 'toyscapes.json').read_text())['style'] == 'random'
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob('*')) if path.is_file()}


# -- the label table -------------------------------------------------------------------------------


def test_label_table_is_that_of_cityscapes() -> None:
    from cityscapesscripts.helpers.labels import labels

    assert len(LABELS) == len(labels) == 35
    for ours, theirs in zip(LABELS, labels, strict=True):
        assert (ours.name, ours.id, ours.train_id, ours.color) == (
            theirs.name,
            theirs.id,
            theirs.trainId,
            theirs.color,
        )
        assert (ours.ignored, ours.has_instances) == (theirs.ignoreInEval, theirs.hasInstances)


def test_label_tables_invert_each_other() -> None:
    forward, back = id_to_train_id(), train_id_to_id()
    assert [int(forward[back[i]]) for i in range(19)] == list(range(19))
    assert (forward != 255).sum() == 19
    assert (back[19:] == 0).all()


def test_names_and_palette_are_those_of_mmseg() -> None:
    from mmseg.datasets import CityscapesDataset

    assert train_names() == tuple(CityscapesDataset.METAINFO['classes'])
    assert train_palette().tolist() == [list(color) for color in CityscapesDataset.METAINFO['palette']]


# -- one scene -------------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    index=st.integers(0, 10**6),
    height=st.integers(32, 150),
    width=st.integers(32, 220),
    style=st.sampled_from(STYLES),
)
def test_any_size_gives_labels_inside_the_image(seed: int, index: int, height: int, width: int, style: str) -> None:
    scene = generate_scene(seed, index, split='val', size=(height, width), style=style)
    assert scene.image.shape == (height, width, 3)
    assert scene.image.dtype == scene.label_ids.dtype == np.uint8
    assert scene.label_ids.shape == scene.instance_ids.shape == (height, width)
    for label, outline in scene.polygons:
        assert BY_NAME[label].id >= 0
        assert len(outline) >= 3
        assert (outline >= 0).all()
        assert (outline < (width, height)).all()
    drawn = {BY_NAME[label].id for label, _ in scene.polygons}
    assert set(np.unique(scene.label_ids)) <= drawn | {0}


@pytest.mark.parametrize('style', STYLES)
def test_a_scene_depends_on_its_five_values_alone(style: str) -> None:
    scene = generate_scene(1, 5, size=SIZE, style=style)
    generate_scene(9, 9, size=(40, 40), style='random')
    again = generate_scene(1, 5, split='train', size=SIZE, style=style)
    assert np.array_equal(scene.image, again.image)
    assert np.array_equal(scene.label_ids, again.label_ids)
    others = [
        generate_scene(2, 5, size=SIZE, style=style),
        generate_scene(1, 6, size=SIZE, style=style),
        generate_scene(1, 5, split='val', size=SIZE, style=style),
        generate_scene(1, 5, size=SIZE, style=next(other for other in STYLES if other != style)),
    ]
    for other in others:
        assert (other.label_ids != scene.label_ids).mean() > 0.05


def test_plain_scenes_stay_as_they_are() -> None:
    """Labels are compared exactly, and pictures up to rounding, which differs between processors."""
    size = (128, 256)
    labels = [generate_scene(3, index, size=size, style='plain').label_ids for index in range(4)]
    assert hashlib.sha256(b''.join(label.tobytes() for label in labels)).hexdigest()[:16] == 'c8373311614325f1'
    picture = generate_scene(3, 1, size=size, style='plain').image
    blocks = picture.reshape(4, 32, 4, 64, 3).mean((1, 3, 4))
    assert np.abs(blocks - [[121, 165, 115, 96], [116, 132, 97, 82], [100, 103, 78, 103], [94, 98, 89, 121]]).max() < 2


@pytest.mark.parametrize('style', STYLES)
def test_a_larger_picture_shows_the_same_scene(style: str) -> None:
    same = []
    for index in range(6):
        small, large = (generate_scene(4, index, size=size, style=style) for size in ((128, 256), (256, 512)))
        same.append((large.label_ids[::2, ::2] == small.label_ids).mean())
    assert min(same) > 0.9
    assert np.mean(same) > 0.95


@pytest.mark.parametrize('hill', [0.0, 6e-4, -3e-4])
def test_ground_seen_at_a_pixel_is_the_ground_projected_there(hill: float) -> None:
    eye = np.array([1.5, 1.4, 0.0])
    camera = Camera.placed((240, 320), 300.0, (0.1, 0.03), 0.45, eye, hill=hill)
    x, z = (axis.ravel() for axis in np.meshgrid(np.linspace(-6, 6, 7), np.linspace(3, 25, 9)))
    u, v, depth = camera.homogeneous(np.stack([x, np.zeros_like(x), z], axis=1)).T
    u, v = u / depth, v / depth
    found = camera.ground(u.astype(np.float32), v.astype(np.float32))
    assert np.allclose(found[0], x, atol=0.02)
    assert np.allclose(found[1], z, atol=0.06)


def test_roads_of_random_scenes_lie_between_the_kerbs() -> None:
    """Each pixel called road is a point of the street or of the side street, within the width of two pixels."""
    counted = 0
    for index in range(12):
        layout = np.random.default_rng([0, 0, index, 0])
        town = _random_town(layout, (128, 192))
        street, camera = town.street, town.view.camera
        labels = generate_scene(0, index, size=(128, 192), style='random').label_ids
        v, u = np.nonzero(labels == BY_NAME['road'].id)
        x, z, depth = camera.ground(u.astype(np.float32), v.astype(np.float32))
        near = depth < 20
        margin = 2 * (depth / camera.focal) * np.maximum(depth / camera.eye[1], 1)
        beside = np.abs(x - street.bend * z * z) > street.half + margin
        if street.crossing:
            beside &= (z < street.crossing[0] - margin) | (z > street.crossing[1] + margin)
        counted += near.sum()
        assert not (beside & near).any(), index
    assert counted > 20_000


def test_picture_and_labels_agree_to_the_pixel() -> None:
    """Edges of the labels are edges of the picture: shifted by two pixels they fit it less well."""
    gain = []
    for index in range(4):
        scene = generate_scene(0, index, style='plain')
        ids = scene.label_ids.astype(int)
        edges = (np.abs(np.diff(ids, axis=1)) > 0)[:, 8:-8]
        slope = np.abs(np.diff(scene.image.astype(float).mean(2), axis=1))
        fit = {shift: slope[:, 8 + shift : slope.shape[1] - 8 + shift][edges].mean() for shift in (-2, 0, 2)}
        gain.append(fit[0] / max(fit[-2], fit[2]))
    assert min(gain) > 1.2


@functools.cache
def scene_of(index: int, style: str) -> Scene:
    return generate_scene(0, index, size=SIZE, style=style)


@pytest.mark.parametrize('style', STYLES)
def test_all_classes_and_ignored_pixels_occur(style: str) -> None:
    counts, ignored = np.zeros(19, int), []
    table = id_to_train_id()
    for index in range(70):
        found = np.bincount(table[scene_of(index, style).label_ids].ravel(), minlength=256)
        counts += found[:19] > 0
        ignored.append(found[255] / found.sum())
    missing = [TRAIN_LABELS[i].name for i in np.flatnonzero(counts < 4)]
    assert not missing, dict(zip(train_names(), counts, strict=True))
    assert 0.003 < np.mean(ignored) < 0.2


@pytest.mark.parametrize('style', STYLES)
def test_colour_alone_does_not_tell_the_classes(style: str) -> None:
    """The nearest mean colour is right for a minority of pixels, so that context has to be learnt."""
    scenes = [scene_of(index, style) for index in range(24)]
    pixels = np.concatenate([scene.image.reshape(-1, 3) for scene in scenes]).astype(float)
    classes = id_to_train_id()[np.concatenate([scene.label_ids.ravel() for scene in scenes])]
    present = [k for k in range(19) if (classes == k).any()]
    means = np.stack([pixels[classes == k].mean(0) for k in present])
    known = classes != 255
    nearest = np.array(present)[((pixels[known][:, None] - means) ** 2).sum(2).argmin(1)]
    assert (nearest == classes[known]).mean() < 0.5


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'seed': -1}, 'seed=-1, index=0; choose 0 or more'),
        ({'index': -2}, 'index=-2; choose 0 or more'),
        ({'style': 'wild'}, "unknown style 'wild'; choose one of plain, random"),
        ({'split': 'test'}, "unknown split 'test'; choose one of train, val"),
        ({'size': (31, 64)}, r'size \(31, 64\) is too small; height and width must be at least 32 pixels'),
        ({'size': (64, 0)}, r'size \(64, 0\) is too small'),
    ],
)
def test_impossible_scenes_are_refused(changes: dict, message: str) -> None:
    request = {'seed': 0, 'index': 0, 'split': 'train', 'size': SIZE} | changes
    with pytest.raises(UserError, match=message):
        generate_scene(request.pop('seed'), request.pop('index'), **request)


# -- on disk ---------------------------------------------------------------------------------------


def test_cityscapes_scripts_render_the_same_pixels(small_set: Path, tmp_path: Path) -> None:
    from cityscapesscripts.helpers.annotation import Annotation
    from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
    from cityscapesscripts.preparation.json2labelImg import json2labelImg

    files = sorted(small_set.rglob('*_polygons.json'))
    assert len(files) == 6
    table = id_to_train_id()
    for source in files:
        stem = str(source).removesuffix('_polygons.json')
        ids = cv2.imread(f'{stem}_labelIds.png', cv2.IMREAD_UNCHANGED)
        train_ids = cv2.imread(f'{stem}_labelTrainIds.png', cv2.IMREAD_UNCHANGED)
        assert np.array_equal(train_ids, table[ids])
        for encoding, expected in (('ids', ids), ('trainIds', train_ids)):
            json2labelImg(str(source), str(tmp_path / 'out.png'), encoding)
            assert np.array_equal(cv2.imread(str(tmp_path / 'out.png'), cv2.IMREAD_UNCHANGED), expected)
        json2labelImg(str(source), str(tmp_path / 'out.png'), 'color')
        ours = cv2.imread(f'{stem}_color.png', cv2.IMREAD_UNCHANGED)
        assert np.array_equal(cv2.imread(str(tmp_path / 'out.png'), cv2.IMREAD_UNCHANGED), ours)
        annotation = Annotation()
        annotation.fromJsonFile(str(source))
        ours = cv2.imread(f'{stem}_instanceIds.png', cv2.IMREAD_UNCHANGED)
        assert ours.dtype == np.uint16
        assert np.array_equal(np.array(createInstanceImage(annotation, 'ids')), ours)


def test_large_scenes_render_the_same_pixels(tmp_path: Path) -> None:
    from cityscapesscripts.preparation.json2labelImg import json2labelImg

    write_toyscapes(tmp_path / 'set', train=1, val=0, size=(1024, 2048), seed=7)
    files = scene_files(tmp_path / 'set', 'train', 0)
    json2labelImg(str(files['polygons']), str(tmp_path / 'out.png'))
    ids = cv2.imread(str(files['labelIds']), cv2.IMREAD_UNCHANGED)
    assert ids.shape == (1024, 2048)
    assert np.array_equal(cv2.imread(str(tmp_path / 'out.png'), cv2.IMREAD_UNCHANGED), ids)


def test_layout_is_that_of_cityscapes(small_set: Path) -> None:
    names = list(contents(small_set))
    assert len(names) == 6 * 6 + 1
    images = sorted((small_set / 'leftImg8bit' / 'train').glob('*/*_leftImg8bit.png'))
    assert len(images) == 4
    for image in images:
        city, sequence, frame = image.name.removesuffix('_leftImg8bit.png').split('_')
        assert city == image.parent.name
        assert (len(sequence), len(frame)) == (6, 6)
        truth = small_set / 'gtFine' / 'train' / city / image.name.removesuffix('_leftImg8bit.png')
        data = json.loads(Path(f'{truth}_gtFine_polygons.json').read_text())
        assert (data['imgHeight'], data['imgWidth']) == SIZE == cv2.imread(str(image)).shape[:2]
        assert data['objects'][0]['label'] == 'sky'
        ids = cv2.imread(f'{truth}_gtFine_labelIds.png', cv2.IMREAD_UNCHANGED)
        color = cv2.imread(f'{truth}_gtFine_color.png')[..., ::-1]
        assert np.array_equal(color, id_to_color()[ids])


def test_mmseg_reads_the_set(small_set: Path) -> None:
    from mmengine.registry import init_default_scope
    from mmseg.datasets import CityscapesDataset

    init_default_scope('mmseg')
    data = CityscapesDataset(
        data_root=str(small_set),
        data_prefix={'img_path': 'leftImg8bit/train', 'seg_map_path': 'gtFine/train'},
        pipeline=[{'type': 'LoadImageFromFile'}, {'type': 'LoadAnnotations'}],
    )
    assert len(data) == 4
    sample = data[2]
    stem = Path(sample['img_path']).name.removesuffix('_leftImg8bit.png')
    ids = cv2.imread(str(next(small_set.rglob(f'{stem}_gtFine_labelIds.png'))), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(sample['gt_seg_map'], id_to_train_id()[ids])


def test_the_set_trains_at_once(small_set: Path, tmp_path: Path) -> None:
    """By the shipped config, without the Cityscapes converter."""
    options = (
        'model.data_preprocessor.size=(32,32) crop_size=(32,32) '
        'train_dataloader.dataset.dataset.pipeline.3.crop_size=(32,32) train_dataloader.num_workers=0 '
        'val_dataloader.num_workers=0 train_cfg.max_iters=1 default_hooks.checkpoint.interval=1'
    )
    words = [CONFIG, '--data-root', str(small_set), '--work-dir', str(tmp_path), '--cfg-options', *options.split()]
    assert run('train', words) == 0
    assert (tmp_path / 'iter_1.pth').is_file()


def test_files_of_the_converter_do_not_make_the_folder_foreign(small_set: Path, tmp_path: Path) -> None:
    root = tmp_path / 'set'
    shutil.copytree(small_set, root)
    before = contents(root)
    assert run('cityscapes', [str(root)]) == 0
    assert set(contents(root)) - set(before) == {'train.txt', 'val.txt'}
    assert write_toyscapes(root, train=4, val=2, size=SIZE, seed=3) == 0


def test_same_call_changes_nothing_and_heals(small_set: Path, tmp_path: Path) -> None:
    root = tmp_path / 'set'
    shutil.copytree(small_set, root)
    before = contents(root)
    assert write_toyscapes(root, train=4, val=2, size=SIZE, seed=3) == 0
    scene_files(root, 'val', 1)['polygons'].unlink()
    shutil.rmtree(root / 'leftImg8bit' / 'train')
    assert write_toyscapes(root, train=4, val=2, size=SIZE, seed=3) == 5
    assert contents(root) == before


def test_more_scenes_keep_the_earlier_ones_in_any_number_of_processes(small_set: Path, tmp_path: Path) -> None:
    assert write_toyscapes(tmp_path, train=6, val=2, size=SIZE, seed=3, nproc=2) == 8
    more = contents(tmp_path)
    assert len(more) == 8 * 6 + 1
    assert all(more[name] == data for name, data in contents(small_set).items())


def test_an_interrupted_run_leaves_whole_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from volo_seg.datasets.toyscapes import writer

    made = []

    def stop(source: object, target: object) -> None:
        if len(made) == 7:
            raise KeyboardInterrupt
        made.append(target)
        genuine(source, target)

    genuine = writer.os.replace
    monkeypatch.setattr(writer.os, 'replace', stop)
    with pytest.raises(KeyboardInterrupt):
        write_toyscapes(tmp_path, train=2, val=1, size=SIZE, seed=3)
    monkeypatch.undo()
    assert len(contents(tmp_path)) == 7
    assert write_toyscapes(tmp_path, train=2, val=1, size=SIZE, seed=3) == 2


def test_a_full_disk_is_told_and_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from volo_seg.datasets.toyscapes import writer

    def full(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(writer.os, 'replace', full)
    with pytest.raises(
        UserError, match=r'toyscapes\.json. cannot be written \(No space left on device\); free some space'
    ):
        write_toyscapes(tmp_path / 'set', train=1, val=0, size=SIZE, seed=0)
    assert contents(tmp_path) == {}


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('mine')
    with pytest.raises(UserError, match='cannot make the folder .*choose another one'):
        write_toyscapes(tmp_path / 'file' / 'set', train=1, val=0, size=SIZE, seed=0)


@pytest.mark.parametrize('changes', [{'seed': 4}, {'size': (64, 64)}, {'style': 'plain'}])
def test_other_settings_are_refused(small_set: Path, changes: dict) -> None:
    before = contents(small_set)
    with pytest.raises(
        UserError,
        match=r'has other settings \(version 1, seed 3, height 64, width 128, style random; asked: version 1, ',
    ):
        write_toyscapes(small_set, **({'train': 5, 'val': 2, 'size': SIZE, 'seed': 3} | changes))
    assert contents(small_set) == before


def test_foreign_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / 'thesis.txt').write_text('mine')
    with pytest.raises(UserError, match=r'is not empty and holds no toyscapes\.json; name an empty or a new folder'):
        write_toyscapes(tmp_path, train=1, val=0, size=SIZE, seed=0)
    with pytest.raises(UserError, match='is a file; name a folder'):
        write_toyscapes(tmp_path / 'thesis.txt', train=1, val=0, size=SIZE, seed=0)
    assert contents(tmp_path) == {'thesis.txt': b'mine'}
    (tmp_path / 'toyscapes.json').write_text('no json')
    with pytest.raises(UserError, match=r'has other settings \(unreadable; asked'):
        write_toyscapes(tmp_path, train=1, val=0, size=SIZE, seed=0)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'train': -1}, 'train=-1 and val=1 scenes asked; give counts of 0 or more'),
        ({'train': 0, 'val': 0}, 'not both 0'),
        ({'train': 1_000_001}, 'file names allow 1000000 per split'),
        ({'nproc': 0}, 'nproc=0 processes asked; give 1 or more'),
        ({'size': (16, 512)}, 'at least 32 pixels'),
        ({'seed': -3}, 'must not be negative'),
    ],
)
def test_bad_requests_write_nothing(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        write_toyscapes(tmp_path / 'set', **({'train': 1, 'val': 1, 'size': SIZE, 'seed': 0} | changes))
    assert not (tmp_path / 'set').exists()


def test_an_older_set_without_a_style_is_plain(tmp_path: Path) -> None:
    settings = {'train': 1, 'val': 0, 'size': SIZE, 'seed': 3}
    write_toyscapes(tmp_path, **settings, style='plain')
    marker = tmp_path / 'toyscapes.json'
    found = json.loads(marker.read_text())
    del found['style']
    marker.write_text(json.dumps(found))
    assert write_toyscapes(tmp_path, **settings, style='plain') == 0
    with pytest.raises(UserError, match='style plain; asked: .*style random'):
        write_toyscapes(tmp_path, **settings)


# -- the command -----------------------------------------------------------------------------------


def test_command_makes_a_set_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = [str(tmp_path / 'set'), '--train', '2', '--val', '1', '--size', '32', '64', '--seed', '5']
    assert main(call) == 0
    assert '2 training and 1 validation scenes of 32x64; 3 made in' in capsys.readouterr().out
    assert main(call) == 0
    assert ' exist' in capsys.readouterr().out
    assert len(contents(tmp_path)) == 3 * 6 + 1


def test_command_says_what_is_wrong_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / 'mine.txt').write_text('mine')
    assert run('toyscapes', [str(tmp_path), '--train', '1', '--val', '0']) == 2
    assert capsys.readouterr().err.startswith(f'error: {tmp_path} is not empty')

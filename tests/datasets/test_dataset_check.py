"""The data set check: one small broken data set for each thing that it finds, then real files."""

import json
import os
import shutil
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from volo_seg.commands import run
from volo_seg.config.load import load_config, set_data_root
from volo_seg.datasets.inspection.check import check_splits, evenly, quick_check
from volo_seg.datasets.inspection.findings import WARNINGS
from volo_seg.datasets.inspection.frequencies import class_weights, count_classes
from volo_seg.datasets.inspection.observation import Observation
from volo_seg.errors import UserError

FOLDERS = 'volo-nano_upernet_1xb4-20k_folders-256x256'
DATA = os.environ.get('VOLO_SEG_DATA', '')
LABELS = np.array([[0, 1, 2, 255, 0, 1]] * 4, np.uint8)


def write(root, split, name, labels=LABELS, mode=None, size=(6, 4), seed=0, suffix='.png'):
    """An image of noise and its label image."""
    noise = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    for kind in ('images', 'annotations'):
        (root / kind / split).mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise).save(root / 'images' / split / f'{name}.jpg')
    Image.fromarray(labels, mode).save(root / 'annotations' / split / f'{name}{suffix}')


@pytest.fixture
def root(tmp_path):
    """A sound data set of three training and two validation pairs."""
    for seed, (split, name) in enumerate([('train', 'a'), ('train', 'b'), ('train', 'c'), ('val', 'd'), ('val', 'e')]):
        write(tmp_path, split, name, seed=seed)
    (tmp_path / 'classes.txt').write_text('road\ncar\nsky\n')
    return tmp_path


DATASETS = {'train': 'train_dataloader.dataset.dataset', 'val': 'val_dataloader.dataset'}
"""Dotted keys of the data sets; the one for training is inside a SeededDataset."""


def check(root, capsys, *options, split='train'):
    """Run the command on ``root``; ``options`` are settings of the data set ``split``. Return status and output."""
    words = [f'{DATASETS[split]}.{option}' for option in options]
    status = run(
        'check', [FOLDERS, '--data-root', str(root), '--nproc', '1', *(['--cfg-options', *words] * bool(words))]
    )
    return status, capsys.readouterr().out


def config_of(root):
    config = load_config(FOLDERS)
    set_data_root(config, str(root))
    return config


def mask_of(root, name, split='train'):
    return root / 'annotations' / split / f'{name}.png'


def replace_mask(root, name, values):
    mask_of(root, name).unlink()
    Image.fromarray(values).save(mask_of(root, name))


def missing_label(root):
    mask_of(root, 'b').unlink()
    return 'error', [
        f"image '{root}/images/train/b.jpg' has no label image '{mask_of(root, 'b')}'",
        'remove the image',
    ]


def other_suffix(root):
    for split in ('train', 'val'):
        for path in (root / 'annotations' / split).iterdir():
            path.rename(path.with_name(f'{path.stem}_mask.PNG'))
    return 'error', [
        f"image '{root}/images/train/a.jpg' has no label image '{mask_of(root, 'a')}' (3 of 3 images have none)",
        "; 'a_mask.PNG' is there, and with seg_map_suffix='_mask.PNG' it would match",
    ]


def other_names(root):
    for path in (root / 'annotations/train').iterdir():
        path.rename(path.with_name(f'mask-{path.stem}.png'))
    return 'error', ["; the nearest names there are 'mask-", "'mask-a.png'"]


def other_format(root):
    for path in (root / 'annotations/train').iterdir():
        Image.open(path).save(path.with_suffix('.tif'))
        path.unlink()
    return 'error', ['seg_map_suffix=', '.tif']


def missing_image(root):
    (root / 'images/train/b.jpg').unlink()
    return 'warning', [f"label image '{mask_of(root, 'b')}' belongs to no image", 'add the image']


def truncated_image(root):
    path = root / 'images/train/c.jpg'
    path.write_bytes(path.read_bytes()[:-40])
    return 'error', [f"cannot read '{path}': image file is truncated", 'copy the file again']


def truncated_png(root):
    path = root / 'images/train/c.png'
    cv2.imwrite(str(path), cv2.imread(str(path.with_suffix('.jpg'))))
    path.with_suffix('.jpg').unlink()
    path.write_bytes(path.read_bytes()[:-20])
    return 'error', [f"cannot read '{path}'", 'copy the file again']


def flipped_bit(root):
    path = root / 'images/train/c.png'
    cv2.imwrite(str(path), cv2.imread(str(path.with_suffix('.jpg'))))
    path.with_suffix('.jpg').unlink()
    content = bytearray(path.read_bytes())
    content[60] ^= 4
    path.write_bytes(content)
    return 'error', [f"cannot read '{path}'", 'copy the file again']


def damaged_tiff(root):
    path = root / 'images/train/c.tif'
    Image.open(path.with_suffix('.jpg')).resize((96, 64)).save(path, compression='tiff_lzw')
    path.with_suffix('.jpg').unlink()
    content = bytearray(path.read_bytes())
    content[len(content) // 3 :] = bytes(len(content) - len(content) // 3 - 300) + content[-300:]
    path.write_bytes(content)
    return 'error', [f"cannot read '{path}'", 'copy the file again']


def huge_image(root):
    path = root / 'images/train/c.png'
    cv2.imwrite(str(path), cv2.imread(str(path.with_suffix('.jpg'))))
    path.with_suffix('.jpg').unlink()
    content = bytearray(path.read_bytes())
    content[16:24] = (60000).to_bytes(4, 'big') * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, 'big')
    path.write_bytes(content)
    return 'error', [f"image '{path}' is not checked: it has 60000 x 60000 pixels, more than the limit"]


def postscript_image(root):
    """Never opened by Pillow's EPS plugin, which starts Ghostscript."""
    path = root / 'images/train/c.jpg'
    path.write_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 4\n%%EndComments\n')
    return 'error', [f"cannot read '{path}': it is not an image of a known format"]


def empty_image(root):
    path = root / 'images/train/c.jpg'
    path.write_bytes(b'')
    return 'error', [f"cannot read '{path}': the file is empty"]


def no_image(root):
    path = root / 'images/train/c.jpg'
    path.write_text('<html>not found</html>')
    return 'error', [f"cannot read '{path}': it is a text file (SVG, XML or a web page)"]


def pipe_for_an_image(root):
    path = root / 'images/train/c.jpg'
    path.unlink()
    os.mkfifo(path)
    return 'error', [f"cannot read '{path}': it is a pipe, socket or device, not a file"]


def device_for_a_label(root):
    path = mask_of(root, 'a')
    path.unlink()
    path.symlink_to('/dev/zero')
    return 'error', [f"cannot read '{path}': it is a pipe, socket or device, not a file"]


def postscript(root):
    path = root / 'images/train/c.jpg'
    path.write_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 4\n%%EndComments\n%%EOF\n')
    return 'error', [f"cannot read '{path}': it is not an image of a known format"]


def damaged_label(root):
    mask_of(root, 'a').write_bytes(mask_of(root, 'a').read_bytes()[:45])
    return 'error', [f"cannot read '{mask_of(root, 'a')}'", 'write the label image again']


def other_size(root):
    replace_mask(root, 'a', LABELS[:3])
    return 'error', ['is 6x4 and its label image', f"'{mask_of(root, 'a')}' is 6x3 pixels", 'nearest']


def rgb_mask(root):
    replace_mask(root, 'a', np.zeros((4, 6, 3), np.uint8))
    return 'error', [f"label image '{mask_of(root, 'a')}' is a colour image (mode RGB)", 'colours=[…]']


def rgba_mask(root):
    replace_mask(root, 'a', np.zeros((4, 6, 4), np.uint8))
    return 'error', ['is a colour image with transparency (mode RGBA)', 'grey or palette PNG']


def float_mask(root):
    Image.fromarray(np.zeros((4, 6), np.float32)).save(mask_of(root, 'a'), format='TIFF')
    return 'error', ['is a floating-point image (mode F): it holds no class numbers']


def sixteen_bit(root):
    replace_mask(root, 'a', np.where(LABELS == 2, np.uint16(300), LABELS))
    return 'error', [f"'{mask_of(root, 'a')}'", 'holds label 300', 'would become 44', 'number the classes 0..254']


def binary(root):
    for name in 'abc':
        replace_mask(root, name, np.where(LABELS == 1, 255, 0).astype(np.uint8))
    return 'error', ['labels hold 0 and 255', 'a binary mask saved as 8-bit', 'map 255 to 1 with label_map={255: 1}']


def out_of_range(root):
    replace_mask(root, 'b', np.where(LABELS == 1, 7, LABELS).astype(np.uint8))
    return 'error', [f"'{mask_of(root, 'b')}' holds 7, and with 3 classes 0..2 are classes", 'set ignore_labels=[7]']


def counts_from_one(root):
    for name in 'abc':
        replace_mask(root, name, np.where(LABELS == 255, 255, LABELS + 1).astype(np.uint8))
    return 'error', ['holds 3, and with 3 classes', 'labels count from 1: set reduce_zero_label=True']


def never_seen(root):
    for name in 'abc':
        replace_mask(root, name, np.where(LABELS == 1, 0, LABELS).astype(np.uint8))
    return 'warning', ['1 of 3 classes do not occur in train', 'cannot be learned: car', 'add images with them']


def wholly_ignored(root):
    replace_mask(root, 'b', np.full_like(LABELS, 255))
    return 'warning', [f"'{mask_of(root, 'b')}' is ignored in every pixel (1 of 3 in train)", 'check ignore_index']


def duplicate(root):
    shutil.copy(root / 'images/train/a.jpg', root / 'images/val/d.jpg')
    return 'warning', [
        f"'{root}/images/val/d.jpg' has the same bytes as '{root}/images/train/a.jpg'",
        'are too high',
    ]


def share_a_name(root):
    Image.new('RGB', (6, 4)).save(root / 'images/train/a.png')
    return 'error', ['a.jpg', 'a.png', 'share a name and would share a label image; rename one']


def turned(root):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (6, 4)).save(root / 'images/train/a.jpg', exif=exif)
    return 'error', ['a.jpg', 'is 4x6', 'is 6x4 pixels', 'by its EXIF orientation 6']


def upside_down(root):
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.new('RGB', (6, 4)).save(root / 'images/train/a.jpg', exif=exif)
    return 'warning', [
        'is turned by its EXIF orientation 3 when it is loaded, and labels are not',
        'save the image upright',
    ]


def no_files(root):
    shutil.rmtree(root / 'images/train')
    (root / 'images/train').mkdir()
    return 'error', ['train has no pair of an image and a label image; check data_root']


def no_folder(root):
    shutil.rmtree(root / 'images/train')
    return 'error', [f"folder '{root}/images/train'", 'does not exist; give the right folder by --data-root']


BROKEN = (
    *(
        missing_label,
        other_suffix,
        other_names,
        other_format,
        missing_image,
        truncated_image,
        truncated_png,
        flipped_bit,
        empty_image,
        no_image,
    ),
    *(pipe_for_an_image, device_for_a_label, postscript),
    *(damaged_label, other_size, rgb_mask, rgba_mask, float_mask, sixteen_bit, binary, out_of_range),
    *(counts_from_one, never_seen, wholly_ignored, duplicate, share_a_name, turned, upside_down),
    *(no_files, no_folder, damaged_tiff, huge_image, postscript_image),
)


def test_a_sound_data_set_has_no_findings(root, capsys):
    status, out = check(root, capsys)
    assert status == 0
    assert 'training can start: no errors, 0 warnings' in out
    assert 'train: 3 pairs, 0 images without labels, 0 labels without images; label values 0..2, 255: 16.67%' in out
    assert out.count('40.0000%') == 4 and out.count('20.0000%') == 2


@pytest.mark.parametrize('damage', BROKEN, ids=lambda damage: damage.__name__)
def test_each_failure_is_found(root, capsys, damage):
    level, words = damage(root)
    status, out = check(root, capsys)
    lines = [line for line in out.splitlines() if line.startswith(('error', 'warning'))]
    line = next((line for line in lines if all(word in line for word in words)), None)
    assert line is not None, out
    assert line.startswith(level)
    assert status == (level == 'error')
    assert ('training cannot start' in out) == (level == 'error')


@pytest.mark.parametrize('damage', BROKEN, ids=lambda damage: damage.__name__)
def test_quick_check_stops_at_what_is_fatal_and_at_nothing_else(root, damage):
    level, words = damage(root)
    if level == 'warning':
        quick_check(config_of(root))
        return
    with pytest.raises(UserError) as error:
        quick_check(config_of(root))
    assert '--no-check skips this check' in str(error.value)
    if damage is not no_folder:
        assert all(word in str(error.value) for word in words), error.value


def test_training_looks_first_unless_told_not_to(root, tmp_path, capsys, monkeypatch):
    from volo_seg.commands.train import build_parser, prepare

    rgb_mask(root)
    words = [FOLDERS, '--data-root', str(root), '--work-dir', str(tmp_path / 'work')]
    assert run('train', words) == 2
    assert capsys.readouterr().err.startswith(f"error: label image '{mask_of(root, 'a')}' is a colour image")
    assert not (tmp_path / 'work').exists()
    assert prepare(build_parser().parse_args([*words, '--no-check'])).work_dir == str(tmp_path / 'work')
    monkeypatch.setenv('RANK', '1')
    prepare(build_parser().parse_args(words))


def test_what_the_options_mend(root, capsys):
    binary(root)
    config = config_of(root)
    config.merge_from_dict({f'{key}.label_map': {255: 1} for key in DATASETS.values()})
    quick_check(config)
    out_of_range(root)
    assert check(root, capsys)[0] == 1
    assert check(root, capsys, 'ignore_labels=[7]')[0] == 0
    counts_from_one(root)
    assert check(root, capsys)[0] == 1
    assert check(root, capsys, 'reduce_zero_label=True')[0] == 0


@pytest.mark.parametrize(('names', 'white'), [('ground\nthing\n', 255), ('ground\nthing\n', 1), ('thing\n', 255)])
def test_binary_masks_are_explained_with_the_flag_that_reads_them(root, capsys, names, white):
    (root / 'classes.txt').write_text(names)
    for split, name in (('train', 'a'), ('train', 'b'), ('train', 'c'), ('val', 'd'), ('val', 'e')):
        replace = np.where(LABELS == 1, white, 0).astype(np.uint8)
        mask_of(root, name, split).unlink()
        Image.fromarray(replace).save(mask_of(root, name, split))
    words = [FOLDERS, '--data-root', str(root), '--nproc', '1']
    status, out = run('check', words), capsys.readouterr().out
    if white == 1:
        assert status == 0 and 'binary' not in out
        return
    assert status == 1 and ('num_classes=1: with one class' in out) == (names == 'thing\n')
    flags = [f'{key}.label_map.255=1' for key in DATASETS.values()]
    assert out.count('a binary mask saved as 8-bit') == 2 and all(f'(--cfg-options {flag})' in out for flag in flags)
    if names != 'thing\n':
        assert run('check', [*words, '--cfg-options', *flags]) == 0
        assert 'no errors, 0 warnings' in capsys.readouterr().out


def test_palette_of_a_mask_that_differs_from_the_class_list(root, capsys):
    """Values are drawn in the colours of other classes: the masks were made by a list in another order."""
    colours = [[10, 20, 30], [40, 50, 60], [70, 80, 90]]
    image = Image.fromarray(LABELS).convert('P')
    image.putdata(LABELS.reshape(-1).tolist())
    image.putpalette(sum(colours, []) + [0] * 759)
    image.save(mask_of(root, 'a'))
    chosen = 'palette=' + str(colours).replace(' ', '')
    assert '0 warnings' in check(root, capsys)[1] and '0 warnings' in check(root, capsys, chosen)[1]
    swapped = 'palette=' + str([colours[0], colours[2], colours[1]]).replace(' ', '')
    status, out = check(root, capsys, swapped)
    assert status == 0, out
    assert (
        f"warning (train): label image '{mask_of(root, 'a')}' has the colours of the classes 1 'sky', 2 'car' in its "
        "palette, but the class list has 1 'car', 2 'sky'; check the order of the classes" in out
    )


def test_palette_and_low_sixteen_bit_masks_are_fine(root, capsys):
    image = Image.fromarray(LABELS).convert('P')
    image.putdata(LABELS.reshape(-1).tolist())
    image.save(mask_of(root, 'a'))
    assert Image.open(mask_of(root, 'a')).mode == 'P'
    replace_mask(root, 'b', LABELS.astype(np.uint16))
    status, out = check(root, capsys)
    assert status == 0 and '0 warnings' in out


def test_jpeg_masks_are_warned_about(root, capsys):
    write(root, 'train', 'a', suffix='.jpg', labels=np.zeros((4, 6), np.uint8))
    for name in 'bc':
        shutil.copy(root / 'annotations/train/a.jpg', root / f'annotations/train/{name}.jpg')
    _, out = check(root, capsys, "seg_map_suffix='.jpg'")
    assert 'is a JPEG, which changes label values at every edge' in out


def test_colours(root, capsys):
    rgb_mask(root)
    for name in 'bc':
        shutil.copy(mask_of(root, 'a'), mask_of(root, name))
    colours = 'colours=[(0,0,0),(9,9,9),(1,2,3)]'
    assert check(root, capsys)[0] == 1
    assert check(root, capsys, colours)[0] == 0
    status, out = check(root, capsys, 'colours=[(0,0,1),(9,9,9),(1,2,3)]')
    assert status == 1
    assert f"label image '{mask_of(root, 'a')}' holds colour (0, 0, 0) in 24 pixels, which no class has" in out


def test_fast_leaves_images_undecoded(root, capsys):
    truncated_image(root)
    assert run('check', [FOLDERS, '--data-root', str(root), '--nproc', '1', '--fast']) == 0
    rgb_mask(root)
    assert run('check', [FOLDERS, '--data-root', str(root), '--nproc', '1', '--fast']) == 1


def test_many_processes_find_the_same(root):
    for index in range(70):
        write(root, 'train', f'n{index:02}', seed=100 + index)
    truncated_image(root)
    one, _ = check_splits(config_of(root), processes=1, fast=False)
    two, _ = check_splits(config_of(root), processes=2, fast=False)
    assert [len(part.observations) for part in two] == [73, 2]
    assert [part.observations for part in one] == [part.observations for part in two]
    assert [part.findings for part in one] == [part.findings for part in two]


def test_all_files_of_a_finding_can_be_named(root, capsys):
    for index in range(8):
        write(root, 'train', f'n{index}', labels=LABELS + 3, seed=100 + index)
    words = [FOLDERS, '--data-root', str(root), '--nproc', '1']
    assert run('check', words) == 1
    out = capsys.readouterr().out
    assert 'and 5 more (8 in all; --all-files lists them)' in out and 'n7.png' not in out
    assert run('check', [*words, '--all-files']) == 1
    assert 'n7.png' in capsys.readouterr().out


def test_class_weights_are_written_and_read_by_the_loss(root, tmp_path, capsys):
    target = tmp_path / 'weights.json'
    words = [FOLDERS, '--data-root', str(root), '--nproc', '1', '--weights-file', str(target)]
    assert run('check', [*words, '--class-weights', 'inverse']) == 0
    assert f'loss_decode.class_weight={target}' in capsys.readouterr().out
    weights = json.loads(target.read_text())
    assert weights == pytest.approx([5 / 6, 5 / 6, 5 / 3], abs=1e-5)
    from mmseg.models.losses import CrossEntropyLoss

    assert CrossEntropyLoss(class_weight=str(target)).class_weight == weights
    assert run('check', [*words, '--class-weights', 'median']) == 2
    assert 'exists; name another file by --weights-file' in capsys.readouterr().err


def test_mistakes_on_the_command_line(root, tmp_path, capsys):
    for words, sentence in (
        (['--nproc', '0'], '--nproc 0 is not a number of processes'),
        (['--weights-file', 'x.json'], '--weights-file needs --class-weights'),
        (['--class-weights', 'median', '--weights-file', 'x.npy'], "'x.npy' is not a .json file"),
    ):
        assert run('check', [FOLDERS, '--data-root', str(root), *words]) == 2
        assert sentence in capsys.readouterr().err
    for path in (root / 'annotations/train').iterdir():
        path.write_bytes(b'')
    words = ['--nproc', '1', '--class-weights', 'median', '--weights-file', str(tmp_path / 'w.json')]
    assert run('check', [FOLDERS, '--data-root', str(root), *words]) == 2
    assert 'no training label could be counted' in capsys.readouterr().err


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=8).filter(any))
@settings(max_examples=40, deadline=None)
def test_inverse_weights_keep_the_scale_of_the_loss(pixels):
    frequencies = count_classes(split_of(len(pixels)), [Observation('i', 'm', values=dict(enumerate(pixels)))])
    weights = np.array(class_weights(frequencies, 'inverse'))
    assert (weights * pixels).sum() / sum(pixels) == pytest.approx(1, rel=1e-4)


def test_median_frequency_counts_only_images_with_the_class():
    observations = [Observation('i', 'm', values={0: 50, 1: 50, 255: 7}), Observation('j', 'n', values={0: 90, 2: 10})]
    # frequencies 140/200, 50/100, 10/100: the median is 0.5
    frequencies = count_classes(split_of(4), observations)
    weights = class_weights(frequencies, 'median')
    assert weights == pytest.approx([0.5 / 0.7, 1, 5, 1], abs=1e-5)
    assert class_weights(frequencies, 'sqrt') == pytest.approx(np.sqrt(weights), abs=1e-5)


def split_of(classes):
    from volo_seg.datasets.inspection.splits import Split
    from volo_seg.datasets.masks import label_lookup
    from volo_seg.datasets.pairs import Pairing

    lookup = label_lookup(reduce_zero_label=False, label_map=None)
    names = tuple(map(str, range(classes)))
    return Split(
        'train', 'train_dataloader.dataset', 'FolderDataset', names, 255, False, lookup, '.png', None, Pairing()
    )


@given(st.integers(0, 200), st.integers(1, 40))
def test_evenly_spread(total, count):
    items = [(str(i), None) for i in range(total)]
    chosen = evenly(items, count)
    assert len(chosen) == min(total, count) == len(set(chosen))
    if total and count > 1:
        assert (chosen[0], chosen[-1]) == (items[0], items[-1])


def test_warnings_are_no_errors():
    assert {'duplicate', 'unseen', 'ignored'} <= set(WARNINGS)


def test_browse(root, tmp_path, capsys):
    out = tmp_path / 'pictures'
    words = [FOLDERS, str(out), '--data-root', str(root), '--count', '2']
    assert run('browse', words) == 0
    for name in ('train_samples.png', 'train_class_frequency.png'):
        assert cv2.imread(str(out / name)).std() > 5
    before = (out / 'train_samples.png').read_bytes()
    assert run('browse', words) == 2
    assert 'exists; add --overwrite' in capsys.readouterr().err
    assert run('browse', [*words, '--overwrite']) == 0
    assert (out / 'train_samples.png').read_bytes() == before
    assert run('browse', [FOLDERS, str(out), '--count', '0']) == 2
    assert '--count 0 is not a number of samples' in capsys.readouterr().err


def test_overlay_colours_labels_and_blackens_what_is_ignored():
    from volo_seg.visualization import overlay

    image = np.full((1, 3, 3), 100, np.uint8)
    palette = np.array([[255, 0, 0], [0, 0, 255]], np.uint8)
    mixed = overlay(image, np.array([[0, 1, 255]], np.uint8), palette, opacity=0.6)
    assert mixed[0].tolist() == [[193, 40, 40], [40, 40, 193], [0, 0, 0]]


real = pytest.mark.skipif(not DATA, reason='VOLO_SEG_DATA names no folder of real files')


@real
def test_camvid(tmp_path, capsys):
    root = tmp_path / 'camvid'
    root.mkdir()
    for name in ('images', 'annotations'):
        (root / name).symlink_to(Path(DATA, 'camvid', name).resolve())
    names = 'Sky Building Pole Road Pavement Tree SignSymbol Fence Car Pedestrian Bicyclist'
    (root / 'classes.txt').write_text('\n'.join(names.split()))
    status, out = check(root, capsys)
    assert status == 1
    assert 'holds 11, and with 11 classes 0..10 are classes, 255 is ignored' in out
    assert 'set ignore_labels=[11]' in out
    options = [f'{key}.ignore_labels=[11]' for key in DATASETS.values()]
    assert run('check', [FOLDERS, '--data-root', str(root), '--fast', '--cfg-options', *options]) == 0
    assert 'train: 367 pairs' in capsys.readouterr().out


@real
def test_ade20k(capsys):
    root = str(Path(DATA, 'ade', 'ADEChallengeData2016'))
    assert run('check', ['volo-d1_upernet_8xb2-160k_ade20k-512x512', '--data-root', root, '--nproc', '1']) == 0
    out = capsys.readouterr().out
    assert 'train: 3 pairs' in out and '0.00% out of range' in out


@real
def test_cityscapes(tmp_path, capsys):
    root = tmp_path / 'cityscapes'
    shutil.copytree(Path(DATA, 'cityscapes'), root, copy_function=shutil.copyfile)
    words = ['volo-d1_upernet_8xb1-160k_cityscapes-1024x1024', '--data-root', str(root), '--nproc', '1']
    assert run('check', words) == 1
    out = capsys.readouterr().out
    assert 'run tools/dataset_converters/cityscapes.py on the data root first' in out
    assert '8 images without labels' in out
    for path in root.rglob('*_gtFine_labelIds.png'):
        shutil.copyfile(path, str(path).replace('labelIds', 'labelTrainIds'))
    assert run('check', words) == 1
    assert 'these look like labelIds: write labelTrainIds with volo-seg cityscapes' in capsys.readouterr().out
    assert run('cityscapes', [str(root)]) == 0
    assert run('check', words) == 0
    assert 'train: 8 pairs, 0 images without labels, 0 labels without images' in capsys.readouterr().out

"""Disks of 64, 24 and 8 MB that fill up while a command works: one sentence, whole files, and nothing lost."""

import re

import cv2
import numpy as np
import pytest
import tiny
from fake_infer import Brightness
from images import film
from mmengine.config import Config

from volo_seg.checkpoints import load_file
from volo_seg.commands import infer, run
from volo_seg.commands.apply_flags import set_resume
from volo_seg.engine.hooks.checkpoint_hook import RESCUED, last_checkpoint
from volo_seg.errors import UserError

SIZES = (64, 24, 8)
KEPT = ('state_dict', 'optimizer', 'param_schedulers')
# checkpoints of 20 MB
LARGE = dict(model__decode_head__channels=128, train_cfg__max_iters=4, train_cfg__val_interval=100)


@pytest.fixture(scope='module')
def uninterrupted(data, tmp_path_factory):
    work = tmp_path_factory.mktemp('uninterrupted')
    tiny.runner(data, work, **LARGE, default_hooks__checkpoint__interval=4).train()
    return load_file(work / 'iter_4.pth')


@pytest.mark.parametrize('size', SIZES)
def test_training(size, disk, uninterrupted, data, tmp_path, monkeypatch, capfd):
    """The last checkpoint goes to the folder for temporary files, and equals that of a run with enough space."""
    work = disk(size) / 'work'
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    assert run('train', tiny.words(data, work, '--no-check', **LARGE, visualizer__name=f'disk{size}')) == 2
    out, err = capfd.readouterr()
    assert 'Traceback' not in out + err
    assert 'No space left on device' in out + err and 'training continues' in out + err
    whole = sorted(path.name for path in work.glob('iter_*.pth'))
    assert whole == [f'iter_{i + 1}.pth' for i in range(size // 20)] and not list(work.glob('.*'))
    for name in whole:
        assert load_file(work / name)['optimizer']
    assert whole == [] if last_checkpoint(work) is None else last_checkpoint(work).name == whole[-1]
    place = re.search(r"error: .*iter_4\.pth.*; it is saved as '(.*)'; move it to a folder with free space\n$", err)
    rescued = load_file(place[1])
    assert (work / RESCUED).read_text() == place[1]
    config = Config({'work_dir': str(work)})
    if whole:
        set_resume(config, 'auto')
        assert config.load_from == str(work / whole[-1])
        found = (
            f"resuming from '{work / whole[-1]}'; a later save failed, and its copy is resumed by --resume {place[1]}"
        )
        assert found in capfd.readouterr().out
    else:
        with pytest.raises(UserError) as error:
            set_resume(config, 'auto')
        assert f'; the last save failed, and its copy is resumed by --resume {place[1]}' in str(error.value)
    assert not any(tiny.differences(rescued[key], uninterrupted[key]) for key in KEPT)


def infer_words(images, out, *kinds):
    return ['x.pth', str(images), '--kinds', *kinds, '--out-dir', str(out)]


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


@pytest.mark.parametrize('size', SIZES)
def test_images(size, disk, tmp_path, monkeypatch, capsys):
    """Results of more than 2 MB an image; with more space, --resume completes them."""
    monkeypatch.setattr(infer, 'load_model', lambda *_: Brightness())
    images = tmp_path / 'images'
    images.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (1300, 1300, 3), dtype=np.uint8)
    cv2.imwrite(str(images / '00.jpg'), noise)
    for index in range(1, size // 2 + 2):
        (images / f'{index:02}.jpg').hardlink_to(images / '00.jpg')
    folder = disk(size)
    words = infer_words(images, folder / 'out', 'labels', 'overlay', 'shares')
    assert run('infer', words) == 2
    err = capsys.readouterr().err
    assert (
        re.search(r'\(No space left on device\); free some space or name another place\n$', err)
        and err.count('error') == 1
    )
    written = content(folder / 'out')
    assert written and not [name for name in written if '/.' in name]
    disk(4 * size)
    assert run('infer', [*words, '--resume']) == 0
    assert run('infer', infer_words(images, tmp_path / 'whole', 'labels', 'overlay', 'shares')) == 0
    expected = content(tmp_path / 'whole')
    assert content(folder / 'out') == expected
    assert all(expected[name] == data for name, data in written.items() if name.endswith(('.png', '.jpg')))


def test_video(disk, tmp_path, monkeypatch, capsys):
    """The file of a video that does not fit is removed."""
    monkeypatch.setattr(infer, 'load_model', lambda *_: Brightness())
    clip = film(tmp_path / 'clip.mp4', frames=150, size=(480, 640))
    folder = disk(1)
    assert run('infer', infer_words(clip, folder / 'out', 'labels', 'overlay')) == 2
    err = capsys.readouterr().err
    assert err.startswith('error: ') and err.count('\n') == 1
    assert re.search(
        r'cannot be written \((No space left on device|\d+ of 150 frames were written)\); free some space', err
    )
    assert not list((folder / 'out').rglob('*.mp4')) and not list((folder / 'out').rglob('.*'))

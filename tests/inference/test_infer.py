"""``volo-seg infer``: folders, broken files, going on, Ctrl-C, several processes, videos, and every mistake."""

import csv
import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from fake_infer import CLASSES, Brightness
from images import film, pictures

from volo_seg.commands import infer, run
from volo_seg.errors import UserError
from volo_seg.inference.batch import video
from volo_seg.inference.class_shares import SharePart, ShareTable
from volo_seg.inference.output_formats import OUTPUT_FORMATS
from volo_seg.inference.result import Result
from volo_seg.progress import Progress

FAKE = Path(__file__).parents[1] / 'fake_infer.py'
NANO = 'volo-nano_upernet_1xb4-1200_toyscapes-256x256'


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'TORCHELASTIC_RUN_ID'):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def networks(monkeypatch):
    """The network of the command is replaced; the list holds one for each time it was opened."""
    opened = []

    def load_model(*args):
        opened.append(Brightness())
        return opened[-1]

    monkeypatch.setattr(infer, 'load_model', load_model)
    return opened


def content(folder):
    """The content of each file by its path; of the parts of Parquet, the rows by name."""
    files = {str(p.relative_to(folder)): p for p in sorted(folder.rglob('*')) if p.is_file()}
    rows = [row for p in files.values() if p.suffix == '.parquet' for row in pq.read_table(p).to_pylist()]
    by_name = {f'parquet {row["name"]}': row for row in rows}
    assert len(by_name) == len(rows)
    return {**{name: p.read_bytes() for name, p in files.items() if p.suffix != '.parquet'}, **by_name}


def rows(folder):
    return list(csv.DictReader((folder / 'shares.csv').open(newline='')))


def call(*words):
    return run('infer', [str(word) for word in words])


def test_names_subfolders_and_broken_files(networks, tmp_path, capsys):
    images = pictures(tmp_path / 'images', 'one.jpg', 'other.png', 'a/two.png', 'cut.jpg', 'bomb.png', size=(200, 300))
    (images / 'cut.jpg').write_bytes((images / 'one.jpg').read_bytes()[:-500])
    bomb = bytearray((images / 'bomb.png').read_bytes())
    bomb[16:24] = (60_000).to_bytes(4, 'big') * 2
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, 'big')
    (images / 'bomb.png').write_bytes(bomb)
    (images / 'text.jpg').write_bytes(b'not an image')
    (images / 'empty.png').touch()
    (images / 'folder.jpg').mkdir()
    (images / 'gone.png').symlink_to(tmp_path / 'nothing')
    assert call('x.pth', images, '--out-dir', tmp_path / 'out') == 1
    out, err = capsys.readouterr()
    assert '3 of 8 images segmented' in out
    assert [line.split("'")[1].rsplit('/')[-1] for line in err.splitlines()] == [
        'bomb.png',
        'cut.jpg',
        'empty.png',
        'gone.png',
        'text.jpg',
    ]
    for word in (
        'volo-seg raster',
        'damaged or cut off',
        '0 bytes',
        'does not exist',
        'not an image of a known format',
    ):
        assert word in err
    stems = {'one', 'other', 'a/two'}
    files = {f'labels/{s}.png' for s in stems} | {f'overlays/{s}.jpg' for s in stems}
    assert set(content(tmp_path / 'out')) == files | {'infer.json'}
    labels = cv2.imread(str(tmp_path / 'out/labels/other.png'), -1)
    assert (labels == np.minimum(cv2.imread(str(images / 'other.png')).mean(axis=2) // 86, 2)).all()


def test_nothing_is_overwritten_unasked(networks, tmp_path, capsys):
    images = pictures(tmp_path / 'images', 'a.png', 'b.png')
    words = ('x.pth', images, '--out-dir', tmp_path / 'out', '--kinds', 'labels', 'shares')
    assert call(*words) == 0
    (tmp_path / 'out/labels/a.png').write_text('mine')
    assert call(*words) == 2
    assert 'exists already (2 such); add --resume to continue, --overwrite' in capsys.readouterr().err
    assert (tmp_path / 'out/labels/a.png').read_text() == 'mine'
    assert call(*words, '--overwrite') == 0
    assert cv2.imread(str(tmp_path / 'out/labels/a.png'), -1) is not None
    (tmp_path / 'out/labels/a.png').unlink()
    (tmp_path / 'out/labels/b.png').unlink()
    assert call(*words) == 2
    assert "shares.csv' exists already (2 such)" in capsys.readouterr().err
    assert [row['name'] for row in rows(tmp_path / 'out')] == ['a', 'b']


def test_resume_segments_only_what_is_missing(networks, tmp_path, capsys):
    images = pictures(tmp_path / 'images', 'a.png', 'b.png', 'c.png', 'd.png')
    words = ('x.pth', images, '--kinds', *OUTPUT_FORMATS, '--out-dir')
    assert call(*words, tmp_path / 'whole') == 0
    assert call(*words, tmp_path / 'out') == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / 'out').rglob('*') if path.is_file()}
    (tmp_path / 'out/geojson/a.geojson').unlink()
    table = tmp_path / 'out/shares.csv'
    table.write_text(''.join(line for line in table.read_text().splitlines(True) if not line.startswith('c,')))
    assert call(*words, tmp_path / 'out', '--resume') == 0
    assert [network.seen for network in networks] == [4, 4, 2]
    assert '2 of 2 images segmented' in (out := capsys.readouterr().out) and '2 were finished before' in out
    assert content(tmp_path / 'out') == content(tmp_path / 'whole')
    for name in ('labels/b.png', 'labelme/d.json'):
        assert (tmp_path / 'out' / name).stat().st_mtime_ns == before[tmp_path / 'out' / name]
    assert call(*words, tmp_path / 'out', '--resume') == 0
    assert len(networks) == 3, 'nothing was left, and a network was opened'
    assert '0 of 0 images segmented' in (out := capsys.readouterr().out) and '4 were finished before' in out


def test_rows_of_a_killed_process_are_kept(networks, tmp_path):
    images = pictures(tmp_path / 'images', 'a.png', 'b.png')
    words = ('x.pth', images, '--kinds', 'labels', 'shares', '--out-dir')
    assert call(*words, tmp_path / 'whole') == 0
    out = tmp_path / 'out'
    assert call(*words, out) == 0
    [a, b] = (out / 'shares.csv').read_text().splitlines()[1:]
    (out / 'shares.csv').unlink()
    for rank, rest in ((0, b[:-3]), (5, a + '\nb,cut o')):  # the last row of each is cut off
        (out / f'.shares.{rank}.csv').write_text(rest)
    assert call(*words, out, '--resume') == 0
    assert networks[-1].seen == 1, 'the row of b was not complete'
    assert not list(out.glob('.*')), 'a part is left'
    assert content(out) == content(tmp_path / 'whole')


@pytest.fixture
def results(networks, tmp_path, monkeypatch):
    """Three images and a folder of their results of a.pth, with all kinds; the arguments of the run."""
    monkeypatch.chdir(tmp_path)
    for name in 'ab':
        (tmp_path / f'{name}.pth').write_bytes(name.encode())
    words = (pictures(tmp_path / 'images', '0.png', '1.png', '2.png'), '--kinds', *OUTPUT_FORMATS, '--out-dir', 'out')
    assert call('a.pth', *words) == 0
    return words


def test_resume_refuses_results_of_another_checkpoint(results, networks, tmp_path, capsys):
    before = content(tmp_path / 'out')
    for name in ('2.png', '0.png'):  # also where nothing is left to do
        assert call('b.pth', *results, '--resume') == 2
        message = "'out' has results of another checkpoint ('a.pth', not 'b.pth'); name another --out-dir or add --over"
        assert message in capsys.readouterr().err
        assert content(tmp_path / 'out') == before
        before.pop(f'labels/{name}')
        (tmp_path / 'out/labels' / name).unlink()
    (tmp_path / 'same.pth').write_bytes(b'a')
    assert call('same.pth', *results, '--resume') == 0
    assert networks[-1].seen == 2
    (tmp_path / 'a.pth').write_bytes(b'c')
    assert call('a.pth', *results, '--resume') == 2
    assert "another checkpoint ('a.pth' has changed); name" in capsys.readouterr().err
    assert call('b.pth', pictures(tmp_path / 'more', '3.png'), '--out-dir', 'out') == 2
    assert "another checkpoint ('a.pth', not 'b.pth')" in capsys.readouterr().err
    assert len(networks) == 2


def test_resume_refuses_results_of_other_options(results, networks, tmp_path, capsys, monkeypatch):
    assert call('a.pth', *results, '--resume', '--opacity', '0.7') == 2
    assert "results of another opacity ('0.5', not '0.7')" in capsys.readouterr().err
    assert call('a.pth', *results[:1], '--out-dir', 'out', '--kinds', 'labels', '--resume', '--opacity', '0.7') == 0
    (tmp_path / 'out/labels/1.png').unlink()
    monkeypatch.setattr('volo_seg.inference.batch.folder_key.__version__', '99.0')
    assert call('b.pth', *results, '--resume') == 2
    assert 'results of another version (' in (err := capsys.readouterr().err)
    assert ", not '99.0') and checkpoint ('a.pth', not 'b.pth'); name" in err
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)


def test_resume_refuses_results_of_another_config(results, networks, tmp_path, capsys):
    words = (NANO, 'a.pth', *results[:1], '--out-dir', 'other', '--kinds', 'labels')
    assert call(*words) == 0
    assert call(*words, '--resume', '--cfg-options', 'train_cfg.max_iters=7', 'work_dir=x') == 0, 'training only'
    (tmp_path / 'other/labels/1.png').unlink()
    for option in ('model.test_cfg.mode=slide', 'test_dataloader.dataset.pipeline.0.type=X'):
        assert call(*words, '--resume', '--cfg-options', option) == 2
        message = f"'other' has results of another config ('{NANO}', not '{NANO} {option}'); name"
        assert message in capsys.readouterr().err
    assert call('a.pth', *words[2:], '--resume') == 2
    assert f"another config ('{NANO}', not 'that of the checkpoint')" in capsys.readouterr().err
    assert len(networks) == 2


def test_an_interrupted_replacement_is_resumed(results, networks, tmp_path, monkeypatch):
    """What was not yet replaced is not taken for finished: neither files nor rows of the table."""
    table = (tmp_path / 'out/shares.csv').read_bytes()
    for path in (tmp_path / 'out').rglob('*.*'):
        os.utime(path, ns=(1, path.stat().st_mtime_ns - 10**9))
    segment = Brightness._segment

    def interrupted(self, batch, **options):
        if self.seen:
            raise KeyboardInterrupt
        return [p._replace(labels=np.full_like(p.labels, 2)) for p in segment(self, batch, **options)]

    with monkeypatch.context() as patch:
        patch.setattr(Brightness, '_segment', interrupted)
        assert call('b.pth', *results, '--overwrite') == 130
    assert (tmp_path / 'out/shares.previous.csv').read_bytes() == table
    replaced = (tmp_path / 'out/labels/0.png').read_bytes()
    time.sleep(0.02)
    assert call('b.pth', *results, '--resume') == 0
    assert networks[-1].seen == 2
    assert (tmp_path / 'out/labels/0.png').read_bytes() == replaced
    assert [row['bright'] for row in rows(tmp_path / 'out')][0] == '1.000000'
    assert call('b.pth', *results, '--resume') == 0
    assert len(networks) == 3


def test_a_folder_without_a_key_is_resumed_and_a_damaged_key_refused(results, networks, tmp_path, capsys):
    key = tmp_path / 'out/infer.json'
    key.unlink()
    (tmp_path / 'out/labels/1.png').unlink()
    assert call('a.pth', *results, '--resume') == 0
    assert networks[-1].seen == 1
    for content_ in ('hello', '[]', '{"key": {"checkpoint": 1}, "since": 0}'):
        key.write_text(content_)
        assert call('a.pth', *results, '--resume') == 2
        assert "infer.json' is not a record of volo-seg infer (" in capsys.readouterr().err


def test_a_folder_without_results_is_of_no_checkpoint(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = (pictures(tmp_path / 'photos', '1.png'), '--out-dir', 'out')
    assert call('missing.pth', *words) == 2
    assert "'missing.pth' does not exist" in capsys.readouterr().err
    assert (tmp_path / 'out/infer.json').exists()
    monkeypatch.setattr(infer, 'load_model', lambda *_: Brightness())
    assert call('b.pth', *words) == 0
    assert call('missing.pth', *words, '--resume') == 2
    assert "has results of another checkpoint ('b.pth', not 'missing.pth')" in capsys.readouterr().err


def test_processes_add_to_one_table(tmp_path):
    """Many writers at once, each with a row of its own: none is lost."""
    code = (
        'import sys; from pathlib import Path; from volo_seg.inference.class_shares import ShareTable\n'
        'for i in range(20):\n    name = sys.argv[2] + str(i)\n'
        '    ShareTable(Path(sys.argv[1]), ("x",)).merge({name: (name, "", "1", "1", "1")})'
    )
    running = [subprocess.Popen([sys.executable, '-c', code, str(tmp_path), name]) for name in 'abc']
    assert [process.wait() for process in running] == [0, 0, 0]
    assert len(ShareTable(tmp_path, ('x',)).rows()) == 60
    assert [path.name for path in tmp_path.iterdir()] == ['shares.csv']


def test_a_part_is_added_to_after_an_interrupted_write(tmp_path):
    (tmp_path / '.shares.0.csv').write_text('a,,1,1,1.000000\nb,,1,1,0.')
    part = SharePart(tmp_path, rank=0, world_size=1)
    part.add(('c', '', '1', '1', '1.000000'))
    part.add(('b', '', '1', '1', '0.500000'))
    part.flush(table := ShareTable(tmp_path, ('x',)), order=['b', 'a', 'c'])
    assert [(name, row[-1]) for name, row in table.rows().items()] == [
        ('b', '0.500000'),
        ('a', '1.000000'),
        ('c', '1.000000'),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ['shares.csv']


def test_inputs_with_the_same_results_are_refused_before_the_work(networks, tmp_path, capsys):
    images = pictures(tmp_path / 'images', 'one.jpg', 'one.png', 'two.png')
    assert call('x.pth', images, '--out-dir', tmp_path / 'out') == 2
    err = capsys.readouterr().err
    assert f"inputs '{images}/one.jpg' and '{images}/one.png' would both write to 'one'" in err
    assert not networks and not (tmp_path / 'out').exists()


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_interruption_leaves_only_whole_files(tmp_path, number):
    images = pictures(tmp_path / 'images', *(f'{i:02d}.png' for i in range(40)), size=(300, 400))
    out = tmp_path / 'out'
    words = [str(word) for word in ('x.pth', images, '--out-dir', out, '--kinds', 'labels', 'geojson', 'shares')]
    environment = dict(os.environ, FAKE_DELAY='0.05')
    process = subprocess.Popen([sys.executable, FAKE, *words], env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(list(out.glob('labels/*.png'))) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert err.strip() == 'interrupted; all files are complete, and --resume continues'
    names = {path.stem for path in out.glob('labels/*')}
    assert 5 <= len(names) < 40
    assert {row['name'] for row in rows(out)} <= names
    assert all(cv2.imread(str(path), -1) is not None for path in out.glob('labels/*'))
    assert not list(out.rglob('.*')), 'a piece is left'
    done = subprocess.run([sys.executable, FAKE, *words, '--resume'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'were finished before' in done.stdout
    subprocess.run([sys.executable, FAKE, *words[:3], tmp_path / 'whole', *words[4:]], check=True, capture_output=True)
    assert content(out) == content(tmp_path / 'whole')


def test_full_disk_ends_the_run_with_one_sentence(networks, tmp_path, capsys):
    images = pictures(tmp_path / 'images', *(f'{i}.png' for i in range(30)))
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out/labels').touch()
    assert call('x.pth', images, '--out-dir', tmp_path / 'out') == 2
    err = capsys.readouterr().err
    assert err.count('\n') == 1 and 'cannot be written (' in err
    assert networks[0].seen < 30, 'it went on for nothing'
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith('volo-seg')]
    assert call('x.pth', images, '--out-dir', tmp_path / 'out/labels') == 2
    assert "labels' cannot be written (Not a directory); name another" in capsys.readouterr().err


def test_link_that_leads_out_ends_the_run(networks, tmp_path, capsys):
    images = pictures(tmp_path / 'images', 'a.png')
    (tmp_path / 'out').mkdir()
    (tmp_path / 'away').mkdir()
    (tmp_path / 'out/labels').symlink_to(tmp_path / 'away')
    assert call('x.pth', images, '--out-dir', tmp_path / 'out') == 2
    assert 'leads out of' in (err := capsys.readouterr().err) and err.count('\n') == 1
    assert not list((tmp_path / 'away').iterdir())


def test_processes_share_a_folder(tmp_path):
    """Two processes by RANK and WORLD_SIZE write together what one writes."""
    images = pictures(tmp_path / 'images', 'a.jpg', 'a/b.png', 'a2.png', 'b/c.png', 'd.png', 'e.png', 'f.png')
    (images / 'broken.png').write_bytes(b'x')
    film(images / 'clip.mp4')
    words = ('x.pth', images, '--kinds', 'labels', 'overlay', 'shares', '--out-dir')
    one = subprocess.run([sys.executable, FAKE, *words, tmp_path / 'one'], capture_output=True)
    running = [
        subprocess.Popen(
            [sys.executable, FAKE, *words, tmp_path / 'two'],
            env=dict(os.environ, RANK=str(rank), WORLD_SIZE='2'),
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    errors = [process.communicate()[1] for process in running]
    assert one.returncode == 1
    assert sorted(process.returncode for process in running) == [0, 1]
    assert b''.join(errors) == one.stderr
    expected = content(tmp_path / 'one')
    assert len(expected) == 2 * 7 + 1 + 6 + 1 + 1
    assert content(tmp_path / 'two') == expected


def test_torchrun_ends_with_one_report(tmp_path):
    """A process with a broken file waits for the other, which is slow, instead of having it killed."""
    images = pictures(tmp_path / 'images', *(f'{i}.png' for i in range(1, 8)))
    (images / '0.png').write_bytes(b'x')
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', FAKE]
    words = ['x.pth', images, '--kinds', 'labels', 'shares', '--out-dir', tmp_path / 'out']
    environment = dict(os.environ, FAKE_DELAY='0.3')
    done = subprocess.run([*command, *words], capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert '7 of 8 images segmented' in done.stdout
    assert len([line for line in done.stderr.splitlines() if line.startswith('error: ')]) == 1
    assert len(list((tmp_path / 'out/labels').iterdir())) == 7
    assert [row['name'] for row in rows(tmp_path / 'out')] == [str(i) for i in range(1, 8)]


def test_torchrun_processes_agree_that_results_exist(tmp_path):
    """Results of one process alone exist: all processes end at once, with one message."""
    images = pictures(tmp_path / 'images', *(f'{i}.png' for i in range(4)))
    words = ['x.pth', images / '1.png', '--out-dir', tmp_path / 'out']
    assert subprocess.run([sys.executable, FAKE, *words], capture_output=True).returncode == 0
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', FAKE]
    done = subprocess.run([*command, 'x.pth', images, '--out-dir', tmp_path / 'out'], capture_output=True, text=True)
    assert done.returncode == 1 and "1.png' exists already (1 such)" in done.stderr
    assert 'SIGKILL' not in done.stderr, 'one process waited for the other until it was killed'
    assert len(list((tmp_path / 'out/labels').iterdir())) == 1


def test_video(networks, tmp_path, capsys):
    clip = film(tmp_path / 'clip.mp4', frames=6)
    words = ('x.pth', clip, '--kinds', 'labels', 'overlay', 'shares', '--out-dir', tmp_path / 'out')
    assert call(*words) == 0
    assert '1 of 1 videos segmented' in capsys.readouterr().out
    frames = sorted(path.name for path in (tmp_path / 'out/labels/clip').iterdir())
    assert frames == [f'{i:06d}.png' for i in range(6)]
    assert [row['name'] for row in rows(tmp_path / 'out')] == [f'clip/{i:06d}' for i in range(6)]
    assert [float(row['dark']) for row in rows(tmp_path / 'out')] == [1, 1, 1, 0, 0, 0]
    overlay = cv2.VideoCapture(str(tmp_path / 'out/overlays/clip.mp4'))
    assert (overlay.get(cv2.CAP_PROP_FRAME_COUNT), overlay.get(cv2.CAP_PROP_FPS)) == (6, 10)
    assert overlay.read()[1].shape == (40, 60, 3)
    assert call(*words) == 2
    assert call(*words, '--resume') == 0
    assert len(networks) == 1
    (tmp_path / 'out/labels/clip/000003.png').unlink()
    assert call(*words, '--resume') == 0
    assert networks[-1].seen == 6, 'the overlay needs every frame'


def test_frames_of_a_video_are_resumed_one_by_one(networks, tmp_path):
    words = ('x.pth', film(tmp_path / 'clip.mp4'), '--kinds', 'labels', '--out-dir', tmp_path / 'out')
    assert call(*words) == 0
    (tmp_path / 'out/labels/clip/000003.png').unlink()
    assert call(*words, '--resume') == 0
    assert networks[-1].seen == 1
    assert len(list((tmp_path / 'out/labels/clip').iterdir())) == 6


def test_broken_videos_are_listed(networks, tmp_path, capsys, monkeypatch):
    folder = tmp_path / 'videos'
    folder.mkdir()
    film(folder / 'good.mp4')
    (folder / 'cut.mp4').write_bytes((folder / 'good.mp4').read_bytes()[:400])
    (folder / 'empty.mp4').touch()
    (folder / 'list.avi').write_text('#EXTM3U\n/etc/passwd\n')
    big = film(folder / 'large.mp4', size=(100, 100))
    assert big.is_file()
    monkeypatch.setenv('VOLO_SEG_MAX_PIXELS', '5000')
    assert call('x.pth', folder, '--out-dir', tmp_path / 'out') == 1
    out, err = capsys.readouterr()
    assert '1 of 5 videos segmented' in out
    for name, reason in (
        ('cut.mp4', 'is damaged, cut off, or has a codec'),
        ('empty.mp4', 'is empty (0 bytes)'),
        ('list.avi', 'is not an MP4, MOV'),
        ('large.mp4', 'has 100 x 100 pixels, more than the limit of 5000'),
    ):
        assert f"{name}' {reason}" in err
    assert [path.name for path in (tmp_path / 'out/overlays').iterdir()] == ['good.mp4']


def test_video_with_odd_sides_and_one_that_ends_early(networks, tmp_path, capsys, monkeypatch):
    from volo_seg.inference.batch.video import VideoReader, VideoWriter

    with VideoWriter(tmp_path, 'odd.mp4', rate=5) as writer:
        for _ in range(8):
            writer.write(np.zeros((33, 51, 3), np.uint8))
    assert [frame.shape for frame in VideoReader(tmp_path / 'odd.mp4')] == [(34, 52, 3)] * 8
    original = VideoReader.__init__

    def promise_more(self, path):
        original(self, path)
        self.frames = 20

    monkeypatch.setattr(VideoReader, '__init__', promise_more)
    assert call('x.pth', tmp_path / 'odd.mp4', '--out-dir', tmp_path / 'out') == 1
    assert "odd.mp4' is damaged after 8 of 20 frames" in capsys.readouterr().err
    assert len(list((tmp_path / 'out/labels/odd').iterdir())) == 8
    assert not list((tmp_path / 'out/overlays').iterdir()), 'an overlay is there whole or not at all'


def test_frame_that_cannot_be_segmented(networks, tmp_path, capsys, monkeypatch):
    segment = Brightness._segment

    def refuse(self, batch, **wanted):
        if self.seen == 2:
            raise UserError('too large')
        return segment(self, batch, **wanted)

    monkeypatch.setattr(Brightness, '_segment', refuse)
    assert call('x.pth', film(tmp_path / 'clip.mp4'), '--out-dir', tmp_path / 'out') == 1
    assert "too large (frame 2 of '" in capsys.readouterr().err
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith('volo-seg')]
    assert not list((tmp_path / 'out/overlays').iterdir())


def test_video_that_cannot_be_written(networks, tmp_path, capsys, monkeypatch):
    words = ('x.pth', film(tmp_path / 'clip.mp4'), '--kinds', 'overlay', '--out-dir')
    (tmp_path / 'file').mkdir()
    (tmp_path / 'file/overlays').touch()
    assert call(*words, tmp_path / 'file') == 2
    assert "overlays/clip.mp4' cannot be written (File exists)" in capsys.readouterr().err
    monkeypatch.setattr(video, 'count_frames', lambda path: 3)
    assert call(*words, tmp_path / 'full') == 2
    assert "clip.mp4' cannot be written (3 of 6 frames were written); free some space" in capsys.readouterr().err
    assert not list((tmp_path / 'full/overlays').iterdir())
    closed = SimpleNamespace(isOpened=lambda: False, release=lambda: None)
    monkeypatch.setattr(video.cv2, 'VideoWriter', Mock(return_value=closed))
    assert call(*words, tmp_path / 'none') == 2
    assert "clip.mp4' cannot be written (OpenCV opens no video of 60 x 40 pixels)" in capsys.readouterr().err


def test_list_names_a_video_that_is_gone(networks, tmp_path, capsys):
    (tmp_path / 'list.txt').write_text('gone.mp4\n')
    assert call('x.pth', tmp_path / 'list.txt', '--out-dir', tmp_path / 'out') == 1
    assert "video 'gone.mp4' cannot be read (No such file or directory)" in capsys.readouterr().err


def test_torch_is_not_needed(tmp_path):
    """With a predictor that does without, everything around it does too."""
    images = pictures(tmp_path / 'images', 'a.png')
    words = [str(FAKE), 'x.pth', str(images), '--kinds', *OUTPUT_FORMATS, '--out-dir', str(tmp_path / 'out')]
    code = (
        f'import sys, runpy; sys.modules["torch"] = None; sys.argv = {words}\n'
        'runpy.run_path(sys.argv[0], None, "__main__")'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, '')


def test_result_that_does_not_fit_is_listed(networks, tmp_path, capsys):
    images = pictures(tmp_path / 'images', 'wide.png', size=(1, 70_000))
    pictures(images, 'a.png')
    assert call('x.pth', images, '--out-dir', tmp_path / 'out') == 1
    out, err = capsys.readouterr()
    assert '1 of 2 images' in out and 'cannot hold 70000 x 1 pixels' in err


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (('x.pth',), "'x.pth' lacks an argument; give CHECKPOINT INPUT"),
        ((NANO, 'x.pth'), 'give CONFIG CHECKPOINT INPUT'),
        (('x.pth', 'none*.jpg'), "'none*.jpg' is not an image, a folder with images, or a glob"),
        (('x.pth', '.', '--opacity', '2'), '--opacity 2.0 is not in [0, 1]'),
        (('x.pth', '.', '--threads', '0'), '--threads 0 and --batch-size 1 must be 1 or more'),
        (('x.pth', '.', '--batch-size', '0'), '--batch-size'),
        (('x.pth', '.', '--resume', '--overwrite'), 'give one of the two'),
        (('x.pth', '.', '--kinds', 'gif'), "'gif' is not a kind of output"),
        (('x.pth', '.', '--cfg-options', 'a=1'), '--cfg-options overrides a config, and none is given'),
    ],
)
def test_mistakes_get_one_sentence(words, message, networks, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(*words, '--out-dir', tmp_path / 'out') == 2
    err = capsys.readouterr().err
    assert message in err and err.startswith('error: ') and err.count('\n') == 1
    assert not networks


def test_table_of_other_classes_is_said_before_the_work(networks, tmp_path, capsys):
    images = pictures(tmp_path / 'images', 'a.png')
    ShareTable(tmp_path, ('x', 'y')).merge({'old': ('old', '', '1', '1', '0', '1')})
    assert call('x.pth', images, '--kinds', 'shares', '--out-dir', tmp_path) == 2
    assert 'is a table of other classes' in capsys.readouterr().err
    assert networks[0].seen == 0
    assert [row['name'] for row in rows(tmp_path)] == ['old']


def test_reading_network_and_writing_overlap(networks, tmp_path, monkeypatch):
    """Each waits for the next image's step before it: one after the other, they would wait for ever."""
    images = pictures(tmp_path / 'images', *(f'{i}.png' for i in range(4)))
    reached = {what: threading.Event() for what in ('second is read', 'second is segmented')}
    patience = 20
    read, segment, save = Brightness._read, Brightness._segment, Result.save

    def slow_read(self, source):
        if Path(source).stem == '1':
            reached['second is read'].set()
        return read(self, source)

    def slow_segment(self, batch, **wanted):
        assert reached['second is read'].wait(patience), 'the next image is not read while the network works'
        if self.seen == 1:
            reached['second is segmented'].set()
        return segment(self, batch, **wanted)

    def slow_save(*args, **options):
        assert reached['second is segmented'].wait(patience), 'the network waits for the writing'
        return save(*args, **options)

    monkeypatch.setattr(Brightness, '_read', slow_read)
    monkeypatch.setattr(Brightness, '_segment', slow_segment)
    monkeypatch.setattr(Result, 'save', slow_save)
    assert call('x.pth', images, '--out-dir', tmp_path / 'out') == 0


def test_network_does_not_run_away_from_the_writing(networks, tmp_path, monkeypatch):
    """While nothing can be written, only a few results wait in memory."""
    images = pictures(tmp_path / 'images', *(f'{i}.png' for i in range(30)))
    open_up = threading.Event()
    seen = []

    def stuck(*args, **options):
        assert open_up.wait(120)

    def look():
        deadline = time.monotonic() + 60
        while not (networks and networks[0].seen) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.5)
        seen.append(networks[0].seen)
        open_up.set()

    monkeypatch.setattr(Result, 'save', stuck)
    threading.Thread(target=look).start()
    assert call('x.pth', images, '--out-dir', tmp_path / 'out', '--threads', '2') == 0
    assert 1 <= seen[0] <= 4
    assert networks[0].seen == 30


def test_rank_that_does_not_fit(networks, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('RANK', '2')
    monkeypatch.setenv('WORLD_SIZE', '2')
    assert call('x.pth', pictures(tmp_path / 'i', 'a.png'), '--out-dir', tmp_path / 'out') == 2
    assert 'RANK=2 and WORLD_SIZE=2 in the environment do not fit' in capsys.readouterr().err


def test_progress_in_a_pipe_is_plain_lines(capsys):
    now = [0.0]
    with Progress(40, every=10, clock=lambda: now[0]) as progress:
        for _ in range(40):
            now[0] += 1.0
            progress.advance()
    assert capsys.readouterr().err.splitlines() == [
        '10/40 images, 1.0 images/s, 30 s left',
        '20/40 images, 1.0 images/s, 20 s left',
        '30/40 images, 1.0 images/s, 10 s left',
        '40/40 images, 1.0 images/s, 0 s left',
    ]
    with Progress(1, every=0, shown=False) as progress:
        progress.advance()
    assert capsys.readouterr().err == ''


def test_progress_in_a_terminal_is_a_bar(tmp_path):
    """In a pseudo terminal the rate and the time left stand beside a bar."""
    import pty

    code = (
        'import time; from volo_seg.progress import Progress\n'
        'with Progress(3) as progress:\n    for _ in range(3): time.sleep(0.2); progress.advance()\n'
    )
    master, slave = pty.openpty()
    environment = dict(os.environ, TERM='xterm', COLUMNS='100')
    process = subprocess.Popen([sys.executable, '-c', code], stderr=slave, env=environment)
    os.close(slave)
    shown = b''
    while True:
        try:
            piece = os.read(master, 4096)
        except OSError:
            break
        if not piece:
            break
        shown += piece
    os.close(master)
    assert process.wait() == 0
    text = shown.decode()
    assert '3/3' in text and 'images/s' in text and 'left' in text and '━' in text


def test_config_is_optional_and_comes_first():
    split = infer.split_words
    assert split(['a.pth', 'b', 'c']) == (None, 'a.pth', ['b', 'c'])
    assert split([NANO, 'a.pth', 'b']) == (NANO, 'a.pth', ['b'])
    assert split(['c.py', 'run/last', 'b']) == ('c.py', 'run/last', ['b'])
    assert split(['model.onnx', 'b']) == (None, 'model.onnx', ['b'])
    assert split(['volo-nono', 'a.pth', 'b']) == ('volo-nono', 'a.pth', ['b'])
    assert split(['volo-nano_toyscapes', 'b']) == (None, 'volo-nano_toyscapes', ['b'])
    assert split(['b.jpg', '*.png', 'photos']) == (None, None, ['b.jpg', '*.png', 'photos'])


def test_real_network(tmp_path, capsys):
    """Config and checkpoint of the smallest network; two runs write the same bytes."""
    import torch
    from mmengine.registry import init_default_scope
    from mmseg.registry import MODELS

    import volo_seg.models  # noqa: F401
    from volo_seg.config.load import load_config

    init_default_scope('mmseg')
    config = load_config(NANO)
    checkpoint = tmp_path / 'x.pth'
    torch.save({'state_dict': MODELS.build({**config.model, 'init_cfg': None}).state_dict()}, checkpoint)
    images = pictures(tmp_path / 'images', 'a/grey.png', 'b.jpg', size=(40, 70))
    options = ('--cfg-options', 'test_dataloader.dataset.pipeline.1.scale=(128,64)')
    for name in ('one', 'two'):
        words = (NANO, checkpoint, images, '--kinds', *OUTPUT_FORMATS, '--out-dir', tmp_path / name, *options)
        assert call(*words) == 0, capsys.readouterr().err
    one = content(tmp_path / 'one')
    single = sum(not kind.suffix and name != 'parquet' for name, kind in OUTPUT_FORMATS.items())
    assert len(one) == 2 * (len(OUTPUT_FORMATS) - single) + single + len(('infer.json', 'labelme/labels.txt'))
    assert one == content(tmp_path / 'two')
    labels = cv2.imread(str(tmp_path / 'one/labels/a/grey.png'), -1)
    assert labels.shape == (40, 70) and labels.max() < 19
    with np.load(tmp_path / 'one/probabilities/a/grey.npz') as file:
        assert np.abs(file['probabilities'].sum(0) - 1).max() < 0.01
        top = np.take_along_axis(file['probabilities'], labels[None].astype(int), 0)[0]
        assert (file['probabilities'].max(0) - top).max() < 2e-3
    assert CLASSES[0] not in {row['name'] for row in rows(tmp_path / 'one')}

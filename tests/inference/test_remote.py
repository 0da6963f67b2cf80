"""``volo-seg infer`` with inputs and results behind URLs: equal to local ones, --resume, and every mistake."""

import io
import os
import shutil
import sys

import cv2
import fsspec
import numpy as np
import pyarrow.parquet as pq
import pycocotools
import pytest
from fake_infer import CLASSES, Brightness
from images import film, pictures
from pycocotools.mask import decode

from volo_seg.commands import infer, run
from volo_seg.errors import UserError
from volo_seg.inference import parquet
from volo_seg.inference.batch.sources import find_tasks
from volo_seg.inference.remote import locate, read_url, target_file, write_file
from volo_seg.io import WriteError

KINDS = ('labels', 'overlay', 'geojson', 'labelme', 'probabilities')


@pytest.fixture
def memory():
    """The file system of fsspec in memory, empty."""
    system = fsspec.filesystem('memory')
    system.store.clear()
    yield system
    system.store.clear()


@pytest.fixture
def networks(monkeypatch):
    """The network of the command is replaced; the list holds one for each time it was opened."""
    opened = []

    def load_model(*args):
        opened.append(Brightness())
        return opened[-1]

    monkeypatch.setattr(infer, 'load_model', load_model)
    return opened


@pytest.fixture
def images(tmp_path):
    folder = pictures(tmp_path / 'images', 'one.jpg', 'a/two #é%20.png', 'a/b/three.PNG')
    (folder / 'cut.png').write_bytes((folder / 'a/two #é%20.png').read_bytes()[:-40])
    return folder


@pytest.fixture
def bucket(memory, images):
    """The URL of a copy of ``images``, with files that are no images."""
    for path in filter(os.path.isfile, images.rglob('*')):
        memory.pipe(f'/bucket/images/{path.relative_to(images)}', path.read_bytes())
    memory.pipe('/bucket/images/notes.txt', b'x')
    memory.pipe('/bucket/images/.hidden/four.png', b'x')
    return 'memory://bucket/images'


def call(*words):
    return run('infer', [str(word) for word in words])


def local(folder):
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob('*') if p.is_file()}
    return {name: content for name, content in files.items() if name != 'infer.json'}


def remote(system, folder):
    files = {name.removeprefix(folder): system.cat(name) for name in system.find(folder)}
    return {name: content for name, content in files.items() if name != 'infer.json'}


def test_results_equal_local_ones(networks, memory, images, bucket, tmp_path, capsys):
    assert call('x.pth', images, '--out-dir', tmp_path / 'out', '--kinds', *KINDS) == 1
    expected = local(tmp_path / 'out')
    assert len(expected) == 3 * len(KINDS) + 1  # labelme/labels.txt
    capsys.readouterr()
    assert call('x.pth', bucket, '--out-dir', 'memory://bucket/out/', '--kinds', *KINDS) == 1
    out, err = capsys.readouterr()
    assert '3 of 4 images segmented into memory://bucket/out' in out
    assert err.startswith("error: image 'memory://bucket/images/cut.png' ")
    found = remote(memory, '/bucket/out/')
    for name in [name for name in found if name.startswith('labelme/') and name.endswith('.json')]:
        assert b'"imagePath":"memory://bucket/images/' in found.pop(name)
        expected.pop(name)
    assert found == expected
    # a local folder by its URL, and results beside the images
    assert call('x.pth', images.as_uri(), '--out-dir', (tmp_path / 'by url').as_uri(), '--kinds', 'labels') == 1
    assert local(tmp_path / 'by url') == {n: c for n, c in expected.items() if n.startswith('labels/')}
    assert call('x.pth', bucket, '--out-dir', bucket, '--kinds', 'labels') == 1
    assert len(find_tasks([bucket], out_dir=bucket)) == 4


def test_resume_and_overwrite(networks, memory, images, bucket, tmp_path, capsys):
    words = ('x.pth', bucket, '--out-dir', 'memory://bucket/out', '--kinds', 'labels')
    assert call(*words) == 1
    before = remote(memory, '/bucket/out/')
    assert call(*words) == 2
    assert "'memory://bucket/out/labels/a/b/three.png' exists already (3 such)" in capsys.readouterr().err
    memory.rm('/bucket/out/labels/one.png')
    assert call(*words, '--resume') == 1
    assert networks[-1].seen == 1 and remote(memory, '/bucket/out/') == before
    # results of another model are not finished ones
    (tmp_path / 'y.pth').write_bytes(b'other')
    other = (tmp_path / 'y.pth', *words[1:])
    assert call(*other, '--resume') == 2
    assert "'memory://bucket/out' has results of another checkpoint" in capsys.readouterr().err
    memory.pipe('/bucket/images/cut.png', (images / 'one.jpg').read_bytes())
    assert call(*other, '--overwrite') == 0
    assert call(*other, '--resume') == 0 and networks[-1].seen == 4
    memory.pipe('/bucket/out/infer.json', b'{')
    assert call(*other, '--resume') == 2
    assert "'memory://bucket/out/infer.json' is not a record" in capsys.readouterr().err


def test_inputs(memory, bucket, tmp_path):
    def names(*inputs):
        return {str(task.source).removeprefix(bucket): task.name for task in find_tasks(inputs)}

    folder = {'/a/b/three.PNG': 'a/b/three', '/a/two #é%20.png': 'a/two #é%20', '/cut.png': 'cut', '/one.jpg': 'one'}
    assert names(bucket) == names(f'{bucket}/') == folder
    assert names(f'{bucket}/one.jpg') == {'/one.jpg': 'one'}
    assert names(f'{bucket}/notes.txt') == {'/notes.txt': 'notes'}
    assert names(f'{bucket}/*/*.png') == {'/a/two #é%20.png': 'a/two #é%20'}
    (tmp_path / 'list.txt').write_text(f'{bucket}/one.jpg\n# no\n{bucket}/a/two #é%20.png\n', encoding='utf-8')
    assert names(str(tmp_path / 'list.txt')) == {'/one.jpg': 'images/one', '/a/two #é%20.png': 'images/a/two #é%20'}
    assert Brightness()(f'{bucket}/one.jpg').name == 'one'


def test_mistakes(networks, memory, images, bucket, tmp_path, monkeypatch, capsys):
    def refused(*words):
        assert call('x.pth', *words) == 2
        error = capsys.readouterr().err
        assert error.count('\n') == 1 and 'Traceback' not in error
        return error

    assert "'ftp://host/x' is not a URL that can be opened; give s3://" in refused('ftp://host/x')
    assert "'file://host/x' is not" in refused('file://host/x')
    assert "'s3://' is not a URL" in refused(images, '--out-dir', 's3://')
    assert "input 'memory://bucket/none' is not an image, a folder" in refused('memory://bucket/none')
    assert "--kinds shares is one file for all images, and 'memory://bucket/o'" in refused(
        images, '--out-dir', 'memory://bucket/o', '--kinds', 'labels', 'shares'
    )
    film(images / 'film.mp4')
    assert "film.mp4' is a video, and 'memory://bucket/o' is no local folder" in refused(
        images, '--out-dir', 'memory://bucket/o'
    )
    memory.pipe('/bucket/film.mp4', b'x')
    assert "'memory://bucket/film.mp4' is a video, and only local" in refused('memory://bucket/film.mp4')
    assert not networks and not memory.exists('/bucket/o')
    with pytest.raises(WriteError, match=r"'../x' cannot be written \(it leads out of 'memory://bucket/o'\)"):
        target_file('memory://bucket/o', '../x')
    with pytest.raises(UserError, match='does not exist'):
        read_url(f'{bucket}/none.png')
    with pytest.raises(UserError, match="'file://host"):
        locate('file://host/x')
    monkeypatch.setitem(sys.modules, 's3fs', None)
    assert "'s3://bucket/images' needs the package s3fs; pip install 'volo-seg[remote]'" in refused(
        's3://bucket/images'
    )
    # a full disk of the store
    monkeypatch.setattr(type(memory), 'pipe_file', lambda *args, **kwargs: (_ for _ in ()).throw(OSError('no space')))
    with pytest.raises(WriteError, match=r"'memory://bucket/o' cannot be written \(no space\)"):
        write_file('memory://bucket/o', b'x')


def table(system, folder):
    """The rows of a table of Parquet, by name; each name is in one row."""
    parts = [path for path in system.find(folder) if path.endswith('.parquet')]
    rows = [row for part in parts for row in pq.read_table(io.BytesIO(system.cat(part))).to_pylist()]
    assert len({row['name'] for row in rows}) == len(rows)
    return {row['name']: row for row in rows}


def test_parquet(networks, memory, images, bucket, tmp_path, capsys):
    words = ('x.pth', bucket, '--out-dir', 'memory://bucket/out', '--outputs', 'labels', 'parquet')
    assert call(*words) == 1
    rows = table(memory, '/bucket/out')
    assert set(rows) == {'one', 'a/two #é%20', 'a/b/three', 'cut'}
    damaged = rows.pop('cut')
    assert damaged['error'].startswith("image 'memory://bucket/images/cut.png' ") and damaged['width'] is None
    for name, row in rows.items():
        labels = cv2.imdecode(np.frombuffer(memory.cat(f'/bucket/out/labels/{name}.png'), np.uint8), -1)
        assert (row['height'], row['width']) == labels.shape and row['error'] is None and len(row['model']) == 16
        assert row['path'].removeprefix(bucket).startswith(f'/{name}.')
        shares, masks = dict(row['shares']), dict(row['masks'])
        assert set(shares) == set(masks) == {CLASSES[index] for index in np.unique(labels)}
        for label, counts in masks.items():
            mask = decode({'size': labels.shape, 'counts': counts})
            np.testing.assert_array_equal(mask, labels == CLASSES.index(label))
            assert shares[label] == mask.mean()
    # a local folder gets equal rows, but for the path
    assert call('x.pth', images, '--out-dir', tmp_path / 'out', '--kinds', 'parquet') == 1
    local_rows = table(fsspec.filesystem('file'), str(tmp_path / 'out'))
    assert local_rows['one']['path'] == str(images / 'one.jpg')
    assert {n: {**row, 'path': ''} for n, row in local_rows.items() if n in rows} == {
        n: {**row, 'path': ''} for n, row in rows.items()
    }
    # only the damaged image is tried again, and its row replaced
    assert call(*words) == 2 and "'memory://bucket/out/parquet' exists already (3 such)" in capsys.readouterr().err
    memory.pipe('/bucket/images/cut.png', (images / 'one.jpg').read_bytes())
    assert call(*words, '--resume') == 0 and networks[-1].seen == 1
    again = table(memory, '/bucket/out')
    assert again.pop('cut')['error'] is None and again == rows
    # another model replaces the rows of one image
    (tmp_path / 'y.pth').write_bytes(b'other')
    assert call(tmp_path / 'y.pth', f'{bucket}/one.jpg', *words[2:], '--overwrite') == 0
    again = table(memory, '/bucket/out')
    assert again['one']['model'] != rows['one']['model'] and again['a/b/three'] == rows['a/b/three'] and len(again) == 4
    assert call(tmp_path / 'y.pth', *words[1:], '--resume') == 0 and networks[-1].seen == 3
    assert len({row['model'] for row in table(memory, '/bucket/out').values()}) == 1


def test_parquet_parts(networks, images, tmp_path, monkeypatch, capsys):
    """Complete parts are written at once; a damaged one and missing packages are named."""
    for index in range(7):
        shutil.copy(images / 'one.jpg', images / f'{index}.jpg')
    monkeypatch.setattr(parquet, 'PART_ROWS', 3)
    words = ('x.pth', images, '--out-dir', tmp_path / 'out', '--kinds', 'parquet')
    assert call(*words) == 1
    assert len(list((tmp_path / 'out/parquet').glob('part-*.parquet'))) == 4
    assert len(table(fsspec.filesystem('file'), str(tmp_path / 'out'))) == 11
    film(images / 'film.mp4')
    assert call(*words, '--resume') == 1
    assert len(table(fsspec.filesystem('file'), str(tmp_path / 'out'))) == 17
    assert call(*words, '--overwrite') == 1
    assert len(table(fsspec.filesystem('file'), str(tmp_path / 'out'))) == 17
    Brightness()(images / 'one.jpg').save(tmp_path / 'out', ['parquet'])
    assert table(fsspec.filesystem('file'), str(tmp_path / 'out'))['one']['model'] == ''
    (tmp_path / 'out/parquet/part-0.parquet').write_bytes(b'damaged')
    capsys.readouterr()
    assert call(*words, '--resume') == 2
    assert "out/parquet' is not a table of volo-seg infer (" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, 'pycocotools', None)
    assert call(*words, '--resume') == 2
    assert "--kinds parquet needs the package pycocotools: pip install 'volo-seg[import]'" in capsys.readouterr().err
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.setitem(sys.modules, 'pycocotools', pycocotools)
    assert call(*words, '--resume') == 2 and 'written by one process' in capsys.readouterr().err

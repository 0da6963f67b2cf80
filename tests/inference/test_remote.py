"""``volo-seg infer`` with inputs and results behind URLs: equal to local ones, --resume, and every mistake."""

import os
import sys

import fsspec
import pytest
from fake_infer import Brightness
from images import film, pictures

from volo_seg.commands import infer, run
from volo_seg.errors import UserError
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

"""Files are written whole or not at all, and nowhere but where we were asked to."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volo_seg.errors import UserError
from volo_seg.imageio import write_image
from volo_seg.inference.files import inside
from volo_seg.io import alone, write_whole


def test_names_inside(tmp_path):
    assert inside(tmp_path, 'a.png') == tmp_path / 'a.png'
    assert inside(str(tmp_path), 'a/b/../c.png') == tmp_path / 'a' / 'c.png'
    assert inside(tmp_path / 'not there yet', 'a') == tmp_path / 'not there yet' / 'a'


@pytest.mark.parametrize('name', ['', '.', '..', '../x', 'a/../../x', '/etc/passwd', 'a/..', 'x\0y', '../out2/x'])
def test_names_that_lead_out(name, tmp_path):
    with pytest.raises(UserError, match=r'^name .*(leads out of|is empty or absolute)'):
        inside(tmp_path / 'out', name)


def test_links_that_lead_out(tmp_path):
    out, elsewhere = tmp_path / 'out', tmp_path / 'elsewhere'
    out.mkdir()
    elsewhere.mkdir()
    (out / 'folder').symlink_to(elsewhere)
    (out / 'file.png').symlink_to(elsewhere / 'file.png')
    (out / 'relative').symlink_to('../elsewhere')
    (out / 'circle').symlink_to(out / 'circle')
    for name in ('folder/x.png', 'file.png', 'relative/x.png', 'folder'):
        with pytest.raises(UserError, match='leads out of .*elsewhere'):
            inside(out, name)
    with pytest.raises(UserError, match='name'):
        inside(out, 'circle/x')
    (out / 'own').symlink_to(out / 'real')
    assert inside(out, 'own/x.png') == out / 'real' / 'x.png'
    (tmp_path / 'link').symlink_to(out)
    assert inside(tmp_path / 'link', 'x.png') == out / 'x.png'


@settings(max_examples=200, deadline=None, database=None)
@given(st.lists(st.sampled_from(['..', '.', 'a', 'link', 'deep', 'b c', '']), min_size=1, max_size=6))
def test_no_name_leads_out(tmp_path_factory, parts):
    root = tmp_path_factory.getbasetemp() / 'names'
    (root / 'out' / 'a').mkdir(parents=True, exist_ok=True)
    if not (root / 'out' / 'link').is_symlink():
        (root / 'out' / 'link').symlink_to('a')
        (root / 'out' / 'a' / 'deep').symlink_to('../..')
    try:
        path = inside(root / 'out', '/'.join(parts))
    except UserError:
        return
    assert os.path.realpath(path).startswith(os.path.realpath(root / 'out') + os.sep)


def test_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / 'new' / 'x.bin'
    write_whole(path, b'first')

    def full_disk(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'replace', full_disk)
    with pytest.raises(UserError, match=r'x.bin. cannot be written \(No space left on device\); name another place'):
        write_whole(path, b'second')
    assert [p.name for p in path.parent.iterdir()] == ['x.bin']
    assert path.read_bytes() == b'first'


def test_a_file_in_the_way_of_a_folder(tmp_path):
    (tmp_path / 'a').touch()
    with pytest.raises(UserError, match='cannot be written'):
        write_whole(tmp_path / 'a' / 'x', b'')
    (tmp_path / 'folder').mkdir()
    with pytest.raises(UserError, match='cannot be written'):
        write_whole(tmp_path / 'folder', b'')
    assert {p.name for p in tmp_path.iterdir()} == {'a', 'folder'}


def test_long_names(tmp_path):
    write_whole(tmp_path / ('x' * 250), b'1')
    write_whole(tmp_path / ('ü' * 120), b'1')
    assert len(list(tmp_path.iterdir())) == 2


def test_images(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    write_image(tmp_path / 'a' / 'x.png', image)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / 'a' / 'x.png')), image)
    with pytest.raises(UserError, match='cannot be encoded'):
        write_image(tmp_path / 'x.unknown', image)
    with pytest.raises(UserError, match='x.jpg'):
        write_image(tmp_path / 'x.jpg', np.zeros((1, 70000), np.uint8))
    assert [p.name for p in tmp_path.iterdir()] == ['a']


def test_one_at_a_time_holds_a_lock(tmp_path):
    """Also those who waited for a file that its holder has removed meanwhile."""
    lock, inside_now, most = tmp_path / 'sub' / '.lock', [], []

    def enter(number):
        for _ in range(20):
            with alone(lock):
                inside_now.append(number)
                most.append(len(inside_now))
                time.sleep(0.001)
                inside_now.remove(number)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(enter, range(4)))
    assert max(most) == 1 and len(most) == 80
    assert not lock.exists()

"""Files are written whole or not at all, and nowhere but where we were asked to."""

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volo_seg.errors import UserError
from volo_seg.imageio import write_image
from volo_seg.io import (
    FOLDER_LOCK,
    atomic_path,
    atomic_write,
    check_writable,
    file_lock,
    folder_lock,
    read_regular,
    safe_join,
)


def test_names_inside(tmp_path):
    assert safe_join(tmp_path, 'a.png') == tmp_path / 'a.png'
    assert safe_join(str(tmp_path), 'a/b/../c.png') == tmp_path / 'a' / 'c.png'
    assert safe_join(tmp_path / 'not there yet', 'a') == tmp_path / 'not there yet' / 'a'


@pytest.mark.parametrize('name', ['', '.', '..', '../x', 'a/../../x', '/etc/passwd', 'a/..', 'x\0y', '../out2/x'])
def test_names_that_lead_out(name, tmp_path):
    with pytest.raises(UserError, match=r'(leads out of|is empty or absolute)'):
        safe_join(tmp_path / 'out', name)


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
            safe_join(out, name)
    with pytest.raises(UserError, match='cannot be written .*give a relative path that stays in'):
        safe_join(out, 'circle/x')
    (out / 'own').symlink_to(out / 'real')
    assert safe_join(out, 'own/x.png') == out / 'real' / 'x.png'
    (tmp_path / 'link').symlink_to(out)
    assert safe_join(tmp_path / 'link', 'x.png') == out / 'x.png'


@settings(max_examples=200, deadline=None, database=None)
@given(st.lists(st.sampled_from(['..', '.', 'a', 'link', 'deep', 'b c', '']), min_size=1, max_size=6))
def test_no_name_leads_out(tmp_path_factory, parts):
    root = tmp_path_factory.getbasetemp() / 'names'
    (root / 'out' / 'a').mkdir(parents=True, exist_ok=True)
    if not (root / 'out' / 'link').is_symlink():
        (root / 'out' / 'link').symlink_to('a')
        (root / 'out' / 'a' / 'deep').symlink_to('../..')
    try:
        path = safe_join(root / 'out', '/'.join(parts))
    except UserError:
        return
    assert os.path.realpath(path).startswith(os.path.realpath(root / 'out') + os.sep)


def test_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / 'new' / 'x.bin'
    atomic_write(path, b'first')

    def full_disk(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'replace', full_disk)
    with pytest.raises(UserError, match=r'x.bin. cannot be written \(No space left on device\); free some space or'):
        atomic_write(path, b'second')
    assert [p.name for p in path.parent.iterdir()] == ['x.bin']
    assert path.read_bytes() == b'first'


def test_a_file_in_the_way_of_a_folder(tmp_path):
    (tmp_path / 'a').touch()
    with pytest.raises(UserError, match='cannot be written'):
        atomic_write(tmp_path / 'a' / 'x', b'')
    (tmp_path / 'folder').mkdir()
    with pytest.raises(UserError, match='cannot be written'):
        atomic_write(tmp_path / 'folder', b'')
    assert {p.name for p in tmp_path.iterdir()} == {'a', 'folder'}


def test_long_names(tmp_path):
    atomic_write(tmp_path / ('x' * 250), b'1')
    atomic_write(tmp_path / ('ü' * 120), b'1')
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
            with file_lock(lock):
                inside_now.append(number)
                most.append(len(inside_now))
                time.sleep(0.001)
                inside_now.remove(number)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(enter, range(4)))
    assert max(most) == 1 and len(most) == 80
    assert not lock.exists()


def test_writers_of_one_file_do_not_mix(tmp_path):
    path = tmp_path / 'x.bin'
    contents = [bytes([number]) * 200_000 for number in range(4)]
    atomic_write(path, contents[0])

    def write(content):
        for _ in range(20):
            with atomic_path(path) as part, part.open('wb') as file:
                for place in range(0, len(content), 50_000):
                    file.write(content[place : place + 50_000])
                    file.flush()

    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(write, content) for content in contents]
        while not all(writer.done() for writer in writers):
            assert path.read_bytes() in contents
    assert [writer.result() for writer in writers] == [None] * 4
    assert os.listdir(tmp_path) == ['x.bin']


def test_a_folder_appears_when_it_is_complete(tmp_path):
    with pytest.raises(UserError, match='No space left on device'), atomic_path(tmp_path / 'model') as part:
        part.mkdir()
        (part / 'weights').touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert os.listdir(tmp_path) == []
    with atomic_path(tmp_path / 'model') as part:
        part.mkdir()
        (part / 'weights').touch()
        assert not (tmp_path / 'model').exists()
    assert os.listdir(tmp_path) == ['model'] and os.listdir(tmp_path / 'model') == ['weights']


def test_a_destination_is_tried_without_being_made(tmp_path):
    check_writable(tmp_path / 'a' / 'b')
    assert os.listdir(tmp_path) == []
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match=r"folder '.*/file/a/b' cannot be written \(Not a directory\); give another"):
        check_writable(tmp_path / 'file' / 'a' / 'b', what='folder', fix='give another')
    with pytest.raises(UserError, match=r"'/proc/a' cannot be written"):
        check_writable('/proc/a')


def test_only_regular_files_are_read(tmp_path):
    (tmp_path / 'file').write_bytes(b'1')
    (tmp_path / 'link').symlink_to('file')
    assert read_regular(tmp_path / 'link') == b'1'
    os.mkfifo(tmp_path / 'fifo')
    (tmp_path / 'zero').symlink_to('/dev/zero')
    for name, reason in (('fifo', 'pipe'), ('zero', 'device'), ('', 'folder'), ('none', 'No such file')):
        with pytest.raises(OSError, match=reason):
            read_regular(tmp_path / name)


HOLDER = """
import os, sys, time
from volo_seg.io import folder_lock
with folder_lock(sys.argv[1], what='work dir', fix='go elsewhere'):
    forked = os.pipe()
    if not os.fork():  # as a data-loading process, which notices only after seconds that its parent is gone
        os.write(forked[1], b'.')
        time.sleep(60)
    os.read(forked[0], 1)
    print('held', flush=True)
    time.sleep(60)
"""


def test_a_folder_has_one_process_until_that_ends_or_dies(tmp_path):
    folder, lock = tmp_path / 'work', tmp_path / 'work' / FOLDER_LOCK
    holder = subprocess.Popen([sys.executable, '-c', HOLDER, folder], stdout=subprocess.PIPE, process_group=0)
    try:
        assert holder.stdout.readline() == b'held\n'
        with pytest.raises(UserError) as caught, enter(folder):
            pass
        assert re.fullmatch(
            f"work dir '{folder}' is in use by process {holder.pid} on {socket.gethostname()} since [-0-9]+ [:0-9]+; "
            f"wait for its end or go elsewhere; if that process is gone, delete '{lock}'",
            str(caught.value),
        )
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        with enter(folder), enter(folder):
            assert json.loads(lock.read_text())['pid'] == os.getpid()
        assert not lock.exists()
    finally:
        os.killpg(holder.pid, signal.SIGKILL)


def enter(folder):
    return folder_lock(folder, what='work dir', fix='go elsewhere')


@pytest.mark.parametrize(
    'content, locks, refused',
    [
        ({'pid': 1, 'host': 'far', 'boot': 'other', 'since': 'today'}, True, True),  # of a shared file system
        ({'pid': 1, 'host': socket.gethostname(), 'boot': 'other'}, True, False),  # before this machine was started
        ({'pid': os.getppid(), 'host': socket.gethostname()}, False, True),  # where nothing can be locked
        ({'pid': 2**22 + 1, 'host': socket.gethostname()}, False, False),
        ({'host': 'far'}, True, False),
        ([], True, False),
    ],
)
def test_a_lock_file_that_was_left(content, locks, refused, tmp_path, monkeypatch):
    def refuse(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    if not locks:
        monkeypatch.setattr('fcntl.flock', refuse)
    lock = tmp_path / FOLDER_LOCK
    lock.write_text(json.dumps(content))
    if not refused:
        with enter(tmp_path):
            pass
        assert not lock.exists()
        return
    for _ in range(2):
        told = f'process {content["pid"]} on {content["host"]} since.* delete '
        with pytest.raises(UserError, match=told), enter(tmp_path):
            pass
    assert json.loads(lock.read_text()) == content

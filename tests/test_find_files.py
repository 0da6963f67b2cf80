"""The search for files below a folder: links, circles, hidden files, and names that are not UTF-8."""

import os
from pathlib import Path

import pytest

from volo_seg.commands import run
from volo_seg.errors import UserError
from volo_seg.io import find_files


def test_links_to_folders_are_followed_and_circles_end(tmp_path):
    for name in ('real/a.png', 'real/deep/b.PNG', 'real/.hidden/c.png', 'real/.d.png', 'real/e.txt', 'tree/x/f.png'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / 'tree/one').symlink_to('../real')
    (tmp_path / 'tree/two').symlink_to(tmp_path / 'real')
    (tmp_path / 'real/deep/up').symlink_to('..')
    (tmp_path / 'tree/self').symlink_to('self')
    (tmp_path / 'tree/gone.png').symlink_to('nothing')
    found = [path.relative_to(tmp_path).as_posix() for path in find_files(tmp_path / 'tree', suffixes=['.png'])]
    wanted = ['gone.png', 'one/a.png', 'one/deep/b.PNG', 'two/a.png', 'two/deep/b.PNG', 'x/f.png']
    assert found == [f'tree/{name}' for name in wanted]
    exact = find_files(tmp_path / 'tree', suffixes=['.png'], any_case=False, skip=[tmp_path / 'real'])
    assert [path.name for path in exact] == ['gone.png', 'f.png']
    assert find_files(tmp_path / 'none', suffixes=['.png']) == []


def test_names_that_are_not_utf8_are_refused_in_one_sentence(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b'/f\xf6rst.png'))
    path.touch()
    with pytest.raises(UserError, match=r'f\\xf6rst\.png.* is not UTF-8 text; rename the file or folder'):
        find_files(tmp_path, suffixes=['.png'])
    assert find_files(tmp_path, suffixes=['.jpg']) == []
    (tmp_path / 'förest.png').touch()
    path.unlink()
    assert [found.name for found in find_files(tmp_path, suffixes=['.png'])] == ['förest.png']


@pytest.mark.parametrize('name', ['check', 'infer', 'eval', 'train', 'report'])
def test_arguments_that_are_not_utf8_are_refused_by_every_command(name, capsys):
    assert run(name, [os.fsdecode(b'f\xf6rst'), 'b', 'c']) == 2
    assert capsys.readouterr().err == ("error: the path b'f\\xf6rst' is not UTF-8 text; rename the file or folder\n")

"""Which files are meant, and what their results are called."""

import os
from pathlib import Path, PurePath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volo_seg.errors import UserError
from volo_seg.inference.batch.sources import Found, distinct_names, find_tasks
from volo_seg.inference.output_formats import KINDS


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(*names):
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def names(*inputs, **options):
    return {task.source.as_posix(): task.name for task in find_tasks(inputs, **options)}


def test_folder_keeps_names_and_subfolders(here):
    make('p/one.jpg', 'p/a/b/two.PNG', 'p/clip.mp4', 'p/notes.txt', 'p/.hidden.jpg', 'p/.cache/x.jpg')
    assert names('p') == {'p/one.jpg': 'one', 'p/a/b/two.PNG': 'a/b/two', 'p/clip.mp4': 'clip'}


def test_equal_names_become_longer(here):
    make('p/one.jpg', 'p/one.png', 'p/two.jpg', 'q/two.jpg', 'q/three.jpg')
    assert names('p', 'q') == {
        'p/one.jpg': 'one.jpg',
        'p/one.png': 'one.png',
        'p/two.jpg': 'p/two.jpg',
        'q/two.jpg': 'q/two.jpg',
        'q/three.jpg': 'three',
    }


def test_names_do_not_depend_on_the_order(here):
    make('p/one.jpg', 'p/one.png', 'q/one.jpg', 'q/One.jpg', 'r/p/one.jpg')
    assert names('p', 'q', 'r/p') == names('r/p', 'q', 'p')


def test_case_and_accents_alone_do_not_tell_names_apart(here):
    make('p/A.jpg', 'p/a.jpg', 'p/caf\u00e9.jpg', 'p/cafe\u0301.jpg')
    found = list(names('p').values())
    assert len({name.casefold() for name in found}) == 4
    assert all(len(name.rsplit('-', 1)[-1]) == 12 for name in found)


def test_new_neighbour_does_not_take_over_a_name(here):
    """A result `one` of the first run is never taken for that of another image in a later run."""
    make('p/one.png')
    before = names('p')
    make('p/one.jpg')
    after = names('p')
    assert before['p/one.png'] not in after.values()


def test_file_and_folder_of_results_do_not_meet(here):
    make('p/a.jpg', 'p/a.png/b.jpg', 'p/clip.mp4', 'p/clip/000000.jpg', 'p/day.jpg', 'p/day/x.jpg')
    found = names('p')
    assert found['p/a.jpg'] == 'a.jpg'
    assert found['p/clip.mp4'] == 'clip.mp4'
    assert found['p/day.jpg'] == 'day'


WORDS = st.sampled_from(('a', 'A', 'b', 'a.png', 'a.mp4', '000000'))
PATHS = st.builds(
    lambda folders, name, suffix: '/'.join([*folders, name]) + suffix,
    st.lists(WORDS, max_size=2),
    WORDS,
    st.sampled_from(('.jpg', '.png', '.mp4')),
)


@given(st.lists(PATHS, unique=True, max_size=12))
@settings(max_examples=150, deadline=None)
def test_no_two_results_share_a_file(paths):
    files = [Found(Path('/root', path), PurePath(path), 'root') for path in paths]
    found = distinct_names(files)
    suffixes = [kind.suffix for kind in KINDS.values() if kind.suffix]
    for suffix in [*suffixes, '.mp4']:
        results = {(name + suffix).casefold() for name in found}
        assert len(results) == len(found)
        assert not results & {str(parent) for result in results for parent in PurePath(result).parents}


def test_twice_the_same_file_is_one_task(here):
    make('p/a.jpg')
    assert names('p', 'p/a.jpg', str(here / 'p' / 'a.jpg'), './p/*.jpg') == {'p/a.jpg': 'a'}


def test_globs_keep_subfolders_below_their_fixed_part(here):
    make('p/1/x.jpg', 'p/2/x.jpg', 'p/2/y.tif')
    assert names('p/*/x.jpg') == {'p/1/x.jpg': '1/x', 'p/2/x.jpg': '2/x'}
    assert names('p/**/*.tif') == {'p/2/y.tif': '2/y'}


def test_list_file(here):
    make('p/a.jpg', 'p/b c.jpg', 'lists/near.jpg', 'up.jpg')
    Path('lists/list.txt').write_text(
        f'\ufeffp/a.jpg\n\n# no\n  p/b c.jpg  \nnear.jpg\n{here}/up.jpg\nlists/../p/gone.jpg\n', encoding='utf-8'
    )
    assert names('lists/list.txt') == {
        'p/a.jpg': 'p/a',
        'p/b c.jpg': 'p/b c',
        'lists/near.jpg': 'near',
        f'{here}/up.jpg': 'up',
        'lists/../p/gone.jpg': 'gone',
    }
    Path('bad.txt').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(UserError, match=r"list 'bad\.txt' cannot be read as text"):
        find_tasks(['bad.txt'])


def test_own_results_are_no_inputs(here):
    make('p/a.jpg', 'p/out/overlays/a.jpg', 'p/out/labels/a.png', 'p/out/raw/b.jpg')
    assert set(names('p', out_dir='p/out')) == {'p/a.jpg', 'p/out/raw/b.jpg'}
    assert set(names('p/**/*.jpg', out_dir='p/out')) == {'p/a.jpg', 'p/out/raw/b.jpg'}
    assert set(names('p/out/labels', out_dir='p/out')) == {'p/out/labels/a.png'}


def test_links_in_a_circle_end(here):
    make('p/a/x.jpg', 'q/y.jpg')
    os.symlink('..', 'p/a/up')
    os.symlink(here / 'q', 'p/q')
    assert names('p') == {'p/a/x.jpg': 'a/x', 'p/q/y.jpg': 'q/y'}


@pytest.mark.parametrize('text', ['none.jpg', 'none*.jpg', 'empty'])
def test_input_that_means_nothing(here, text):
    Path('empty').mkdir()
    with pytest.raises(UserError, match='is no image file, no folder with images, and no glob that matches one'):
        find_tasks([text])


def test_folder_that_cannot_be_searched(here, monkeypatch):
    make('p/a.jpg', 'p/locked/b.jpg')
    scan = os.scandir

    def refuse(path):
        if str(path).endswith('locked'):
            raise PermissionError(13, 'Permission denied', str(path))
        return scan(path)

    monkeypatch.setattr(os, 'scandir', refuse)
    with pytest.raises(UserError, match=r"folder 'p/locked' cannot be searched \(Permission denied\)"):
        find_tasks(['p'])


def test_no_name_is_free():
    same = Found(Path('/a.jpg'), PurePath('a.jpg'))
    with pytest.raises(UserError, match='finds no name that is free; rename it'):
        distinct_names([same, same])

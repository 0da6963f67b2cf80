"""Which files are meant, and what their results are called."""

import os
from pathlib import Path, PurePath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volo_seg.errors import UserError
from volo_seg.inference.batch.sources import Task, check_collisions, find_tasks
from volo_seg.inference.output_formats import OUTPUT_FORMATS


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


@pytest.mark.parametrize(
    'files',
    [
        ('p/one.jpg', 'p/one.png'),
        ('p/two.jpg', 'q/two.jpg'),
        ('p/A.jpg', 'p/a.jpg'),
        ('p/caf\u00e9.jpg', 'p/cafe\u0301.jpg'),
        ('p/clip.avi', 'q/clip.mp4'),
        ('p/a.jpg', 'p/a.png/b.jpg'),  # labels/a.png would be a file and a folder
        ('p/clip.mp4', 'p/clip/000000.jpg'),
    ],
)
@pytest.mark.parametrize('swapped', [False, True])
def test_files_with_the_same_results_are_refused(here, files, swapped):
    make(*files, 'p/other.jpg', 'q/another.jpg')
    with pytest.raises(UserError, match='would both write to') as error:
        names(*(('q', 'p') if swapped else ('p', 'q')))
    assert all(repr(file) in str(error.value) for file in files)


def test_a_folder_beside_an_image_of_its_name(here):
    make('p/day.jpg', 'p/day/x.jpg')
    assert names('p') == {'p/day.jpg': 'day', 'p/day/x.jpg': 'day/x'}


WORDS = st.sampled_from(('a', 'A', 'b', 'a.png', 'a.mp4', '000000'))
PATHS = st.builds(
    lambda folders, name, suffix: '/'.join([*folders, name]) + suffix,
    st.lists(WORDS, max_size=2),
    WORDS,
    st.sampled_from(('.jpg', '.png', '.mp4')),
)


@given(st.lists(PATHS, unique=True, max_size=6))
@settings(max_examples=300, deadline=None)
def test_accepted_tasks_share_no_file(paths):
    tasks = [Task(Path('/root', path), os.path.splitext(path)[0]) for path in paths]
    try:
        check_collisions(tasks)
    except UserError:
        return
    suffixes = [kind.suffix for kind in OUTPUT_FORMATS.values() if kind.suffix]
    for suffix in [*suffixes, '.mp4']:
        results = {(task.name + suffix).casefold() for task in tasks}
        assert len(results) == len(tasks)
        assert not results & {str(parent) for result in results for parent in PurePath(result).parents}


@given(st.lists(st.sampled_from('abcdefgh'), unique=True), st.sampled_from(('.jpg', '.mp4')))
@settings(max_examples=30, deadline=None)
def test_different_names_are_accepted(stems, suffix):
    check_collisions([Task(Path('/root', stem + suffix), f'folder/{stem}') for stem in stems])


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
    with pytest.raises(UserError, match='is not an image, a folder with images, or a glob that matches one'):
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

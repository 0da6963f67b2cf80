"""Reports: joined logs, plots, scores of single images, and the page, also about tampered work dirs."""

import base64
import csv
import io
import json
import math
import os
import random
import re
import shutil
import stat
import warnings
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from evaluated import NAMES, evaluated, metric, sample
from hypothesis import given, settings
from hypothesis import strategies as st

from volo_seg.commands import run
from volo_seg.errors import UserError
from volo_seg.evaluation.confusion_matrix import confusion
from volo_seg.evaluation.per_image import ImageScores, score_image
from volo_seg.evaluation.tally import Tally
from volo_seg.reports.evaluation import ClassScore, Evaluation, most_confused, read_sheets
from volo_seg.reports.page import build_page
from volo_seg.reports.plots import FORMATS, curve_svg, draw_curves, histogram_svg, smooth
from volo_seg.reports.runs import Run, read_run, run_labels, run_table
from volo_seg.reports.work_dir import WorkDir
from volo_seg.visualization import draw_sheet, make_row

few = settings(max_examples=30, deadline=None)


def train_line(step, **values):
    return {'lr': 0.1, 'loss': 10 / step, 'time': 0.5, 'iter': step, 'step': step, **values}


def val_line(step, miou):
    return {'mIoU': miou, 'aAcc': 50.0, 'IoU/road': miou, 'data_time': 0.1, 'time': 0.2, 'step': step}


def session(work, stamp, lines, *, tail=''):
    folder = work / stamp / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text(''.join(json.dumps(line) + '\n' for line in lines) + tail)
    return work / stamp


@pytest.fixture
def work(tmp_path):
    """Two sessions: the first got to 50 after its checkpoint of 30, the second went on from there."""
    first = [train_line(s) for s in (10, 20, 30)] + [val_line(30, 20.0)] + [train_line(40, loss=99.0)]
    session(tmp_path / 'work', '20260101_000000', first, tail='{"loss": 1, "st')
    second = [train_line(s) for s in (40, 50, 60)] + [{**val_line(60, 30.0), 'train_mIoU': 44.0}]
    session(tmp_path / 'work', '20260102_000000', second)
    return tmp_path / 'work'


# runs


def test_a_resumed_run_is_one_run(work):
    found = read_run(work)
    assert (found.sessions, found.damaged) == (2, 1)
    assert found.curve('loss') == ([10, 20, 30, 40, 50, 60], [10 / step for step in (10, 20, 30, 40, 50, 60)])
    assert found.curve('mIoU') == ([30, 60], [20.0, 30.0])
    assert found.best() == (30.0, 60) and found.step_time() == 0.5
    assert found.keys()[:3] == ['loss', 'lr', 'time'] and 'IoU/road' in found.keys()  # noqa: SIM118
    for path in (work / '20260102_000000', work / '20260102_000000' / 'vis_data' / 'scalars.json'):
        assert read_run(path).curve('loss')[0] == [40, 50, 60]


@few
@given(cuts=st.lists(st.tuples(st.integers(1, 19), st.integers(0, 5)), max_size=3), every=st.integers(2, 6))
def test_joined_equals_uninterrupted(tmp_path_factory, cuts, every):
    """Each session ends some lines after the checkpoint that the next one goes on from."""

    def lines(first, last):
        for step in range(first, last + 1):
            yield train_line(step)
            if step % every == 0:
                yield val_line(step, float(step))

    whole, parts = tmp_path_factory.mktemp('whole'), tmp_path_factory.mktemp('parts')
    session(whole, '20260101_000000', lines(1, 20))
    start = 1
    for number, (cut, more) in enumerate(sorted(cuts)):
        session(parts, f'2026010{number}_000000', lines(start, min(20, cut + more)))
        start = cut + 1
    session(parts, '20260109_000000', lines(start, 20))
    one, other = read_run(whole), read_run(parts)
    assert one.train == other.train and one.val == other.val


def test_hierarchical_names_and_odd_lines_are_read(tmp_path):
    lines = [{'train/loss': 2.0, 'train/lr': 0.1, 'iter': 1, 'step': 1}, {'val/mIoU': 5.0, 'val/IoU/a': 5.0, 'step': 1}]
    odd = '\n[1]\n{"no": "step"}\n{"lr": 1, "loss": NaN, "step": 2}\n\xff\n'
    session(tmp_path, '20260101_000000', lines, tail=odd)
    found = read_run(tmp_path)
    assert found.curve('loss')[0] == [1, 2] and math.isnan(found.curve('loss')[1][1])
    assert found.curve('IoU/a') == ([1], [5.0]) and found.damaged == 3
    assert 'nan' not in run_table([found])


def test_folders_without_logs(tmp_path):
    with pytest.raises(UserError, match=r"nowhere' does not exist; name a work dir"):
        read_run(tmp_path / 'nowhere')
    with pytest.raises(UserError, match='holds no log of a training'):
        read_run(tmp_path)
    session(tmp_path, '20260101_000000', [])
    with pytest.raises(UserError, match='hold no value yet'):
        read_run(tmp_path)


def test_labels_tell_runs_apart(tmp_path):
    for name in ('a/work', 'b/work', 'c'):
        session(tmp_path / name, '20260101_000000', [train_line(1)])
    found = [read_run(tmp_path / name) for name in ('a/work', 'b/work', 'c')]
    assert run_labels(found[1:]) == ['work', 'c']
    assert run_labels(found[:2]) == ['a/work', 'b/work']
    assert run_labels([found[2], found[2]]) == ['1: c', '2: c']


@few
@given(st.lists(st.floats(-100, 100), min_size=1, max_size=400))
def test_smoothing_stays_within_the_values(values):
    means = smooth(values)
    assert len(means) == len(values)
    assert min(values) - 1e-9 <= min(means) and max(means) <= max(values) + 1e-9


@pytest.mark.filterwarnings('error::UserWarning')
def test_analyze_logs_prints_and_plots(work, tmp_path, capsys):
    other = tmp_path / 'other'
    session(other, '20260101_000000', [train_line(s) for s in (10, 20)])
    out = tmp_path / 'plot.png'
    assert run('analyze_logs', [str(work), str(other), '--out', str(out)]) == 0
    text = capsys.readouterr().out
    assert '1 damaged line(s) of the logs are left out' in text
    rows = [line.split() for line in text.splitlines()]
    assert ['work', '60', '0.5000', '0.1667', '0.4083', '30.00', '60', '44.00'] in rows
    assert ['other', '20', '0.5000', '0.5000', '0.7500', '-', '-', '-'] in rows
    picture = cv2.imread(str(out))
    assert picture.shape[1] > 1200 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 50
    for suffix, magic in (('svg', b'<?xml'), ('pdf', b'%PDF')):
        target = tmp_path / f'plot.{suffix}'
        assert run('analyze_logs', [str(other), '--keys', 'loss', '--out', str(target)]) == 0
        assert target.read_bytes().startswith(magic)


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--out', 'plot.gif'], "--out 'plot.gif' must end in .png, .svg, .pdf"),
        (['--out', 'there.png'], "'there.png' exists; add --overwrite"),
        (['--keys', 'mDice'], "--keys 'mDice' was not logged; these were: loss, lr, time"),
        (['nowhere'], "'nowhere' does not exist"),
    ],
)
def test_analyze_logs_refuses(words, message, work, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path('there.png').write_text('mine')
    assert run('analyze_logs', [str(work), *words]) == 2
    assert message in capsys.readouterr().err
    assert Path('there.png').read_text() == 'mine' and not Path('plot.gif').exists()


# plots


def test_curves_leave_out_what_is_no_number():
    values = [1.0, math.nan, 2.0, math.inf, 3.0]
    run = Run(Path(), val=[{'step': step, 'mIoU': value} for step, value in enumerate(values, start=1)])
    svg = curve_svg(run, 'mIoU')
    assert not re.search('nan|inf', svg, re.I) and svg.count('<use') == 3
    assert svg == curve_svg(run, 'mIoU')
    assert svg.count('--series') > 0 and '#' not in svg.replace('href="#mIoU-', '')  # no colour but the page's own
    for values in ([0.0], [1e-320], [1e30, -1e30], [math.nan], [], [5.0] * 3000, list(range(100_000))):
        drawn = curve_svg(Run(Path(), train=[{'step': i, 'loss': v} for i, v in enumerate(values)]), 'loss')
        assert drawn.startswith('<svg viewBox') and len(drawn) < 100_000


def test_histograms_count_images():
    svg = histogram_svg([0.0, 100.0, 55.0, 56.0], name='x')
    assert svg.count('fill: var(--series)') == 20 and '>2<' in svg and '>2.5<' not in svg


def test_ids_of_figures_differ():
    run = Run(Path(), val=[{'step': 1, 'a': 1.0, 'b': 2.0}])
    ids = [re.findall(r'id="([^"]+)"', curve_svg(run, key)) for key in ('a', 'b')]
    assert ids[0] and not {*ids[0]} & {*ids[1]}


def test_files_are_the_same_each_time(work):
    runs = [read_run(work)]
    for format in FORMATS:
        assert draw_curves(runs, ['loss', 'mIoU'], format=format) == draw_curves(runs, ['loss', 'mIoU'], format=format)


def test_most_confused_pairs():
    classes = [ClassScore(name, False, None, None, None, 0) for name in 'abc']
    found = Evaluation({}, classes=classes, matrix=[[5, 2, 0], [3, 1, 0], [0, 9, 0]])
    assert most_confused(found, limit=2) == [('c', 'b', 9, 1.0), ('b', 'a', 3, 0.75)]


# scores image by image


@few
@given(seed=st.integers(0, 10**6), present=st.integers(1, 5))
def test_image_scores_are_those_of_the_image_alone(seed, present):
    maps = sample(seed, present=present)
    found = evaluated([maps])
    truth, prediction = maps['gt_sem_seg']['data'][0], maps['pred_sem_seg']['data'][0]
    matrix, ignored = confusion(truth, prediction, num_classes=5, ignore_index=255, where='x')
    score = score_image(Tally.of_image(matrix, ignored=ignored, pixels=truth.numel()), image='x', index=0)
    assert 100 * score.mean_iou == pytest.approx(found['mIoU'])
    assert 100 * score.accuracy == pytest.approx(found['aAcc'])
    ious = {key: value for key, value in found.items() if key.startswith('IoU/')}
    assert 100 * score.worst_iou == pytest.approx(min(ious.values()))
    assert ious[f'IoU/{NAMES[score.worst_class]}'] == min(ious.values())


def rows_of(folder):
    return list(csv.DictReader(io.StringIO((folder / 'per_image.csv').read_text())))


def test_each_image_has_a_row_and_the_worst_a_picture(tmp_path):
    samples = [sample(i, right=right) for i, right in enumerate((0.9, 0.1, 0.7, 0.3))]
    ignored = sample(9)
    ignored['gt_sem_seg']['data'][:] = 255
    made = metric(out_dir=str(tmp_path), worst_images=2)
    made.process({'inputs': torch.zeros(5, 3, 13, 17, dtype=torch.uint8)}, [*samples, ignored])
    made.evaluate(5)
    rows = rows_of(tmp_path)
    assert [row['image'] for row in rows] == [f'images/{i}.jpg' for i in (0, 1, 2, 3, 9)]
    assert rows[4]['mIoU'] == '' and rows[4]['ignored_pixels'] == str(13 * 17)
    for row, one in zip(rows, samples, strict=False):
        assert float(row['mIoU']) == pytest.approx(evaluated([one])['mIoU'])
    content = json.loads((tmp_path / 'metrics.json').read_text())['worst_images']
    assert [entry['image'] for entry in content] == ['images/1.jpg', 'images/3.jpg']
    assert [entry['file'] for entry in content] == ['worst/01.jpg', 'worst/02.jpg']
    assert all(cv2.imread(str(tmp_path / entry['file'])).shape[1] == 976 for entry in content)
    with pytest.raises(UserError, match='worst_images=-1 is negative'):
        metric(worst_images=-1)


@few
@given(cut=st.integers(0, 9), keep=st.integers(0, 6))
def test_worst_images_do_not_depend_on_the_processes(cut, keep):
    scores = []
    for place in range(9):
        matrix = torch.zeros(2, 3, dtype=torch.int64)
        matrix[0, 0], matrix[0, 1] = place * 7 % 5 + 1, 3
        scores.append(score_image(Tally.of_image(matrix, ignored=0, pixels=int(matrix.sum())), image='x', index=place))
    maps = torch.zeros(2, 2)

    def gathered(part):
        found = ImageScores(keep)
        for score in part:
            found.add(score, prediction=maps, truth=maps, image=None)
        return found

    merged = gathered([]).merged([gathered(scores[cut:]), gathered(scores[:cut])])
    assert merged.scores == scores
    assert [score for score, _ in merged.worst] == sorted(scores)[:keep]


# the page

EVIL = '<script>alert(1)</script>"><img src=http://evil.test/x onerror=alert(2)>&amp;'


class Reader(HTMLParser):
    """Collects tags with their attributes, and the text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture
def evaluated_work(work):
    """The two sessions with metrics of a test, a contact sheet and records, all names hostile."""
    folder = work / '20260103_000000'
    made = metric(names=(EVIL, 'b', 'c', 'd', 'never'), out_dir=str(folder), worst_images=2)
    made.process({}, [sample(i, path=f'images/{i}{EVIL}.jpg', present=4) for i in range(3)])
    made.evaluate(3)
    sheets = work / '20260102_000000' / 'val_sheets'
    sheets.mkdir()
    row = make_row('x', image=None, labels=(np.zeros((4, 4)), np.zeros((4, 4))))
    for step in range(10, 130, 10):
        (sheets / f'iter_{step}.jpg').write_bytes(draw_sheet([row], title='', classes=['a'], palette=None))
    record = {
        'kind': 'train',
        'status': 'finished',
        'config': EVIL,
        'command': ['volo-seg', EVIL],
        EVIL: {EVIL: [EVIL]},
    }
    (work / '20260102_000000' / 'run.json').write_text(json.dumps(record))
    return work


def test_page_shows_everything_and_names_are_only_text(evaluated_work, tmp_path):
    page = build_page(evaluated_work)
    reader = Reader(page)
    text = ' '.join(reader.words)
    for part in ('Curves', 'Classes, worst first', 'Confusion', 'Images, worst first', 'The same images', 'Training'):
        assert part in text, part
    assert EVIL in text and '<script' not in page and 'onerror=alert(2)&gt;' in page
    assert 'Neither in the truth nor predicted: never.' in text
    assert '30.00' in text and 'at iteration 60' in text and 'in 2 sessions' in text
    assert {tag for tag, _ in reader.tags} & {'script', 'link', 'iframe', 'object', 'base', 'form', 'a'} == set()
    images = [attributes for tag, attributes in reader.tags if tag == 'img']
    assert len(images) == 2 + 8  # the worst, and eight of the twelve sheets
    assert all(image['src'].startswith('data:image/jpeg;base64,') for image in images)
    assert not any(key.startswith('on') or key == 'href' for _, attributes in reader.tags for key in attributes)
    policy = [attributes['content'] for tag, attributes in reader.tags if 'http-equiv' in attributes]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert 'after iteration 120' in text and 'url(' not in page and '@import' not in page
    closed = {tag for tag, _ in reader.tags} - {'meta', 'img', 'path', 'use', 'br'}
    assert all(page.count(f'</{tag}>') == sum(found == tag for found, _ in reader.tags) for tag in closed)


def test_page_is_the_same_each_time_and_has_unique_ids(evaluated_work):
    page = build_page(evaluated_work)
    assert page == build_page(evaluated_work)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert ids and len(ids) == len(set(ids))
    assert '#a0b0c' not in page and all(f'{name}:' in page for name in re.findall(r'var\((--[a-z]+)\)', page))


def test_page_shows_the_confusion_of_each_class(work):
    evaluated([sample(1)], out_dir=str(work / 'test'))
    path = work / 'test' / 'metrics.json'
    content = json.loads(path.read_text())
    content |= {'classes': content['classes'][:2], 'confusion_matrix': [[3, 1], [0, 0]]}
    path.write_text(json.dumps(content))
    page = build_page(work)
    assert '>75</td>' in page and '>25</td>' in page and page.count('<td class="none">') == 2
    assert f'title="{NAMES[0]} taken for {NAMES[1]}: 25.0 % (1 pixels)"' in page
    names = [{**content['classes'][0], 'class': str(i)} for i in range(41)]
    path.write_text(json.dumps({**content, 'classes': names, 'confusion_matrix': [[1] * 41] * 41}))
    page = build_page(work)
    assert page.count('alt="confusion matrix" src="data:image/png;base64,') == 1 and '<td class="wrong' not in page


def test_page_of_a_test_alone_and_of_a_training_alone(tmp_path, work):
    text = ' '.join(Reader(build_page(work)).words)
    assert 'Curves' in text and 'Confusion' not in text
    assert 'at iteration 60, 44.00 on training images' in text and 'dashed: training images, last 44' in text
    evaluated([sample(1)], out_dir=str(tmp_path / 'test' / 'metrics'))
    text = ' '.join(Reader(build_page(tmp_path / 'test')).words)
    assert 'Curves' not in text and 'Confusion' in text


def test_pictures_outside_the_folder_are_not_shown(evaluated_work):
    secret = evaluated_work / 'secret.jpg'
    secret.write_bytes(b'\xff\xd8\xffsecret')
    path = evaluated_work / '20260103_000000' / 'metrics.json'
    content = json.loads(path.read_text())
    entries = [{'file': str(secret)}, {'file': '../../secret.jpg'}, {'file': 'worst/..'}, 3, {'file': 'worst/01.jpg'}]
    path.write_text(json.dumps({**content, 'worst_images': entries}))
    (path.parent / 'worst' / '02.jpg').write_text('no picture')
    images = [a for tag, a in Reader(build_page(evaluated_work)).tags if tag == 'img' and 'truth' in a['alt']]
    assert len(images) == 1


def test_damaged_files_cost_their_part_only(evaluated_work):
    folder = evaluated_work / '20260103_000000'
    (evaluated_work / '20260102_000000' / 'run.json').write_text('{"kind": ')
    (folder / 'per_image.csv').write_text('mIoU\nnot a number\n')
    content = json.loads((folder / 'metrics.json').read_text())
    content.update(confusion_matrix=[[1]], worst_images=None, mIoU=None)
    (folder / 'metrics.json').write_text(json.dumps(content))
    text = ' '.join(Reader(build_page(evaluated_work)).words)
    assert 'Classes, worst first' in text and 'Confusion' not in text and 'Images, worst first' not in text
    (folder / 'metrics.json').write_text('{')
    assert 'Classes' not in ' '.join(Reader(build_page(evaluated_work)).words)


def test_sheets_are_chosen_evenly_with_the_last(evaluated_work):
    assert [step for step, _ in read_sheets(WorkDir(evaluated_work), limit=4)] == [10, 50, 80, 120]
    assert [step for step, _ in read_sheets(WorkDir(evaluated_work), limit=50)] == list(range(10, 130, 10))


def test_report_command(evaluated_work, tmp_path, capsys):
    assert run('report', [str(evaluated_work)]) == 0
    page = evaluated_work / 'report.html'
    assert f'report: {page}' in capsys.readouterr().out and page.read_text().endswith('</html>\n')
    assert run('report', [str(evaluated_work), '--out', str(page)]) == 0  # its own is replaced
    page.write_text('<html>mine</html>')
    assert run('report', [str(evaluated_work)]) == 2
    assert 'exists and was not written by volo-seg report' in capsys.readouterr().err
    assert page.read_text() == '<html>mine</html>'
    for folder, message in ((tmp_path / 'nowhere', 'is not a folder'), (tmp_path, 'holds neither logs nor metrics')):
        assert run('report', [str(folder)]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / 'file').touch()
    assert run('report', [str(evaluated_work), '--out', str(tmp_path / 'file' / 'x.html')]) == 2
    assert 'cannot be written' in capsys.readouterr().err


# tampered work dirs

HARMLESS = {
    *(
        'html',
        'head',
        'meta',
        'title',
        'style',
        'body',
        'main',
        'header',
        'section',
        'h1',
        'h2',
        'h3',
        'p',
        'div',
        'span',
    ),
    *('b', 'i', 'small', 'figure', 'figcaption', 'svg', 'g', 'path', 'text', 'defs', 'use', 'table', 'thead', 'tbody'),
    *('tr', 'th', 'td', 'details', 'summary', 'img', 'ul', 'li'),
}
SECRET = b'\xff\xd8\xffsecret of another folder'
ODD = [
    *(
        None,
        True,
        -1,
        0,
        2**63,
        10**400,
        -1e308,
        float('nan'),
        float('inf'),
        1e-320,
        '',
        'x' * 10_000,
        EVIL,
        '\0\n\u202e',
    ),
    *('\ud800', '../../../secret.jpg', '/etc/passwd', [], {}, [None], [[[]]], [{}], {'a': {'b': {'c': {'d': EVIL}}}}),
    *([0] * 50_000, {str(i): i for i in range(5000)}, [[1] * 5] * 5, [{'class': {}}] * 3, [EVIL] * 300),
]
BROKEN = [
    *(b'', b'{', b'[]', b'null', b'\xff\xfe{}', b'\0' * 100, b'{"step": 1e999, "loss": NaN}\n', b'nan', b'1' * 5000),
    *(b'[' * 100_000, b'{"a":' * 100_000, b'{"a":' * 900 + b'1' + b'}' * 900, b'mIoU\nnan\ninf\n1e400\n\0\n-5\n'),
    *(
        b'a,mIoU\n' + b'"' * 200_000,
        b'\xff\xd8\xff<script>',
        EVIL.encode() * 100,
        b'{"written_by": "volo-seg", "classes": 5}',
    ),
]


def entries(value):
    """(container, key) of all entries of nested dicts and lists; of a list the first two."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value[:2]):
        yield value, key
        if isinstance(item, (dict, list)):
            yield from entries(item)


def mutate_json(chance, path):
    lines = path.read_text().splitlines() if path.name == 'scalars.json' else [path.read_text()]
    for index in chance.sample(range(len(lines)), 1 + len(lines) // 3):
        content = json.loads(lines[index]) if lines[index].endswith('}') else {'step': 1}
        for container, key in chance.sample(found := list(entries(content)), min(3, len(found))):
            container[key] = chance.choice(ODD)
        lines[index] = json.dumps(content)
    path.write_text('\n'.join(lines))


def replace_file(chance, path):
    path.write_bytes(chance.choice(BROKEN))


def cut_file(chance, path):
    content = bytearray(path.read_bytes())
    for _ in range(5):
        content[chance.randrange(len(content))] = chance.randrange(256)
    path.write_bytes(content[: chance.randrange(len(content))])


def replace_by_kind(chance, path):
    """A fifo, a folder, or a link: to a file or folder outside, to itself, to nothing, to an endless device."""
    path.unlink()
    kind = chance.choice(['fifo', 'folder', 'secret', 'itself', 'nothing', 'zero', 'etc'])
    if kind == 'fifo':
        os.mkfifo(path)
    elif kind == 'folder':
        path.mkdir()
    else:
        targets = {'secret': '../../../secret.jpg', 'itself': path.name, 'nothing': 'gone', 'zero': '/dev/zero'}
        path.symlink_to(targets.get(kind, '/etc'))


def replace_folder(chance, path):
    """The folder of the file is a link to one outside of the work dir, with a copy of what was there."""
    outside = path.parents[3] / f'outside{chance.randrange(10**9)}'
    shutil.move(path.parent, outside)
    for file in filter(Path.is_file, outside.rglob('*.jpg')):
        file.write_bytes(SECRET)
    path.parent.symlink_to(outside)


def protect_file(chance, path):
    path.chmod(0)


def make_huge(chance, path):
    with open(path, 'r+b') as file:
        file.truncate(2**33)  # takes no space on the disk


MUTATIONS = (mutate_json, replace_file, cut_file, replace_by_kind, replace_folder, protect_file, make_huge)
CASES = 72


@pytest.mark.parametrize('part', range(4))
def test_tampered_work_dirs_cost_a_part_and_never_a_traceback(part, evaluated_work, tmp_path, capsys):
    """Seeded mutations of the files of a work dir: the command writes a harmless page or says one sentence."""
    outcomes, names = set(), set()
    for number in range(part * CASES // 4, (part + 1) * CASES // 4):
        chance = random.Random(number)
        work = tmp_path / f'case{number}' / 'folder' / 'work'
        shutil.copytree(evaluated_work, work)
        (work.parents[1] / 'secret.jpg').write_bytes(SECRET)
        (work.parent / 'secret.jpg').write_bytes(SECRET)
        for mutation in [MUTATIONS[number % len(MUTATIONS)], *chance.choices(MUTATIONS, k=chance.randrange(3))]:
            files = [file for file in sorted(work.rglob('*')) if stat.S_ISREG(file.lstat().st_mode)]
            kinds = sorted({file.name for file in files})
            if mutation is mutate_json:
                kinds = [name for name in kinds if name in ('run.json', 'metrics.json', 'scalars.json')]
            elif mutation is replace_folder:
                kinds = [
                    name for name in kinds if len(next(f for f in files if f.name == name).relative_to(work).parts) > 2
                ]
            name = chance.choice(kinds or ['none'])
            for file in [file for file in files if file.name == name and file.exists()][:2]:
                try:
                    mutation(chance, file)
                except ValueError:  # a second mutation of a damaged file
                    replace_file(chance, file)
                names.add((mutation.__name__, name))
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            status = run('report', [str(work)])
        told = capsys.readouterr()
        outcomes.add(status)
        if status == 0:
            page = (work / 'report.html').read_text()
            tags = {tag for tag, _ in Reader(page).tags}
            assert tags <= HARMLESS, tags - HARMLESS
            assert not any(k.startswith('on') or k == 'href' for _, found in Reader(page).tags for k in found)
            assert base64.b64encode(SECRET).decode() not in page and 'root:' not in page
            assert 'nan' not in ''.join(re.findall('<path[^>]*>', page)) and len(page) < 30 * 2**20
        else:
            assert status == 2 and told.err.startswith('error: ') and told.err.count('\n') == 1, told.err
        shutil.rmtree(work.parents[1], ignore_errors=True)
    assert 0 in outcomes and len(names) >= 12


def test_files_of_every_odd_kind_are_named(evaluated_work):
    """Each kind of unusable file leaves a sentence at the end of the page."""
    folder, session_folder = evaluated_work / '20260103_000000', evaluated_work / '20260102_000000'
    outside = evaluated_work.parent / 'secret.jpg'
    outside.write_bytes(SECRET)
    (folder / 'worst' / '01.jpg').unlink()
    (folder / 'worst' / '01.jpg').symlink_to(outside)
    (folder / 'worst' / '02.jpg').write_bytes(b'GIF89a')
    (session_folder / 'val_sheets' / 'iter_120.jpg').unlink()
    os.mkfifo(session_folder / 'val_sheets' / 'iter_120.jpg')
    (session_folder / 'run.json').write_bytes(b'[' * 100_000)
    (folder / 'run.json').write_text('[]')
    (folder / 'per_image.csv').unlink()
    (folder / 'per_image.csv').symlink_to('per_image.csv')
    (evaluated_work / '20260101_000000' / 'vis_data' / 'scalars.json').unlink()
    (evaluated_work / '20260101_000000' / 'vis_data' / 'scalars.json').mkdir()
    text = ' '.join(Reader(build_page(evaluated_work)).words)
    for sentence in (
        'worst/01.jpg lies outside of the work dir and is left out.',
        'worst/02.jpg is not an image of the expected format and is left out.',
        'iter_120.jpg cannot be read (it is a pipe, socket or device, not a file) and is left out.',
        '20260102_000000/run.json is not valid JSON and is left out.',
        '20260103_000000/run.json does not hold a JSON object and is left out.',
        'per_image.csv cannot be read',
        '20260101_000000/vis_data/scalars.json cannot be read (it is a folder, not a file) and is left out.',
    ):
        assert sentence in text, sentence
    assert 'after iteration 90' in text and 'Curves' in text


def test_analyze_logs_of_odd_files(tmp_path, capsys):
    os.mkfifo(tmp_path / 'scalars.json')
    (tmp_path / 'deep').mkdir()
    (tmp_path / 'deep' / 'scalars.json').write_bytes(b'[' * 100_000)
    for path in (tmp_path, tmp_path / 'scalars.json', tmp_path / 'deep'):
        assert run('analyze_logs', [str(path)]) == 2
        assert capsys.readouterr().err.count('\n') == 1
    line = (
        json.dumps({'lr': 10**400, 'loss': 1e308, 'step': 1, 'a$_{b': 2.0}) + '\n' + json.dumps({'loss': 2, 'step': 2})
    )
    session(tmp_path / '_odd $x^{', '20260101_000000', [], tail=line)
    words = [str(tmp_path / '_odd $x^{'), str(tmp_path / '_odd $x^{'), '--keys', 'a$_{b', 'loss', 'lr']
    assert run('analyze_logs', [*words, '--out', str(tmp_path / 'plot.png')]) == 0
    assert cv2.imread(str(tmp_path / 'plot.png')).std() > 1

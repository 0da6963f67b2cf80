"""The console while training, and who else is told: lines, live view, log file, trackers, contact sheets."""

import contextlib
import fcntl
import io
import json
import logging
import math
import os
import re
import struct
import sys
import termios
import types
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.logging import MessageHub
from rich.cells import cell_len
from rich.console import Console

from volo_seg.commands.apply_flags import set_console
from volo_seg.engine.hooks.console_hook import ConsoleHook, Screen, console_of, log_to_screen, number
from volo_seg.engine.hooks.contact_sheet_hook import ContactSheetHook, evenly_spread
from volo_seg.engine.logging.vis_backends import log_to
from volo_seg.errors import UserError
from volo_seg.progress import Pace, duration, rate

few = settings(max_examples=30, deadline=None)


@pytest.fixture(scope='module')
def plain_run(data, tmp_path_factory):
    """A finished run of six iterations with two validations, and what it printed."""
    work, out = tmp_path_factory.mktemp('plain'), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'stdout', out)
        runner = tiny.runner(data, work, default_hooks__logger__interval=2)
        runner.logger.warning('a warning of somebody')
        with console_of(runner):
            runner.train()
    return Path(runner.log_dir), out.getvalue()


def hook_at_215(**changes):
    """A hook in the middle of a run of 600 iterations."""
    hook = ConsoleHook()
    hook.train = Pace(600, done=215)
    hook.train.seconds.extend([0.5, 0.5, 0.5])
    hook.values = {'loss': 1.25, 'decode.loss_ce': 0.9, 'aux.loss_ce': 0.35, 'lr': 1.9e-3}
    hook.last, hook.best, hook.memory = ('mIoU', 12.3), ('mIoU', 14.1, ' at 100'), 'memory 1.2 GiB'
    for name, value in changes.items():
        assert hasattr(hook, name)
        setattr(hook, name, value)
    return hook


# words


@pytest.mark.parametrize(
    ('seconds', 'text'),
    [(0.4, '0 s'), (59, '59 s'), (185, '3 min 05 s'), (7860, '2 h 11 min'), (97200, '1 d 03 h'), (-3, '0 s')],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_rates_and_numbers():
    assert rate(0.5, 'it') == '2.0 it/s' and rate(3.4, 'it') == '3.4 s/it'
    assert rate(0.1, 'images') == '10.0 images/s' and rate(None, 'it') == ''
    assert rate(2.0, 'images') == '2.0 s/image'
    assert number(1.23456) == '1.2346' and number(math.nan) == 'nan' and number(1e6) == '1e+06'


def test_pace_leaves_the_first_step_out_and_counts_batches():
    pace = Pace(10)
    assert pace.left is None
    pace.step(9.0)
    assert pace.step_time == 9.0
    pace.step(4.0, count=2)
    assert pace.step_time == 2.0 and pace.left == 14.0 and pace.done == 3


def test_plain_lines():
    assert hook_at_215().line() == (
        '215/600  loss 1.2500 (decode.loss_ce 0.9000, aux.loss_ce 0.3500)  lr 1.90e-03  2.0 it/s  3 min 12 s left  '
        'memory 1.2 GiB  mIoU 12.30 (best 14.10 at 100)'
    )
    pace = Pace(40, done=12)
    pace.seconds.extend([0.25, 0.25])
    assert hook_at_215(evaluation=pace, stage='test').line() == 'test 12/40 images  4.0 images/s  7 s left'
    empty = ConsoleHook()
    empty.train = Pace(5)
    assert empty.line() == '0/5'
    assert '5 min 12 s left' in hook_at_215(validation_seconds=40.0, validations_left=3).line()


# the screen


@few
@given(width=st.integers(20, 200), stage=st.sampled_from(['train', 'val']), name=st.text(min_size=1, max_size=40))
def test_view_never_exceeds_the_terminal(width, stage, name):
    out = io.StringIO()
    values = {'loss': math.nan, f'{name}loss': 1e9, 'lr': 0.1}
    hook = hook_at_215(values=values, evaluation=Pace(40, done=3), stage=stage)
    console = Console(file=out, width=width, force_terminal=True, color_system=None, legacy_windows=False)
    console.print(hook.view())
    lines = [re.sub(r'\x1b\[[0-9;?]*[a-zA-Z]', '', line) for line in out.getvalue().split('\n')]
    assert len(lines) >= 4  # bar, losses, score and the end
    assert all(cell_len(line) <= width for line in lines)


@pytest.fixture
def terminal():
    """A pseudo terminal: its console, and a function that returns all that was written to it."""
    master, slave = os.openpty()
    resize(slave, 100)
    os.set_blocking(master, False)
    file = os.fdopen(slave, 'w')
    read = bytearray()

    def written():
        with contextlib.suppress(BlockingIOError):
            while True:
                read.extend(os.read(master, 65536))
        return read.decode()

    yield Console(file=file, force_terminal=True, legacy_windows=False), written, slave
    file.close()
    os.close(master)


def resize(descriptor, width):
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack('HHHH', 30, width, 0, 0))


def test_live_view_lets_messages_through_and_survives_a_resize(terminal, monkeypatch):
    for name in ('COLUMNS', 'LINES'):
        monkeypatch.delenv(name, raising=False)
    console, written, slave = terminal
    screen = Screen(console)
    stdout = sys.stdout
    screen.update(hook_at_215().view())
    screen.line('\x1b[33ma message\x1b[0m of [bold] somebody', style='yellow')
    print('printed by a library')
    for width in (40, 20, 120):
        resize(slave, width)
        screen.update(hook_at_215(evaluation=Pace(40, done=3), stage='val').view())
    screen.close()
    screen.close()
    assert sys.stdout is stdout
    plain = re.sub(r'\x1b\[[0-9;?]*[a-zA-Z]', '', written())
    assert plain.count('a message of [bold] somebody') == 1
    assert plain.count('printed by a library') == 1
    assert '215/600   2.0 it/s   3 min 12 s left' in plain
    assert 'best 14.10 at 100' in plain
    assert '3/40 images' in plain
    assert written().rfind('\x1b[?25h') > written().rfind('\x1b[?25l')  # the cursor is back


def test_an_interrupt_gives_the_terminal_back(terminal):
    console, written, _ = terminal
    hook = hook_at_215(screen=Screen(console))
    stdout = sys.stdout
    with pytest.raises(KeyboardInterrupt), console_of(types.SimpleNamespace(hooks=[hook])):
        hook.show()
        assert sys.stdout is not stdout
        raise KeyboardInterrupt
    assert sys.stdout is stdout
    assert written().endswith('\x1b[?25h')


def test_a_live_view_only_where_a_terminal_supports_it(monkeypatch, capsys):
    def console(**settings):
        hook = ConsoleHook(interval=1, **settings)
        hook.before_run(types.SimpleNamespace(logger=logging.Logger('some')))
        return hook.screen.console

    assert console() is None  # no terminal
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True, raising=False)
    monkeypatch.setenv('TERM', 'xterm')
    assert isinstance(console(), Console)
    assert console(plain=True) is None
    monkeypatch.setenv('TERM', 'dumb')
    assert console() is None
    monkeypatch.setenv('TERM', 'xterm')
    monkeypatch.setenv('NO_COLOR', '1')
    assert console().no_color


def test_training_outlives_its_reader(monkeypatch):
    """``volo-seg train … | head``, and a terminal that was closed."""

    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    stdout = sys.stdout
    for screen in (Screen(), Screen(Console(file=Gone(), force_terminal=True))):
        monkeypatch.setattr(sys, 'stdout', Gone())
        screen.line('a message')
        hook_at_215(screen=screen).show()
        hook_at_215(screen=screen).show()
        screen.close()
        monkeypatch.setattr(sys, 'stdout', stdout)


# the log beside it


def record(message, level=logging.INFO):
    return logging.LogRecord('mmengine', level, '', 0, message, None, None)


@pytest.mark.parametrize(
    ('message', 'level', 'shown', 'with_tables'),
    [
        ('Saving checkpoint at 100 iterations', logging.INFO, True, True),
        ('Load checkpoint from x.pth', logging.INFO, True, True),
        ('Config:\nmodel = 1', logging.INFO, False, False),
        ('\n-----\nSystem environment:\n  x', logging.INFO, False, False),
        ('Hooks will be executed in the following order:\n', logging.INFO, False, False),
        ('Iter(train) [20/600]  lr: 1', logging.INFO, False, False),
        ('paramwise_options -- backbone.x:lr=1', logging.INFO, False, False),
        ('by class:\nclass IoU', logging.INFO, False, True),
        ('mind\nthis', logging.WARNING, True, True),
        ('Reach the end of the dataloader, it will be', logging.WARNING, False, False),
        ('it failed', logging.ERROR, True, True),
    ],
)
def test_what_reaches_the_console(message, level, shown, with_tables):
    assert Screen().accepts(record(message, level)) == shown
    assert Screen(tables=True).accepts(record(message, level)) == with_tables


def test_log_to_screen_keeps_files_levels_and_filters(tmp_path, capsys):
    logger = logging.Logger('some')
    stream, file = logging.StreamHandler(sys.stdout), logging.FileHandler(tmp_path / 'log')
    stream.setLevel(logging.ERROR)
    stream.addFilter(lambda record: 'secret' not in record.msg)
    logger.addHandler(stream)
    logger.addHandler(file)
    log_to_screen(logger, Screen())
    log_to_screen(logger, Screen())  # once more, as the runner and the hook do
    for level, text in ((logging.WARNING, 'below'), (logging.ERROR, 'bad %s'), (logging.ERROR, 'secret')):
        logger.log(level, text, *(['news'] if '%' in text else []))
    file.close()
    assert capsys.readouterr().out == 'error: bad news\n'
    assert (tmp_path / 'log').read_text() == 'below\nbad news\nsecret\n'
    assert logger.handlers[1] is file and not logger.handlers[0].stream.closed


def test_plain_run_prints_one_line_an_interval_and_no_escape_codes(plain_run):
    log_dir, out = plain_run
    lines = out.splitlines()
    assert '\x1b' not in out
    assert [line.split()[0] for line in lines if re.match(r'\d+/6  loss', line)] == ['2/6', '4/6', '6/6']
    first = next(line for line in lines if line.startswith('2/6'))
    assert re.search(
        r'loss \d\.\d{4} \(decode\.loss_ce .*aux\.loss_ce .*\)  lr \d\.\d\de-0\d  [\d.]+ (it/s|s/it)', first
    )
    assert re.search(r' left  (GPU )?memory \d+\.\d GiB', first)
    validations = [line for line in lines if 'validation: 3 images in' in line]
    assert [line.split()[0] for line in validations] == ['3/6', '6/6']
    scores = [json.loads(line) for line in (log_dir / 'vis_data' / 'scalars.json').read_text().splitlines()]
    train_scores = [entry['train_mIoU'] for entry in scores if 'mIoU' in entry]
    scores = [entry['mIoU'] for entry in scores if 'mIoU' in entry]
    for line, score, trained, at in zip(validations, scores, train_scores, (3, 6), strict=True):
        assert f'mIoU {score:.2f} (best ' in line
        assert at == 3 or f'(best {max(scores):.2f} at {3 + 3 * (scores[1] > scores[0])}, ' in line
        assert f', {trained:.2f} on training images)' in line
    assert lines.count('warning: a warning of somebody') == 1
    assert any(line.startswith('Saving checkpoint') for line in lines)
    for chatter in ('Config:', 'System environment', 'Hooks will be', 'Iter(train)', 'paramwise'):
        assert chatter not in out, chatter


def test_log_file_and_scalars_are_those_of_mmengine(plain_run, data, tmp_path, capsys):
    log_dir, _ = plain_run
    runner = tiny.runner(data, tmp_path, '--console', 'mmengine', default_hooks__logger__interval=2)
    runner.train()
    assert 'Iter(train) [2/6]' in capsys.readouterr().out  # what the flag asks for
    logs = [next(Path(folder).glob('*.log')).read_text() for folder in (log_dir, runner.log_dir)]
    for text in logs:
        for part in ('Config:', 'System environment', 'Hooks will be executed', 'Iter(train) [6/6]', 'by class'):
            assert part in text
    keys = [
        [sorted(json.loads(line)) for line in Path(folder, 'vis_data/scalars.json').read_text().splitlines()]
        for folder in (log_dir, runner.log_dir)
    ]
    assert keys[0] == keys[1]


def test_other_ranks_stay_silent(monkeypatch, capsys):
    monkeypatch.setattr('volo_seg.engine.hooks.console_hook.is_main_process', lambda: False)
    hook = ConsoleHook()
    hook.before_run(None)
    hook.train = Pace(3)
    hook.after_train_iter(None, 0)
    hook.before_val_epoch(types.SimpleNamespace(val_dataloader=types.SimpleNamespace(dataset=range(4))))
    hook.after_val_iter(None, 0, None, [1, 2])
    hook.after_val_epoch(types.SimpleNamespace(_train_loop=None, message_hub=MessageHub('quiet')), {'mIoU': 3.0})
    hook.after_run(None)
    assert hook.train.done == 1 and hook.best == ('mIoU', 3.0, '')
    assert capsys.readouterr().out == ''


def test_the_hook_is_added_once_and_custom_hooks_must_be_a_list():
    config = Config({'custom_hooks': [{'type': 'ContactSheetHook'}]})
    for how, plain in (('live', False), ('plain', True)):
        set_console(config, how=how)
        assert [hook['type'] for hook in config.custom_hooks] == ['ContactSheetHook', 'ConsoleHook']
        assert config.custom_hooks[1]['plain'] is plain
    set_console(config, how='mmengine')
    assert [hook['type'] for hook in config.custom_hooks] == ['ContactSheetHook']
    with pytest.raises(UserError, match='is not a list of hooks'):
        set_console(Config({'custom_hooks': 'EMAHook'}), how='live')


# trackers


def test_trackers_that_are_not_there(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="--log-to 'visdom' is unknown; use one of tensorboard, wandb, mlflow"):
        log_to(Config({}), ['visdom'])
    (tmp_path / 'mlflow').mkdir()  # what a run leaves behind is no package
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, 'mlflow', raising=False)
    with pytest.raises(UserError, match=r"the package mlflow, and it is missing; pip install 'volo-seg\[mlflow\]'"):
        log_to(Config({}), ['mlflow'])


STUBS = {
    'wandb': """
calls = []
class Settings:
    def update(self, content, **options): calls.append(('config', content['train_cfg']['max_iters']))
config = Settings()
def init(**options): calls.append(('init', options['dir']))
def log(content, step): calls.append(('log', step, sorted(content)))
def join(): pass
def finish(): pass
""",
    'mlflow': """
import re
calls = []
class MlflowException(Exception): pass
def log_metrics(content, step):
    bad = [key for key in content if not re.fullmatch(r'[\\w\\-. /]+', key)]
    if bad:
        raise MlflowException(bad)
    calls.append(('log', step, sorted(content)))
def log_params(content): calls.append(('params', content))
def get_experiment_by_name(name): return 1
def set_tracking_uri(uri): calls.append(('uri', uri))
set_experiment = log_text = log_artifact = end_run = lambda *words: None
""",
}


def test_trackers_get_steps_and_classes(data, tmp_path, monkeypatch, capsys):
    """TensorBoard's own file, and what the packages of the other two are called with."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.delenv('MLFLOW_TRACKING_URI', raising=False)
    for tracker, source in STUBS.items():
        (tmp_path / f'{tracker}.py').write_text(source)
        monkeypatch.delitem(sys.modules, tracker, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    classes = "['a','b(parked)','c']"
    options = dict(train_dataloader__dataset__dataset__classes=classes, val_dataloader__dataset__classes=classes)
    flags = ('--log-to', 'tensorboard', 'wandb', 'mlflow')
    runner = tiny.runner(data, tmp_path / 'work', *flags, train_cfg__max_iters=3, **options)
    runner.train()
    events = EventAccumulator(str(Path(runner.log_dir, 'vis_data'))).Reload()
    assert {'train/loss', 'train/lr', 'val/mIoU', 'val/IoU/a', 'val/IoU/c'} <= set(events.Tags()['scalars'])
    lines = [json.loads(line) for line in Path(runner.log_dir, 'vis_data/scalars.json').read_text().splitlines()]
    event = events.Scalars('val/IoU/a')[-1]
    assert event.step == 3 and event.value == pytest.approx(lines[-1]['val/IoU/a'], rel=1e-6)
    for tracker, name in (('wandb', 'b(parked)'), ('mlflow', 'b_parked_')):
        logs = [call for call in sys.modules[tracker].calls if call[0] == 'log']
        assert [step for _, step, _ in logs] == [1, 2, 3, 3]
        assert 'train/loss' in logs[0][2]
        names = {key for key in logs[-1][2] if key.startswith('val/IoU/')}
        assert names == {'val/IoU/a', f'val/IoU/{name}', 'val/IoU/c'}
    assert ('config', 3) in sys.modules['wandb'].calls
    assert ('uri', f'sqlite:///{tmp_path / "work" / "mlflow.db"}') in sys.modules['mlflow'].calls
    assert next(call[1] for call in sys.modules['mlflow'].calls if call[0] == 'params')['train_cfg.max_iters'] == 3


def test_mlflow_server_of_the_environment(tmp_path, monkeypatch):
    (tmp_path / 'mlflow.py').touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, 'mlflow', raising=False)
    monkeypatch.setenv('MLFLOW_TRACKING_URI', 'http://localhost:5000')
    config = Config({'work_dir': 'work'})
    log_to(config, ['mlflow'])
    log_to(config, ['mlflow'])
    local, backend = config.visualizer.vis_backends
    assert local.type == 'LocalVisBackend' and backend.tracking_uri == 'http://localhost:5000'
    assert 'artifact_location' not in backend and backend.tracked_config_keys == ['work_dir']


# contact sheets


def test_a_sheet_at_each_validation(plain_run):
    log_dir, _ = plain_run
    sheets = sorted(path.name for path in (log_dir / 'val_sheets').iterdir())
    assert sheets == ['iter_3.jpg', 'iter_6.jpg']
    one, other = (cv2.imread(str(log_dir / 'val_sheets' / name)) for name in sheets)
    width = one.shape[1] // 3
    assert one.shape == other.shape and width > 300
    assert np.abs(one[60:150, :width].astype(int) - other[60:150, :width]).mean() < 2  # the same images
    assert np.abs(one[60:150, -width:].astype(int) - other[60:150, -width:]).mean() < 2  # and the same truth
    assert np.abs(one[60:150, :width].astype(int) - one[60:150, -width:]).mean() > 20


def test_images_are_spread_over_the_data_set():
    class Images(list):
        def get_data_info(self, index):
            return {'img_path': self[index]}

    assert list(evenly_spread(Images('abcdefghi'), 3).values()) == [0, 4, 8]
    assert list(evenly_spread(Images('ab'), 6)) == ['a', 'b']
    assert evenly_spread(Images('ab'), 1) == {'a': 0}
    assert evenly_spread(range(5), 3) == {} and evenly_spread(Images(), 3) == {}


def test_images_of_all_processes_come_together_in_order(tmp_path, monkeypatch):
    from volo_seg.visualization import make_row

    rows = {name: make_row(name, image=None, labels=(torch.zeros(4, 4), torch.zeros(4, 4))) for name in 'abc'}
    hook, drawn = ContactSheetHook(), []
    hook._wanted, hook._rows = {'a': 0, 'b': 1, 'c': 2}, {'b': rows['b']}
    others = [{'b': rows['b']}, {'c': rows['c'], 'a': rows['a']}]
    monkeypatch.setattr('volo_seg.engine.hooks.contact_sheet_hook.all_gather_object', lambda mine: others)
    monkeypatch.setattr(
        'volo_seg.engine.hooks.contact_sheet_hook.draw_sheet', lambda rows, **_: drawn.extend(rows) or b'jpeg'
    )
    loader = types.SimpleNamespace(dataset=types.SimpleNamespace(metainfo={'classes': ('x',)}))
    runner = types.SimpleNamespace(val_dataloader=loader, _train_loop=None, log_dir=tmp_path)
    hook.after_val_epoch(runner, {'mIoU': 1.0})
    assert [row.name for row in drawn] == ['a', 'b', 'c']
    assert (tmp_path / 'val_sheets' / 'iter_0.jpg').read_bytes() == b'jpeg'
    (tmp_path / 'val_sheets' / 'iter_0.jpg').unlink()
    monkeypatch.setattr('volo_seg.engine.hooks.contact_sheet_hook.is_main_process', lambda: False)
    hook.after_val_epoch(runner, {})
    assert not list((tmp_path / 'val_sheets').iterdir())

"""Ctrl-C and SIGTERM: one line and one status, whatever a command does at that moment, and no process is left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
import yapf.yapflib.yapf_api as formatter

from volo_seg.commands import run


@pytest.fixture(scope='module')
def many(tmp_path_factory):
    """The tiny data with a validation that takes a while."""
    return tiny.make_data(tmp_path_factory.mktemp('tiny') / 'data', val=300)


class Freed:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)


def swallowed():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    except BaseException:
        return


def turned_into_another():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    except BaseException:
        raise SyntaxError('failed to format') from None


def while_an_object_is_freed():
    freed = Freed()
    del freed
    time.sleep(5)


@pytest.mark.parametrize('moment', [swallowed, turned_into_another, while_an_object_is_freed])
def test_what_libraries_make_of_ctrl_c(moment, monkeypatch, capsys):
    before, hook = signal.getsignal(signal.SIGINT), sys.unraisablehook
    monkeypatch.setattr('volo_seg.commands.doctor.main', lambda argv: moment() or 0)
    assert run('doctor', []) == 130
    assert capsys.readouterr().err == '\ninterrupted\n'
    assert signal.getsignal(signal.SIGINT) is before and sys.unraisablehook is hook


def test_ctrl_c_while_the_config_is_formatted(many, tmp_path, monkeypatch, capsys):
    def stop(text, **_):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    monkeypatch.setattr(formatter, 'FormatCode', stop)
    assert run('train', tiny.words(many, tmp_path, '--no-check')) == 130
    err = capsys.readouterr().err
    assert err.endswith('\ninterrupted\n') and 'Traceback' not in err


@pytest.mark.parametrize('delay', [0.6, 2.0, 4.0, 7.0])
def test_ctrl_c_at_any_moment(delay, many, tmp_path):
    """While modules are imported, the run is built, the config is formatted, or it trains."""
    words = tiny.words(many, tmp_path, '--no-check', train_cfg__max_iters=1000, param_scheduler__1__end=1000)
    process = start('train', *words)
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == 'interrupted' or 'SIGINT: training stopped after iteration' in err.splitlines()[-1]
    assert 'Traceback' not in out + err and 'Exception ignored' not in err


def start(*words):
    command = [sys.executable, '-m', 'volo_seg', *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def children(process):
    """The processes that the main thread of ``process`` started."""
    path = Path(f'/proc/{process.pid}/task/{process.pid}/children')
    return path.read_text().split() if path.exists() else []


def is_running(pid):
    try:
        return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='needs /proc')
def test_sigterm_ends_an_evaluation_and_its_data_loading(many, trained, tmp_path):
    words = [word for word in tiny.words(many, tmp_path / 'test') if word not in ('--seed', '7')]
    words[words.index('--cfg-options') :] = [
        '--cfg-options',
        *(word for word in words[words.index('--cfg-options') + 1 :] if not word.startswith(('train', 'param'))),
        'test_dataloader.num_workers=2',
    ]
    process = start('test', words[0], str(trained.checkpoint), *words[1:])
    try:
        end = time.monotonic() + 240
        while len(loaders := children(process)) < 2:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.05)
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 143, err
    assert not list(tmp_path.rglob('metrics.json')), 'the evaluation went on'
    assert not [pid for pid in loaders if is_running(pid)]
    assert err.splitlines()[-1] == 'interrupted' and 'Traceback' not in out + err

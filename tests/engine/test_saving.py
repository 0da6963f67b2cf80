"""Checkpoints on a machine that fails: killed in the middle, disks that are full, folders that cannot be written."""

import errno
import json
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
import torch
from mmengine.hooks import Hook

from volo_seg.checkpoints import load_file
from volo_seg.commands import run
from volo_seg.engine.hooks import checkpoint_hook as saving
from volo_seg.engine.hooks.checkpoint_hook import SaveError, last_checkpoint, remove_parts, write_checkpoint
from volo_seg.engine.hooks.data_record_hook import fingerprint
from volo_seg.engine.hooks.interruption_hook import InterruptionHook
from volo_seg.errors import Interrupted

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def start(data, work, *flags, prefix=(), **changes):
    """Start a training run in a process of its own."""
    command = [*prefix, sys.executable, '-m', 'volo_seg', 'train', *tiny.words(data, work, *flags, **changes)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, 'waited in vain'
        time.sleep(0.0005)


def test_a_kill_in_the_middle_of_a_save_leaves_the_last_good_checkpoint(data, tmp_path):
    work = tmp_path / 'work'
    changes = dict(train_cfg__max_iters=10000, train_cfg__val_interval=20000, param_scheduler__1__end=10000)
    # a large head: writing takes a while
    changes |= dict(model__decode_head__channels=256, default_hooks__checkpoint__max_keep_ckpts=2)
    process = start(data, work, '--no-check', **changes)
    try:
        wait_for(lambda: len(list(work.glob('iter_*.pth'))) >= 2, process)
        wait_for(lambda: list(work.glob('.iter_*.part')), process)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    assert list(work.glob('.iter_*.part')), 'the kill came too late to prove anything'
    checkpoint = last_checkpoint(work)
    reached = load_file(checkpoint)['meta']['iter']
    assert checkpoint.name == f'iter_{reached}.pth' and reached >= 2
    for path in work.glob('iter_*.pth'):
        assert load_file(path)['optimizer']
    changes['train_cfg__max_iters'] = reached + 1
    tiny.runner(data, work, '--resume', **changes).train()
    assert last_checkpoint(work).name == f'iter_{reached + 1}.pth'
    assert not list(work.glob('.iter_*.part'))
    assert json.loads((work / 'run.json').read_text())['status'] == 'finished'


def errors(capsys):
    """Standard error without the warning that the schedule of the tests' config is longer than the run."""
    lines = capsys.readouterr().err.splitlines(keepends=True)
    return ''.join(line for line in lines if not line.startswith('warning: train_cfg.max_iters='))


def test_a_work_dir_has_one_training(data, tmp_path, capsys):
    work, changes = tmp_path / 'work', dict(train_cfg__max_iters=10000, param_scheduler__1__end=10000)
    changes |= dict(train_cfg__val_interval=20000, train_dataloader__num_workers=2)
    process = start(data, work, '--no-check', **changes)
    try:
        wait_for(lambda: (work / 'last_checkpoint').exists(), process)
        before = {path: path.read_bytes() for path in (work / 'tiny.py', work / 'run.json')}
        assert run('train', tiny.words(data, work, '--no-check', train_cfg__max_iters=2)) == 2
        err = errors(capsys)
        told = rf"error: work dir '{work}' is in use by process {process.pid} on .* since .*; wait for its end or give "
        assert re.fullmatch(told + rf"another by --work-dir; if that process is gone, delete '{work}/.*lock'\n", err)
        assert {path: path.read_bytes() for path in before} == before and len(list(work.glob('2*'))) == 1
    finally:
        process.kill()
        process.wait()
    # at once, while the data-loading processes of the killed run still live
    reached = load_file(last_checkpoint(work))['meta']['iter']
    changes['train_cfg__max_iters'] = reached + 1
    assert run('train', tiny.words(data, work, '--no-check', '--resume', **changes)) == 0
    assert last_checkpoint(work).name == f'iter_{reached + 1}.pth' and not (work / '.volo-seg.lock').exists()


def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def kill_half_written(content, file):
    file.write(b'PK' * 1000)
    file.flush()
    kill()


def replacing(name, *, then):
    """``os.replace`` that kills this process before or after the second checkpoint gets to ``name``."""
    real = os.replace

    def replace(source, target):
        second = os.path.basename(target) == name and os.path.exists(f'{os.path.dirname(target)}/iter_1.pth')
        if second and (name == 'iter_2.pth' or os.path.exists(f'{os.path.dirname(target)}/iter_2.pth')):
            if then:
                real(source, target)
            kill()
        real(source, target)

    return replace


def half_of_second():
    """``torch.save`` that kills this process in the middle of the second checkpoint."""
    saves = iter((torch.save, kill_half_written))
    return lambda content, file: next(saves)(content, file)


KILLS = {
    'half written': lambda patch: patch.setattr(torch, 'save', half_of_second()),
    'before it is in place': lambda patch: patch.setattr(os, 'replace', replacing('iter_2.pth', then=False)),
    'after it is in place': lambda patch: patch.setattr(os, 'replace', replacing('iter_2.pth', then=True)),
    'before it is the last': lambda patch: patch.setattr(os, 'replace', replacing('last_checkpoint', then=False)),
    'before the old one goes': lambda patch: patch.setattr(saving.AtomicCheckpointHook, '_delete', kill),
}


@pytest.fixture(scope='module')
def uninterrupted(data, tmp_path_factory):
    work = tmp_path_factory.mktemp('uninterrupted')
    tiny.runner(data, work, **SHORT).train()
    return load_file(work / 'iter_3.pth')


SHORT = dict(train_cfg__max_iters=3, train_cfg__val_interval=100, default_hooks__checkpoint__max_keep_ckpts=1)


@pytest.mark.parametrize('point', KILLS)
def test_a_kill_at_any_point_of_a_save_loses_nothing(point, data, uninterrupted, tmp_path, monkeypatch):
    child = os.fork()
    if child == 0:
        try:
            KILLS[point](monkeypatch)
            tiny.runner(data, tmp_path, **SHORT).train()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert load_file(last_checkpoint(tmp_path))['meta']['iter'] in (1, 2)
    tiny.runner(data, tmp_path, '--resume', **SHORT).train()
    resumed = load_file(tmp_path / 'iter_3.pth')
    for key in ('state_dict', 'optimizer', 'param_schedulers'):
        assert not tiny.differences(resumed[key], uninterrupted[key])
    assert not list(tmp_path.glob('.*'))


class Signal(Hook):
    """Sends this process a signal in the third iteration, or in the first validation."""

    def __init__(self, number, *, validating=False):
        self.number, self.validating = number, validating

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 2 and not self.validating:
            os.kill(os.getpid(), self.number)

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        if self.validating:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(
    'number, status, validating, flags',
    [(signal.SIGTERM, 143, False, ()), (signal.SIGINT, 130, False, ()), (signal.SIGTERM, 143, True, ('--ema', '0.1'))],
)
def test_a_signal_saves_and_stops_and_resuming_loses_nothing(number, status, validating, flags, data, tmp_path):
    changes = dict(default_hooks__checkpoint__interval=100)
    work, handlers = tmp_path / 'work', [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    runner = tiny.runner(data, work, *flags, **changes)
    runner.register_hook(Signal(number, validating=validating))
    with pytest.raises(Interrupted) as caught:
        runner.train()
    assert caught.value.status == status
    told = f'{number.name}: training stopped after iteration 3, which is saved; resume with --resume'
    assert str(caught.value) == told and last_checkpoint(work).name == 'iter_3.pth'
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == handlers
    record = json.loads((work / 'run.json').read_text())
    assert record['status'] == 'interrupted' and record['reason'] == told
    tiny.runner(data, work, '--resume', *flags, **changes).train()
    tiny.runner(data, tmp_path / 'whole', *flags, **changes).train()
    one, other = (load_file(folder / 'iter_6.pth') for folder in (work, tmp_path / 'whole'))
    for key in ('state_dict', 'optimizer', 'param_schedulers', *(['ema_state_dict'] if flags else [])):
        assert not tiny.differences(one[key], other[key])
    best = [load['message_hub']['runtime_info']['best_score'] for load in (one, other)]
    assert best[0] == best[1], 'the validation that was cut short was not made up for'


def test_a_signal_on_a_disk_that_takes_nothing(data, tmp_path, monkeypatch):
    Saves(monkeypatch, failing=['iter_3.pth'])
    runner = tiny.runner(data, tmp_path / 'work', default_hooks__checkpoint__interval=2)
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path / 'elsewhere'))
    runner.register_hook(Signal(signal.SIGTERM))
    with pytest.raises(
        SaveError, match=r"iter_3\.pth cannot be written, and no folder can be made in .*; the last .*iter_2\.pth'"
    ):
        runner.train()


class SignalAll(Hook):
    """Sends SIGTERM to this process and to those that load data, as a cluster does."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 2:
            children = multiprocessing.active_children()
            assert len(children) == 2
            everyone = [str(pid) for pid in (*(child.pid for child in children), os.getpid())]
            for number in ('-TERM', '-INT'):  # by a process that is not the parent, which torch tells apart
                subprocess.run(['kill', number, *everyone], check=True)
            time.sleep(0.3)


def test_a_signal_to_all_processes_saves_too(data, tmp_path):
    runner = tiny.runner(data, tmp_path, train_dataloader__num_workers=2, default_hooks__checkpoint__interval=100)
    runner.register_hook(SignalAll())
    with pytest.raises(Interrupted, match='after iteration 3, which is saved'):
        runner.train()
    assert last_checkpoint(tmp_path).name == 'iter_3.pth'


def test_a_second_ctrl_c_stops_at_once(monkeypatch):
    hook = InterruptionHook()
    hook._listen(signal.SIGINT, None)
    hook._listen(signal.SIGINT, None)  # a launcher repeats it
    monkeypatch.setattr('volo_seg.engine.hooks.interruption_hook._REPEATED_WITHIN', -1.0)
    with pytest.raises(Interrupted, match='stopped immediately'):
        hook._listen(signal.SIGINT, None)


def test_a_command_that_was_interrupted_says_so(monkeypatch, capsys):
    def stop(argv):
        raise Interrupted('SIGTERM: training stopped', signal.SIGTERM)

    monkeypatch.setattr('volo_seg.commands.doctor.main', stop)
    assert run('doctor', []) == 143
    assert capsys.readouterr().err == '\nSIGTERM: training stopped\n'


def test_a_disk_that_takes_no_checkpoint_ends_in_one_sentence(data, tmp_path):
    """Files of at most 256 KiB, here and in the folder for temporary files."""
    runner = tiny.runner(data, tmp_path, train_cfg__max_iters=2)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, before[1]))
    try:
        with pytest.raises(SaveError, match='iter_2.pth.*File too large.*, and the checkpoint .*File too large'):
            runner.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert 'iter_1.pth' in log and 'File too large); training continues and saves again at the next interval' in log
    assert not [path for path in tmp_path.rglob('*') if path.suffix in ('.pth', '.part')]
    record = json.loads((tmp_path / 'run.json').read_text())
    assert (record['status'], record['last_checkpoint']) == ('failed', None)


@pytest.mark.parametrize('folder', ['/proc/volo-seg', '{tmp}/file/work'])
def test_a_work_dir_that_cannot_be_written(folder, data, tmp_path, capsys):
    (tmp_path / 'file').touch()
    assert run('train', tiny.words(data, folder.format(tmp=tmp_path), '--no-check')) == 2
    err = errors(capsys)
    assert re.search(r"error: work dir '.*' cannot be written \(.*\); give another by --work-dir", err)
    assert len(err.strip().splitlines()) == 1


class Saves:
    """Lets some saves fail, and notes what stands in the folder while one is written."""

    def __init__(self, monkeypatch, failing):
        self.failing, self.seen = failing, {}
        self.real = saving.write_checkpoint
        monkeypatch.setattr('volo_seg.engine.runner.write_checkpoint', self.write)

    def write(self, content, path):
        self.seen.setdefault(path.name, sorted(one.name for one in path.parent.glob('*.pth')))
        if path.name in self.failing:
            raise SaveError(f'{path.name} cannot be written')
        self.real(content, path)


def test_the_old_goes_when_the_new_stands(data, tmp_path, monkeypatch):
    saves = Saves(monkeypatch, failing=['iter_3.pth', 'best_mIoU_iter_4.pth'])
    score = iter([1.0, 2.0, 3.0, 0.5])
    monkeypatch.setattr('volo_seg.evaluation.metric.ExactIoUMetric.evaluate', lambda self, size: {'mIoU': next(score)})
    monkeypatch.setattr('volo_seg.engine.hooks.TrainingScoreHook.before_val_epoch', lambda self, runner: None)
    changes = dict(default_hooks__checkpoint__max_keep_ckpts=1, train_cfg__max_iters=5, train_cfg__val_interval=2)
    (tmp_path / saving.RESCUED).write_text('earlier')
    tiny.runner(data, tmp_path, **changes).train()
    assert not (tmp_path / saving.RESCUED).exists()
    first = saves.seen['iter_4.pth']
    assert first == ['best_mIoU_iter_2.pth', 'iter_2.pth'], 'a save that failed cost an older checkpoint'
    assert saves.seen['iter_5.pth'] == ['best_mIoU_iter_2.pth', 'iter_4.pth']
    assert saves.seen['best_mIoU_iter_5.pth'] == ['best_mIoU_iter_2.pth', 'iter_5.pth']
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == ['best_mIoU_iter_5.pth', 'iter_5.pth']
    assert last_checkpoint(tmp_path).name == 'iter_5.pth'
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert 'iter_3.pth cannot be written; training continues' in log
    assert 'best_mIoU_iter_4.pth cannot be written; the previous best checkpoint is kept' in log
    hub = load_file(tmp_path / 'iter_5.pth')['message_hub']['runtime_info']
    assert hub['keep_ckpt_ids'] == [5] and hub['best_score'] == 3.0


def test_a_log_that_cannot_be_written_ends_nothing(data, tmp_path):
    class Full(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            raise FULL

    class Broken(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            raise ConnectionError('a bug')

    runner = tiny.runner(data, tmp_path, train_cfg__max_iters=2)
    runner.register_hook(Full())
    runner.train()
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert log.count('Full could not write (No space left on device); the run continues') == 1
    runner = tiny.runner(data, tmp_path / 'broken', train_cfg__max_iters=2)
    runner.register_hook(Broken())
    with pytest.raises(ConnectionError):
        runner.train()
    assert json.loads((tmp_path / 'broken' / 'run.json').read_text())['status'] == 'failed'


@pytest.mark.parametrize('error', [FULL, RuntimeError('write failed'), KeyboardInterrupt()])
def test_what_stood_there_stays(error, tmp_path, monkeypatch):
    path = tmp_path / 'iter_1.pth'
    write_checkpoint({'a': 1}, path)

    def fail(content, file):
        file.write(b'half')
        raise error

    monkeypatch.setattr(torch, 'save', fail)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else SaveError):
        write_checkpoint({'a': 2}, path)
    assert load_file(path) == {'a': 1} and os.listdir(tmp_path) == ['iter_1.pth']


def test_the_last_checkpoint_is_found_after_a_move_and_only_if_it_is_there(tmp_path):
    assert last_checkpoint(tmp_path) is None
    (tmp_path / 'last_checkpoint').write_text('')
    assert last_checkpoint(tmp_path) is None
    (tmp_path / 'last_checkpoint').write_text('/somewhere/else/iter_3.pth')
    assert last_checkpoint(tmp_path) is None
    (tmp_path / 'iter_3.pth').touch()
    assert last_checkpoint(tmp_path) == tmp_path / 'iter_3.pth'


def test_only_our_own_leftovers_are_removed(tmp_path):
    for name in (
        '.iter_3.pth.part',
        '.best_mIoU_iter_3.pth.0af.part',
        '.last_checkpoint.1.part',
        '.other.part',
        'iter_3.pth',
    ):
        (tmp_path / name).touch()
    remove_parts(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ['.other.part', 'iter_3.pth']


def test_run_json_says_what_was_run(data, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['volo-seg', 'train', 'x'])
    tiny.runner(data, tmp_path, '--deterministic', train_cfg__max_iters=1).train()
    torch.use_deterministic_algorithms(False)
    record = json.loads((tmp_path / 'run.json').read_text())
    assert record == json.loads(next(tmp_path.glob('*/run.json')).read_text())
    assert record['command'] == ['volo-seg', 'train', 'x'] and record['seed'] == 7 and record['deterministic']
    assert record['status'] == 'finished' and record['iterations'] == 1 and record['processes'] == 1
    assert Path(record['last_checkpoint']).is_file() and (tmp_path / record['resolved_config']).is_file()
    assert record['versions']['torch'] == torch.__version__ and record['hardware']['cores'] == os.cpu_count()
    assert record['data']['train']['samples'] == 5 and record['data']['train']['files'] == 10
    checkout = Path(__file__).parents[2]
    head = subprocess.run(['git', '-C', str(checkout), 'rev-parse', 'HEAD'], capture_output=True, text=True)
    assert (record['code'] or {}).get('commit', '') == head.stdout.strip()


def test_the_fingerprint_follows_names_sizes_and_contents(data, tmp_path):
    import shutil

    def taken(root):
        from mmseg.registry import DATASETS

        prefix = dict(img_path='images/train', seg_map_path='annotations/train')
        return fingerprint(DATASETS.build(dict(type='FolderDataset', data_root=str(root), data_prefix=prefix)))

    moved = tmp_path / 'moved'
    shutil.copytree(data, moved)
    before = taken(data)
    os.utime(moved / 'images/train/0.png', (1, 1))
    assert taken(moved) == before
    image = moved / 'images/train/1.png'
    content = bytearray(image.read_bytes())
    content[-20] ^= 1
    image.write_bytes(content)
    assert taken(moved)['content'] != before['content'] and taken(moved)['names'] == before['names']
    for kind in ('images', 'annotations'):
        (moved / kind / 'train/0.png').rename(moved / kind / 'train/7.png')
    assert taken(moved)['names'] != before['names']

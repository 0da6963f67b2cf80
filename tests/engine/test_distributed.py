"""Two processes learn and count what one does; one that fails ends the job in a sentence; the launch scripts."""

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from mmengine.config import Config
from two_processes import RARE, teacher

from volo_seg.checkpoints import load_file
from volo_seg.engine.launch import prepare_launch, set_slurm_environment
from volo_seg.engine.sharding import check_shardable
from volo_seg.errors import UserError

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / 'tools'


def environment(**more):
    path = os.pathsep.join([str(ROOT), str(ROOT / 'tests'), os.environ.get('PYTHONPATH', '')])
    own = dict(PYTHON=sys.executable, PYTHONPATH=path, CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS='1')
    return {**os.environ, **own, **more}


@pytest.fixture(scope='module')
def pair(data, tmp_path_factory):
    """Results of tests/two_processes.py."""
    out = tmp_path_factory.mktemp('pair')
    torchrun = [sys.executable, '-m', 'volo_seg.engine.torchrun', '--nproc_per_node=2', '--standalone']
    command = [*torchrun, str(ROOT / 'tests' / 'two_processes.py'), str(data), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(XDG_CACHE_HOME=str(out)))
    assert done.returncode == 0, done.stderr[-4000:]
    return out


@pytest.fixture(scope='module')
def alone(data, tmp_path_factory):
    """One process with the same batch: its work dir and losses."""
    work = tmp_path_factory.mktemp('alone')
    return work, tiny.train_even(data, work, train_dataloader__batch_size=4)


def weights(path):
    return load_file(path)['state_dict']


@pytest.mark.parametrize('kind', ['ddp', 'fsdp'])
def test_two_processes_learn_what_one_learns(kind, pair, alone):
    work, losses = alone
    both = json.loads((pair / 'losses.json').read_text())[kind]
    assert len(losses) == 4 and len({round(loss, 3) for loss in losses}) == 4
    assert both == pytest.approx(losses, rel=1e-5)
    one, two = weights(work / 'iter_4.pth'), weights(pair / kind / 'iter_4.pth')
    start = weights(work / 'iter_1.pth')
    assert list(one) == list(two)
    for name in one:
        assert type(two[name]) is torch.Tensor
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5, msg=name)
    assert max((one[name] - start[name]).abs().max() for name in one) > 0.01, 'they agree because nothing was learned'


def test_two_processes_draw_rare_classes_as_one_does(pair, data, tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    both = json.loads((pair / 'losses.json').read_text())
    alone = tiny.train_even(data, tmp_path, *RARE, train_dataloader__batch_size=4)
    assert both['rare classes'] == pytest.approx(alone, rel=1e-5)
    assert both['rare classes'] != pytest.approx(both['ddp'], rel=1e-3)


def test_two_processes_learn_from_a_teacher_as_one_does(pair, data, tmp_path):
    both = json.loads((pair / 'losses.json').read_text())
    alone = tiny.train_even(data, tmp_path, *teacher(pair), train_dataloader__batch_size=4)
    assert both['taught'] == pytest.approx(alone, rel=1e-5)
    assert both['taught'][0] > both['ddp'][0] + 0.1


@pytest.mark.parametrize('kind', ['ddp', 'fsdp', 'whole'])
def test_two_processes_count_what_one_counts(kind, pair, data, tmp_path):
    """Also with batch norms ('whole'), whose statistics each process gathers from its own images."""
    config = 'tiny.py' if kind == 'whole' else 'even.py'
    matrix = tiny.test(data, tmp_path, pair / kind / 'iter_4.pth', config=config)
    assert tiny.confusion(pair / kind) == matrix
    assert sum(map(sum, matrix)) == 3 * 32 * 64, 'an image was left out or counted twice'


def test_any_number_of_processes_goes_on_from_shards(pair, data, tmp_path):
    both = json.loads((pair / 'losses.json').read_text())
    assert both['resumed shards'] == pytest.approx(both['fsdp'][2:], rel=1e-5)
    flags = ('--resume', pair / 'fsdp' / 'iter_2.pth')
    losses = tiny.train_even(data, tmp_path, *flags, train_dataloader__batch_size=4)
    assert losses == pytest.approx(both['fsdp'][2:], rel=1e-5)


def test_two_processes_resume_to_the_last_bit(pair):
    """From the middle of an accumulated step, and with batch norms."""
    assert load_file(pair / 'whole' / 'iter_3.pth')['progress']['gradients']
    one, other = (load_file(pair / name / 'iter_4.pth') for name in ('whole', 'resumed'))
    for key in ('state_dict', 'optimizer', 'param_schedulers'):
        assert not tiny.differences(one[key], other[key])


def free_port():
    with socket.socket() as held:
        held.bind(('127.0.0.1', 0))
        return held.getsockname()[1]


def job(data, work, *, kind='none', **changes):
    """Start tools/dist_train.sh with two processes, the second of which may come to grief."""
    imports = "custom_imports = dict(imports=[*_base_.custom_imports.imports, 'misfortune'])"
    text = f"_base_ = './tiny.py'\n{imports}\n"
    (data / f'{kind}.py').write_text(
        f"{text}custom_hooks = [*_base_.custom_hooks, dict(type='Misfortune', kind='{kind}')]\n"
    )
    config, *flags = tiny.words(data, work, '--no-check', config=f'{kind}.py', train_cfg__val_interval=100, **changes)
    return subprocess.Popen(
        ['bash', str(TOOLS / 'dist_train.sh'), config, '2', *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(PORT=str(free_port())),
    )


def test_a_process_that_is_killed_ends_the_job_in_a_sentence(data, tmp_path):
    process = job(data, tmp_path, kind='kill')
    out = process.communicate(timeout=240)[0]
    assert process.returncode == 1, out
    last = out.strip().splitlines()[-1]
    assert last.startswith('error: process 1 was killed (SIGKILL); the system does this when memory runs out; '), out
    assert 'Traceback' not in out and out.count('error:') == 1, out
    record = json.loads((tmp_path / 'run.json').read_text())
    assert record['status'] == 'failed' and record['iterations'] == 2


@pytest.mark.parametrize(
    'kind, sentence',
    [
        ('fail', 'error: a mistake of process 1'),
        ('nan', 'error: training stopped: decode.loss_ce is nan at iteration 4 (.*), the last of 2 in a row, .*'),
    ],
)
def test_an_error_of_one_process_ends_all_with_its_sentence(kind, sentence, data, tmp_path):
    process = job(data, tmp_path, kind=kind, **{'custom_hooks.4.patience': 2})
    out = process.communicate(timeout=240)[0]
    assert process.returncode == 2 and 'Traceback' not in out and out.count('error:') == 1, out
    assert re.fullmatch(sentence, out.strip().splitlines()[-1]), out
    if kind == 'nan':
        images = json.loads((tmp_path / 'non_finite.json').read_text())['images']
        assert len(images) == 2 and all(str(data) in path for path in images)


def test_sigterm_saves_once_and_stops_all(data, tmp_path):
    process = job(data, tmp_path, train_cfg__max_iters=500, default_hooks__checkpoint__interval=1000)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if re.match(r'\d+/500 ', line):
            process.send_signal(signal.SIGTERM)
            break
    out = ''.join(lines) + process.communicate(timeout=240)[0]
    assert process.returncode == 143 and 'Traceback' not in out, out
    step = re.search(r'SIGTERM: training stopped after iteration (\d+), which is saved', out)[1]
    assert [path.name for path in tmp_path.glob('*.pth')] == [f'iter_{step}.pth']
    assert load_file(tmp_path / f'iter_{step}.pth')['progress']['samples'] == 4 * int(step)


def torchrun(tmp_path, code):
    """Run ``code`` in two processes, without our stack."""
    script = tmp_path / 'script.py'
    script.write_text(code)
    command = [sys.executable, '-m', 'volo_seg.engine.torchrun', '--nproc_per_node=2', '--standalone', str(script)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    return done.returncode, done.stderr


WAIT = (
    'import os\nimport torch.distributed as dist\nfrom volo_seg.commands import print_error\n'
    'from volo_seg.errors import PeerLost, UserError\n'
    'def wait():\n'
    '    dist.init_process_group("gloo")\n'
    '    dist.barrier()\n'
    '    if os.environ["RANK"] == "0":\n'
    '        try:\n            dist.barrier()\n'
    '        except RuntimeError:\n            print_error(PeerLost("another process ended"))\n'
    '            raise SystemExit(2)\n'
    'wait()\n'
)


@pytest.mark.parametrize(
    'end, status, sentence',
    [
        ('1 / 0\n', 1, 'error: process 1 failed with status 1; see its message above; the other processes'),
        ('print_error(UserError("a.png is empty"))\nraise SystemExit(2)\n', 2, 'error: a.png is empty'),
    ],
)
def test_the_first_failure_is_told_and_not_its_consequences(end, status, sentence, tmp_path):
    done, err = torchrun(tmp_path, WAIT + end)
    assert done == status and err.splitlines()[-1].startswith(sentence), err
    assert ('ZeroDivisionError' in err) == (status == 1)
    assert 'ChildFailedError' not in err and err.count('error:') == 1, err


def test_a_mistake_that_all_make_is_told_once(tmp_path):
    code = 'from volo_seg.commands import run\nfrom volo_seg.errors import UserError\n'
    code += 'import volo_seg.commands.doctor as doctor\ndef fail(argv):\n    raise UserError("no such thing")\n'
    code += 'doctor.main = fail\nraise SystemExit(run("doctor", []))\n'
    status, err = torchrun(tmp_path, code)
    assert status == 2 and err == 'error: no such thing\n', (status, err)


def stubs(folder, **programs):
    """Programs that say how they were called, first on the PATH."""
    folder.mkdir()
    for name, body in programs.items():
        (folder / name).write_text(f'#!/usr/bin/env bash\n{body}\n')
        (folder / name).chmod(0o755 | stat.S_IXUSR)
    return f'{folder}{os.pathsep}{os.environ["PATH"]}'


def call(script, *arguments, **variables):
    command = ['bash', str(TOOLS / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables})
    return done.returncode, done.stdout.split(), done.stderr


@pytest.mark.parametrize('script, first', [('dist_train.sh', ['C']), ('dist_test.sh', ['C', 'W.pth'])])
def test_command_lines_of_torchrun(script, first, tmp_path):
    path = stubs(tmp_path / 'bin', python='echo "$@"')
    begin = ['-m', 'volo_seg.engine.torchrun']
    door = str(TOOLS / script.replace('dist_', '').replace('.sh', '.py'))
    end = [door, *first, '--launcher', 'pytorch', '--work-dir', 'w']
    status, words, _ = call(script, *first, '2', '--work-dir', 'w', PATH=path)
    one = ['--nnodes=1', '--node_rank=0', '--nproc_per_node=2', '--master_addr=127.0.0.1', '--master_port=29500']
    assert status == 0 and words == [*begin, *one, *end]
    variables = dict(NNODES='3', NODE_RANK='2', MASTER_ADDR='10.0.0.9', PORT='1234')
    many = ['--nnodes=3', '--node_rank=2', '--nproc_per_node=2', '--master_addr=10.0.0.9', '--master_port=1234']
    assert call(script, *first, '2', '--work-dir', 'w', PATH=path, **variables)[1] == [*begin, *many, *end]
    assert call(script, *first, PATH=path)[0] == 2


def test_command_lines_of_slurm(tmp_path):
    """srun starts one torchrun on each of two machines; here, it runs both."""
    srun = 'echo "srun $@"; while [ "$1" != bash ]; do shift; done; for i in 0 1; do SLURM_NODEID=$i "$@"; done'
    path = stubs(tmp_path / 'bin', python='echo "python $@"', srun=srun, scontrol='echo "first"; echo "second"')
    job = dict(SLURM_JOB_NODELIST='[first,second]', SLURM_NNODES='2', SLURM_JOB_ID='41234')
    variables = dict(GPUS='8', GPUS_PER_NODE='4', CPUS_PER_TASK='3', SRUN_ARGS='--time=1:00 --quiet', PATH=path, **job)
    status, words, _ = call('slurm_train.sh', 'P', 'J', 'C', '--amp', **variables)
    told = ' '.join(words)
    wanted = '--gres=gpu:4 --nodes=2 --ntasks=2 --ntasks-per-node=1 --cpus-per-task=12 --kill-on-bad-exit=1'
    assert status == 0 and f'srun -p P --job-name=J {wanted} --time=1:00 --quiet bash' in told
    for rank in (0, 1):
        torchrun = f'--nnodes=2 --node_rank={rank} --nproc_per_node=4 --master_addr=first --master_port=21234'
        assert f'-m volo_seg.engine.torchrun {torchrun} {TOOLS}/train.py C --launcher pytorch --amp' in told
    assert call('slurm_train.sh', 'P', 'J', PATH=path)[0] == 2
    status, _, err = call('slurm_train.sh', 'P', 'J', 'C', GPUS='6', GPUS_PER_NODE='4', PATH=path)
    assert status == 2 and err.startswith('error: GPUS=6 is no multiple of GPUS_PER_NODE=4')


def test_slurm_speaks_to_torch(tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', stubs(tmp_path / 'bin', scontrol='echo "first"; echo "second"'))
    for key, value in dict(PROCID='3', NTASKS='4', LOCALID='1', JOB_NODELIST='[first,second]').items():
        monkeypatch.setenv(f'SLURM_{key}', value)
    for key in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT'):
        monkeypatch.setenv(key, '')
        monkeypatch.delenv(key)
    set_slurm_environment()
    told = [os.environ[key] for key in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')]
    assert told == ['3', '4', '1', 'first', '29500']


@pytest.mark.parametrize(
    'launcher, sentence', [('pytorch', 'needs torchrun'), ('slurm', 'needs srun'), ('mpi', 'needs mpirun')]
)
def test_launchers_outside_of_themselves(launcher, sentence, monkeypatch):
    for key in ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK'):
        monkeypatch.delenv(key, raising=False)
    with pytest.raises(UserError, match=sentence):
        prepare_launch(Config({}), launcher, 0)


@pytest.mark.parametrize(
    'config, sentence',
    [
        (dict(launcher='none'), 'tools/dist_train.sh CONFIG GPUS --fsdp'),
        (dict(launcher='pytorch', optim_wrapper=dict(type='AmpOptimWrapper')), 'use --amp bf16'),
        (dict(launcher='pytorch', optim_wrapper=dict(type='AutocastOptimWrapper', dtype='float16')), 'use --amp bf16'),
    ],
)
def test_what_cannot_be_sharded(config, sentence):
    with pytest.raises(UserError, match=sentence):
        check_shardable(Config(config), [])


def test_averaged_weights_cannot_be_sharded():
    from volo_seg.engine.hooks import AveragedWeightsHook

    with pytest.raises(UserError, match='averaged weights'):
        check_shardable(Config(dict(launcher='pytorch')), [AveragedWeightsHook()])

"""The commands as a user runs them: the whole way on a small Toyscapes, then every mistake."""

import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny
import torch

from volo_seg.commands import main, run

NANO = 'volo-nano_upernet_1xb4-1200_toyscapes-256x256'
SMALL = tiny.pairs_of(tiny.small_options(64))
NUMBERS = itertools.count()


def volo_seg(*words, cwd):
    """Run one command in a process of its own; return (status, stdout, stderr)."""
    done = subprocess.run([sys.executable, '-m', 'volo_seg', *map(str, words)], capture_output=True, text=True, cwd=cwd)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope='module')
def trained_here(toyscapes, tmp_path_factory):
    """The work dir of three iterations on Toyscapes, trained by the command in a process of its own."""
    folder = tmp_path_factory.mktemp('run')
    options = (*SMALL, 'train_cfg.max_iters=3', 'train_cfg.val_interval=3', 'default_hooks.logger.interval=1')
    words = ('train', NANO, '--work-dir', folder / 'work', '--data-root', toyscapes, '--cfg-options', *options)
    status, out, err = volo_seg(*words, cwd=folder)
    assert status == 0, err
    assert 'mIoU' in out + err
    return folder / 'work'


@pytest.fixture(scope='module')
def checkpoint(trained_here):
    return (trained_here / 'last_checkpoint').read_text().strip()


def test_labels_and_splits_are_written(toyscapes):
    labels = sorted((toyscapes / 'gtFine').rglob('*_labelTrainIds.png'))
    assert len(labels) == 6
    assert set(np.unique(np.stack([cv2.imread(str(p), -1) for p in labels]))) <= {*range(19), 255}
    assert len((toyscapes / 'train.txt').read_text().split()) == 4
    assert not list(toyscapes.rglob('.*.png'))


def test_test_command_writes_metrics_and_predictions(toyscapes, checkpoint, tmp_path):
    out = tmp_path / 'predictions'
    words = ('test', NANO, checkpoint, '--work-dir', tmp_path / 'work', '--data-root', toyscapes, '--out', out)
    status, stdout, err = volo_seg(*words, '--cfg-options', *SMALL, cwd=tmp_path)
    assert status == 0, err
    metrics = json.loads(next((tmp_path / 'work').rglob('metrics.json')).read_text())
    assert f'mIoU {metrics["mIoU"]:.2f}' in stdout
    predictions = sorted(out.rglob('*.png'))
    assert len(predictions) == 2
    # the metric recomputed from the files that were written
    matrix = np.zeros((19, 19), np.int64)
    for path in predictions:
        name = path.name.replace('_leftImg8bit', '')
        truth = cv2.imread(
            str(next((toyscapes / 'gtFine/val').rglob(name.replace('.png', '_gtFine_labelTrainIds.png')))), -1
        )
        seen = truth != 255
        np.add.at(matrix, (truth[seen], cv2.imread(str(path), -1)[seen]), 1)
    assert metrics['confusion_matrix'] == matrix.tolist()


def call(command, *words, options):
    """Run one command in this process, with a visualizer of its own."""
    options = (*options, f'visualizer.name=commands{next(NUMBERS)}')
    return run(command, [str(word) for word in (*words, '--cfg-options', *options)])


def test_tta(toyscapes, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = (NANO, checkpoint, '--work-dir', tmp_path, '--data-root', toyscapes, '--tta', '--show-dir', 'shown')
    assert call('test', *words, options=SMALL) == 0
    assert 'mIoU' in capsys.readouterr().out
    assert len(list(tmp_path.rglob('shown/**/*.png'))) == 2


def test_resume_goes_on(toyscapes, trained_here, tmp_path):
    options = (*SMALL, 'train_cfg.max_iters=4', 'train_cfg.val_interval=4', 'default_hooks.logger.interval=1')
    words = (NANO, '--work-dir', tmp_path, '--data-root', toyscapes, '--resume', trained_here / 'iter_3.pth')
    assert call('train', *words, options=options) == 0
    log = next(tmp_path.glob('2*/*.log')).read_text()
    assert 'Iter(train) [4/4]' in log
    assert 'Iter(train) [3/4]' not in log


def test_amp_on_cpu(toyscapes, tmp_path):
    options = (*SMALL, 'train_cfg.max_iters=1', 'train_cfg.val_interval=1')
    words = (NANO, '--work-dir', tmp_path, '--data-root', toyscapes, '--amp')
    assert call('train', *words, options=options) == 0
    if not torch.cuda.is_available():
        assert 'AutocastOptimWrapper' in next(tmp_path.glob('2*/*.log')).read_text()


def test_flops(capsys):
    assert run('flops', [NANO, '--shape', '64', '96']) == 0
    out = capsys.readouterr().out
    assert 'backbone' in out and '64x96' in out
    assert run('flops', [NANO, '--shape', '1', '2', '3']) == 2
    assert '--shape [1, 2, 3] is not one side' in capsys.readouterr().err


def test_flops_of_d1_agree_with_the_published_count(capsys):
    """44.2 GMAC of the d1 backbone at 512x512, as computed from the published code."""
    narrow = ['--cfg-options', 'model.decode_head.channels=16', 'model.auxiliary_head.channels=16']
    assert run('flops', ['volo-d1_upernet_8xb2-160k_ade20k-512x512', '--shape', '512', *narrow]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith('backbone'))
    assert float(row.split()[2]) == pytest.approx(44.2, abs=0.3)


def test_doctor(capsys):
    assert run('doctor', []) == 0
    out = capsys.readouterr().out
    for word in (
        'volo-seg',
        'python',
        'torch',
        'onedl-mmsegmentation',
        'mmcv compiled ops',
        'device',
        'no problem found',
    ):
        assert word in out
    for name in ('eager', 'torch_impl'):
        assert re.search(rf'outlook {name} +float32: passed, error \d.\de-0[67], \d+ ms', out)
    assert re.search('outlook fused +not checked: it needs a GPU and triton', out) or torch.cuda.is_available()
    assert len(out.splitlines()) < 40


def test_doctor_finds_an_implementation_that_is_wrong(monkeypatch):
    from volo_seg.commands import doctor
    from volo_seg.ops import functional

    right = functional.outlook_attention_eager
    monkeypatch.setattr(functional, 'outlook_attention_eager', lambda v, *rest: right(v * 1.01, *rest))
    assert 'float32: WRONG, error' in doctor.check_on_cpu('eager')
    assert 'float32: passed' in doctor.check_on_cpu('torch_impl')


def test_doctor_names_what_cannot_be_imported(monkeypatch, capsys):
    from volo_seg.commands import doctor

    broken = {'mmcv': 'RuntimeError: built for another torch', 'timm': 'OSError: libcudart'}
    monkeypatch.setattr(doctor, 'why_broken', lambda module: broken.get(module, ''))
    assert run('doctor', []) == 1
    out = capsys.readouterr().out
    assert 'PROBLEM: import mmcv fails: RuntimeError: built for another torch; reinstall it' in out
    assert 'broken, and ignored by all commands: OSError: libcudart' in out and 'outlook eager' not in out
    monkeypatch.undo()
    assert doctor.why_broken('no_such_module_anywhere').startswith('ModuleNotFoundError')


def test_doctor_names_rivals(monkeypatch, capsys):
    from volo_seg.commands import doctor

    installed = doctor.version_of
    monkeypatch.setattr(doctor, 'version_of', lambda name: '1.2.2' if name == 'mmsegmentation' else installed(name))
    assert run('doctor', []) == 1
    assert 'mmsegmentation and onedl-mmsegmentation are both installed' in capsys.readouterr().out


def test_front_door(capsys):
    assert main([]) == 0
    assert 'train' in capsys.readouterr().out
    assert main(['trian']) == 2
    assert "'trian' is not a command" in capsys.readouterr().err
    assert main(['--version']) == 0


def mistakes(toyscapes, checkpoint, tmp_path):
    """(words of a command, what its one sentence must say)"""
    broken = tmp_path / 'broken.py'
    broken.write_text('model = dict(\n')
    other = tmp_path / 'other.pth'
    torch.save({'state_dict': {'some.weight': torch.zeros(3)}}, other)
    data = ('--data-root', toyscapes, '--work-dir', tmp_path / 'work')
    many = ('--cfg-options', 'model.decode_head.num_classes=7', 'model.auxiliary_head.num_classes=7')
    unlabelled = tmp_path / 'unlabelled'
    for folder in ('leftImg8bit/train', 'leftImg8bit/val', 'gtFine/train', 'gtFine/val'):
        (unlabelled / folder).mkdir(parents=True)
        (unlabelled / folder / 'a_leftImg8bit.png').touch()
    folders = tmp_path / 'folders.py'
    folders.write_text(f'_base_ = {base_files("folders")!r}\n')
    nameless = tmp_path / 'nameless'
    for folder in ('images', 'annotations'):
        (nameless / folder / 'train').mkdir(parents=True)
    return {
        'no such config': (
            ('train', 'volo-d1_upernet_8xb2-160k_ade20k'),
            'did you mean volo-d1_upernet_8xb2-160k_ade20k',
        ),
        'config that does not parse': (('train', broken), 'cannot be read: SyntaxError'),
        'config of another kind': (('train', other), "ends in '.pth'"),
        'option without =': (('train', NANO, '--cfg-options', 'max_iters'), "'max_iters' is not of the form key=value"),
        'no data root': (('train', NANO, '--data-root', tmp_path / 'none'), 'does not exist; give the right folder'),
        'no labelTrainIds': (('train', NANO, '--data-root', unlabelled), 'run tools/dataset_converters/cityscapes.py'),
        'wrong data layout': (('train', NANO, '--data-root', tmp_path), "leftImg8bit/train' (train_dataloader.dataset"),
        'class count of the data': (('train', NANO, *data, *many), 'num_classes=7, but train_dataloader.dataset'),
        'nothing to resume': (('train', NANO, *data, '--resume'), 'holds no checkpoint to resume from'),
        'no file to resume': (('train', NANO, *data, '--resume', 'none.pth'), "--resume 'none.pth' is not a file"),
        'no checkpoint': (('test', NANO, tmp_path / 'none.pth', *data), 'none.pth'),
        'checkpoint of another model': (('test', NANO, other, *data), 'belongs to another model'),
        'batch of one': (
            ('train', NANO, *data, '--cfg-options', 'train_dataloader.batch_size=1'),
            'train_dataloader.batch_size=1 is too small for batch norm',
        ),
        'launcher outside torchrun': (('train', NANO, *data, '--launcher', 'pytorch'), 'tools/dist_train.sh'),
        'no class names': (('train', folders, '--data-root', nameless), 'class names are missing'),
        'no polygons': (('cityscapes', tmp_path), "gtFine' does not exist"),
        'no annotations': (('cityscapes', unlabelled), 'holds no *_polygons.json'),
        'processes': (('cityscapes', toyscapes, '--nproc', '0'), '--nproc 0'),
        'device': (
            ('infer', NANO, checkpoint, toyscapes, '--out-dir', tmp_path / 'o', '--device', 'tpu9'),
            "device 'tpu9'",
        ),
    }


def base_files(data):
    from volo_seg.config.load import config_root

    base = config_root() / 'configs' / '_base_'
    names = ('models/upernet_volo.py', f'datasets/{data}.py', 'schedules/adamw_demo.py', 'default_runtime.py')
    return [str(base / name) for name in names]


NAMES = (
    'no such config',
    'config that does not parse',
    'config of another kind',
    'option without =',
    'no data root',
    'no labelTrainIds',
    'wrong data layout',
    'class count of the data',
    'nothing to resume',
    'no file to resume',
    'no checkpoint',
    'checkpoint of another model',
    'batch of one',
    'launcher outside torchrun',
    'no class names',
    'no polygons',
    'no annotations',
    'processes',
    'device',
)


@pytest.mark.parametrize('name', NAMES)
def test_mistakes_get_one_sentence(name, toyscapes, checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('RANK', raising=False)
    cases = mistakes(toyscapes, checkpoint, tmp_path)
    assert set(cases) == set(NAMES)
    (command, *words), expected = cases[name]
    options = [] if command not in ('train', 'test') else ['--cfg-options', f'visualizer.name={name.replace(" ", "_")}']
    words = [str(word) for word in words]
    if '--cfg-options' in words:
        options = options[1:]
        words += options
    else:
        words += options
    assert run(command, words) == 2
    err = capsys.readouterr().err
    assert expected in err
    assert err.startswith('error: ') and err.count('\n') == 1, err


@pytest.mark.parametrize('workers', [0, 1])
def test_broken_image_is_named_during_training(toyscapes, tmp_path, capfd, workers):
    data = tmp_path / 'data'
    shutil.copytree(toyscapes, data)
    victim = sorted((data / 'leftImg8bit/train').rglob('*.png'))[0]
    victim.write_bytes(victim.read_bytes()[:100])
    options = (*SMALL, f'train_dataloader.num_workers={workers}', 'train_cfg.max_iters=4', 'train_cfg.val_interval=4')
    words = (NANO, '--work-dir', tmp_path / 'work', '--data-root', data, '--no-check')
    assert call('train', *words, options=options) == 2
    err = capfd.readouterr().err
    last = err.strip().splitlines()[-1]
    assert last.startswith('error: image') and f'{victim.name!r}'[1:] + ' is damaged or cut off' in last
    assert last.endswith('replace the file, or remove it from the data') and 'Traceback' not in err


def test_wrong_class_count_of_a_checkpoint(toyscapes, checkpoint, tmp_path, capsys, monkeypatch):
    from volo_seg.checkpoints import load_file

    content = load_file(checkpoint)
    for key in list(content['state_dict']):
        if 'conv_seg' in key:
            content['state_dict'][key] = content['state_dict'][key][:7].clone()
    torch.save({'state_dict': content['state_dict']}, tmp_path / 'seven.pth')
    images = str(toyscapes / 'leftImg8bit/val')
    assert run('infer', [NANO, str(tmp_path / 'seven.pth'), images, '--out-dir', str(tmp_path / 'out')]) == 2
    err = capsys.readouterr().err
    assert '7 classes' in err and '19' in err


def test_tools_are_the_same_commands(tmp_path):
    tools = Path(__file__).parents[2] / 'tools'
    done = subprocess.run(
        [sys.executable, str(tools / 'train.py'), 'nothing.py'], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: config 'nothing.py'")


@pytest.mark.parametrize(
    'words',
    [
        ('export', 'x.py', 'none', '{file}/a.onnx'),
        ('browse', 'x.py', '{file}/a'),
        ('check', 'x.py', '--class-weights', 'inverse', '--weights-file', '{file}/a.json'),
        ('benchmark', 'x.py', '--json', '{file}/a.json'),
        ('publish', 'x.py', 'none.pth', '{file}/a'),
        ('volo2mmseg', 'none.pth', '{file}/a.pth'),
        ('report', '.', '--out', '{file}/a.html'),
        ('analyze_logs', 'none', '--out', '{file}/a.png'),
        ('submit', 'none', '{file}/a.zip', '--dataset', 'ade20k'),
        ('eval', 'none', 'none', '--dataset', 'ade20k', '--out-dir', '{file}/a'),
        ('infer', 'none.pth', 'none.png', '--out-dir', '{file}/a'),
        ('raster', 'x.py', 'none.pth', 'none.tif', '{file}/a.tif'),
    ],
    ids=lambda words: words[0],
)
def test_a_destination_is_tried_first(words, tmp_path, capsys):
    """Before anything that is named beside it, none of which is there."""
    (tmp_path / 'file').touch()
    assert run(words[0], [word.format(file=tmp_path / 'file') for word in words[1:]]) == 2
    err = capsys.readouterr().err
    assert (
        re.search(r"^error: .*'.*/file(/a|/a\.tif)?' cannot be written \(Not a directory\); ", err)
        and err.count('\n') == 1
    )
    assert [path.name for path in tmp_path.iterdir()] == ['file']

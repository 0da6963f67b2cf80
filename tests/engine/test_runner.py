"""The runner where MMEngine's users expect its own: validation alone, scaled rates, storage backends, other classes."""

import json
import re
import subprocess
import sys
from collections import Counter

import pytest
import tiny
import torch
from mmengine.fileio import BaseStorageBackend, LocalBackend, register_backend
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import DefaultScope
from torch import nn

from volo_seg.checkpoints import load_file
from volo_seg.errors import UserError

SHORT = dict(train_cfg__max_iters=2, train_cfg__val_interval=2, default_hooks__checkpoint__interval=2)


def test_validation_without_training(data, tmp_path):
    started = tiny.runner(data, tmp_path)
    assert 'mIoU' in started.val()
    assert not list(tmp_path.glob('*.pth'))


def test_rates_of_several_optimizers_are_scaled(data, tmp_path):
    started = tiny.runner(data, tmp_path)  # two images a batch
    started.cfg = type(started.cfg)()
    wrappers = {
        name: OptimWrapper(torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.5), accumulative_counts=count)
        for name, count in (('one', 1), ('two', 4))
    }
    started.scale_lr(OptimWrapperDict(**wrappers), dict(enable=True, base_batch_size=4))
    assert [wrapper.get_lr()['lr'] for wrapper in wrappers.values()] == [[0.25], [1.0]]


def test_the_folder_for_checkpoints_is_made(data, tmp_path):
    place = tmp_path / 'other' / 'disk'
    tiny.train(data, tmp_path / 'work', default_hooks__checkpoint__out_dir=place, **SHORT)
    assert {'iter_2.pth', 'best_mIoU_iter_2.pth'} <= {path.name for path in (place / 'work').iterdir()}
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match=r"checkpoint.out_dir '.*/file/work' cannot be written \(Not a directory\)"):
        tiny.train(data, tmp_path / 'work', default_hooks__checkpoint__out_dir=tmp_path / 'file', **SHORT)


class Mirror(BaseStorageBackend):
    """A storage backend for local paths; ``put_paths`` are the files that it wrote."""

    put_paths = []

    def __getattr__(self, name):
        return getattr(LocalBackend(), name)

    def get(self, filepath):
        return LocalBackend().get(filepath)

    def get_text(self, filepath):
        return LocalBackend().get_text(filepath)

    def put(self, content, filepath):
        self.put_paths.append(filepath)
        LocalBackend().put(content, filepath)


def test_the_backend_of_local_checkpoints_is_used(data, tmp_path, monkeypatch):
    register_backend('mirror', Mirror, force=True)
    monkeypatch.setattr(Mirror, 'put_paths', [])
    tiny.train(data, tmp_path, default_hooks__checkpoint__backend_args__backend='mirror', **SHORT)
    assert {path.rsplit('/', 1)[1] for path in Mirror.put_paths} == {'iter_2.pth', 'best_mIoU_iter_2.pth'}
    assert load_file(tmp_path / 'iter_2.pth')['meta']['iter'] == 2


def test_a_log_folder_that_is_moved_is_left_empty(data, tmp_path):
    changes = dict(default_hooks__logger__out_dir=tmp_path / 'logs', default_hooks__logger__keep_local=False)
    started = tiny.runner(data, tmp_path / 'work', **SHORT, **changes)
    started.train()
    left = [path.name for path in (tmp_path / 'work' / started.timestamp).rglob('*') if path.is_file()]
    assert not [name for name in left if name.endswith(('.json', '.log', '.py', 'yaml'))]
    record = json.loads((tmp_path / 'logs' / 'work' / 'run.json').read_text())
    assert record['status'] == 'finished' and record == json.loads((tmp_path / 'work' / 'run.json').read_text())


def test_fine_tuning_starts_layers_of_another_class_count_anew(data, trained, tmp_path):
    before = load_file(trained.work_dir / 'iter_6.pth')['state_dict']
    classes = {
        f'{split}_dataloader.dataset.{part}classes': '[a,b,c,d]' for split, part in (('train', 'dataset.'), ('val', ''))
    }
    changes = dict(load_from=trained.work_dir / 'iter_6.pth', optim_wrapper__optimizer__lr=0, **SHORT, **classes)
    tiny.train(data, tmp_path / 'work', **changes)
    after = load_file(tmp_path / 'work' / 'iter_2.pth')['state_dict']
    anew = [f'{head}.conv_seg.{kind}' for head in ('decode_head', 'auxiliary_head') for kind in ('weight', 'bias')]
    assert all(len(after[name]) == 4 and len(before[name]) == 3 for name in anew)
    parameters = [name for name in before if name not in anew and 'running' not in name and 'num_batches' not in name]
    assert len(parameters) > 50 and all(torch.equal(before[name], after[name]) for name in parameters)
    log = next((tmp_path / 'work').glob('*/*.log')).read_text()
    for head in ('decode_head', 'auxiliary_head'):
        assert f'3 classes at {head}.conv_seg, this model has 4; the layer starts with new weights' in log
    parts = Counter(name.partition('.')[0] for name in before if name not in anew)
    told = f'{len(before) - 4} of {len(before)} tensors were loaded ({", ".join(f"{p} {n}" for p, n in parts.items())})'
    assert f'{told}; these start anew: ' in log
    assert set(log.partition('these start anew: ')[2].splitlines()[0].split(', ')) == set(anew)
    assert 'has the classes' not in log  # the class lists, which differ for sure
    with pytest.raises(UserError, match='3 classes at decode_head.conv_seg, this model has 4'):
        tiny.runner(data, tmp_path / 'resumed', '--resume', trained.work_dir / 'iter_6.pth', **SHORT, **classes).train()


def test_class_list_of_a_checkpoint_is_compared_with_that_of_the_data(data, trained, tmp_path):
    checkpoint = trained.work_dir / 'iter_6.pth'
    both = "has the classes 0 'a', 1 'b', 2 'c', but the data set has 0 'a', 1 'c', 2 'b'"

    def changes(names):
        parts = (('train', 'dataset.'), ('val', ''), ('test', ''))
        return {f'{split}_dataloader.dataset.{part}classes': names for split, part in parts}

    with pytest.raises(UserError, match=re.escape(both)):
        tiny.runner(data, tmp_path / 'test', **SHORT, load_from=checkpoint, **changes('[a,c,b]')).test()
    with pytest.raises(UserError, match=re.escape(both)):
        tiny.runner(data, tmp_path / 'resumed', '--resume', checkpoint, **SHORT, **changes('[a,c,b]')).train()
    tiny.train(data, tmp_path / 'tuned', load_from=checkpoint, **SHORT, **changes('[a,c,b]'))
    assert both in next((tmp_path / 'tuned').glob('*/*.log')).read_text()
    tiny.train(data, tmp_path / 'same', load_from=checkpoint, **SHORT)
    assert 'has the classes' not in next((tmp_path / 'same').glob('*/*.log')).read_text()


def test_mixed_precision_of_mmengine_needs_a_gpu(data, tmp_path, monkeypatch):
    monkeypatch.setattr('volo_seg.engine.launch.get_device', lambda: 'cpu')
    with pytest.raises(UserError, match='optim_wrapper.type=AmpOptimWrapper needs a GPU.* use --amp bf16'):
        tiny.runner(data, tmp_path, optim_wrapper__type='AmpOptimWrapper')
    tiny.runner(data, tmp_path, '--amp', 'bf16', optim_wrapper__type='AmpOptimWrapper')


@pytest.mark.parametrize('encoding', ['cp1252', 'ascii'])
def test_characters_that_stdout_does_not_have_end_no_command(encoding):
    code = 'import sys; from volo_seg import commands; from volo_seg.commands import doctor\n'
    code += 'doctor.main = lambda argv: print("f\\u00fcr \\u4e2d\\udcff") or 0\nsys.exit(commands.main(["doctor"]))'
    environment = {'PYTHONIOENCODING': encoding, 'PATH': '/usr/bin'}
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(b'\\u4e2d\\udcff\n')


def test_a_run_of_another_scope_does_not_disturb_the_next_one(data, tmp_path):
    DefaultScope.get_instance('a run of MMEngine', scope_name='mmengine')
    assert 'mIoU' in tiny.runner(data, tmp_path).val()

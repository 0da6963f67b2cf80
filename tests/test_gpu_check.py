"""``make gpu-check``: its report, and machines without a GPU."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture
def gpu_check(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'benchmarks'))
    spec = importlib.util.spec_from_file_location('gpu_check', ROOT / 'benchmarks/gpu_check.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_a_gpu(gpu_check, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert gpu_check.main() == 1
    error = capsys.readouterr().err
    assert error.startswith('error: this torch finds no GPU') and error.count('\n') == 1
    assert not list(tmp_path.iterdir())


def test_the_report_holds_all_parts_and_names_those_that_fail(gpu_check, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    parts = {
        'first': ['-c', 'print("a table")'],
        'second': ['-c', 'import sys; print("a reason", file=sys.stderr); sys.exit(3)'],
        'third': ['-c', 'print("another table")'],
    }
    monkeypatch.setattr(gpu_check, 'PARTS', parts)
    assert gpu_check.main() == 1
    assert 'failed: second' in capsys.readouterr().out
    report = (tmp_path / 'gpu-check.txt').read_text()
    for text in ('## first: exit status 0', 'a table', '## second: exit status 3', 'a reason', 'another table'):
        assert text in report
    monkeypatch.setattr(gpu_check, 'PARTS', {'first': parts['first']})
    assert gpu_check.main() == 0


def test_the_parts_exist(gpu_check):
    for arguments in gpu_check.PARTS.values():
        assert arguments[0] == '-m' or (Path(arguments[0]).is_file() and '--device' in arguments)


def test_the_training_step_runs(gpu_check, monkeypatch, capsys):
    """The benchmark that builds networks from shipped configs."""
    monkeypatch.setitem(sys.modules, '_peers', ModuleType('_peers'))  # what it imports it for is in conftest
    monkeypatch.delitem(sys.modules, 'training_step', raising=False)
    importlib.import_module('training_step').main(['--quick', '--rounds', '1'])
    assert re.search(r'step of volo-nano, .* \| ours \|', capsys.readouterr().out)

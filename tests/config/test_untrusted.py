"""A config that came along with weights builds networks and does nothing else."""

import copy

import pytest

import volo_seg.models  # noqa: F401  (registers what the shipped configs name)
from volo_seg.config.load import load_config, shipped_configs
from volo_seg.config.untrusted import described_network
from volo_seg.errors import UserError


@pytest.fixture
def content():
    return load_config('volo-nano_upernet_1xb4-600_toyscapes-256x256').to_dict()


def test_every_shipped_config_passes():
    names = list(shipped_configs())
    assert len(names) > 10
    for name in names:
        whole = load_config(name).to_dict()
        taken = described_network(whole, name='weights.pth')
        assert taken.model.decode_head.to_dict() == whole['model']['decode_head']
        assert 'init_cfg' not in taken.model.backbone
        assert set(taken) == {'default_scope', 'model', 'test_dataloader'}


@pytest.mark.parametrize(
    'kind', ['subprocess.Popen', 'os.system', 'mmseg.VPD', 'VPD', 'torch.nn.Identity', 'LoggerHook', 7, None]
)
@pytest.mark.parametrize('deep', [False, True])
def test_other_types_are_refused(content, kind, deep):
    place = content['model']['backbone']
    if deep:
        place['further'] = [{'list': ({'type': kind},)}]
    else:
        place['type'] = kind
    with pytest.raises(UserError, match=r'weights\.pth asks for model\.backbone\..*refused'):
        described_network(content, name='weights.pth')


def test_a_step_of_the_pipeline_is_looked_at_too(content):
    content['test_dataloader']['dataset']['pipeline'].append({'type': 'shutil.rmtree', 'path': '/'})
    with pytest.raises(UserError, match=r'pipeline\.\d+\.type=.shutil\.rmtree'):
        described_network(content, name='weights.pth')


def test_another_scope_is_refused(content):
    content['model']['decode_head']['_scope_'] = 'elsewhere'
    with pytest.raises(UserError, match=r'_scope_=.elsewhere'):
        described_network(content, name='weights.pth')


def test_nothing_that_reads_or_imports_is_taken_over(content):
    content['model']['pretrained'] = '/etc/passwd'
    content['model']['decode_head']['init_cfg'] = {'type': 'Pretrained', 'checkpoint': '/etc/passwd'}
    content['custom_imports'] = {'imports': ['antigravity']}
    content['custom_hooks'] = [{'type': 'subprocess.Popen'}]
    before = copy.deepcopy(content)
    taken = described_network(content, name='weights.pth')
    assert 'passwd' not in str(taken) and 'antigravity' not in str(taken)
    assert content == before


@pytest.mark.parametrize('missing', ['model', 'test_dataloader'])
def test_missing_parts(content, missing):
    del content[missing]
    with pytest.raises(UserError, match=f'has no {missing}: give the config'):
        described_network(content, name='weights.pth')


def test_missing_pipeline(content):
    content['test_dataloader'] = {'dataset': {}}
    with pytest.raises(UserError, match=r'has no test_dataloader\.dataset\.pipeline: give the config file'):
        described_network(content, name='weights.pth')

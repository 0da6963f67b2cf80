"""Whatever reads a file because a config names it: MMEngine, torch.hub, timm, the losses. No pickle runs its code."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.fileio import load as mmengine_load
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mmengine_checkpoint

import volo_seg.models  # noqa: F401
from volo_seg.checkpoints import mmengine_loaders
from volo_seg.checkpoints.mmengine_loaders import address, forbid_unpickling
from volo_seg.commands import run
from volo_seg.config.checks import check_config, named_weights
from volo_seg.config.load import load_config
from volo_seg.config.losses import read_class_weights
from volo_seg.errors import UserError

NANO = 'volo-nano_upernet_1xb4-1200_toyscapes-256x256'


class Payload:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.fixture
def hostile(tmp_path):
    """A weights file whose pickle makes the folder ``ran``, and a pickle that does the same."""
    torch.save({'state_dict': {'weight': torch.ones(1)}, 'x': Payload(tmp_path / 'ran')}, tmp_path / 'w.pth')
    (tmp_path / 'w.pkl').write_bytes(pickle.dumps(Payload(tmp_path / 'ran')))
    yield tmp_path
    assert not (tmp_path / 'ran').exists()


@pytest.fixture
def safe(monkeypatch):
    """A process in which unpickling is forbidden, until the test ends."""
    from mmengine.fileio.handlers import registry_utils

    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '0')
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    monkeypatch.setattr(registry_utils, 'file_handlers', registry_utils.file_handlers)
    before = dict(registry_utils.file_handlers)
    forbid_unpickling()
    yield
    registry_utils.file_handlers.clear()
    registry_utils.file_handlers.update(before)


def sentence(what, *arguments, **keywords):
    with pytest.raises(UserError) as caught:
        what(*arguments, **keywords)
    message = str(caught.value)
    assert '\n' not in message and len(message) < 700
    return message


# --- loading by others


def test_importing_volo_seg_changes_nothing():
    code = (
        'import os, volo_seg, volo_seg.checkpoints, volo_seg.config.checks, volo_seg.inference\n'
        'from mmengine.runner import CheckpointLoader\n'
        "assert 'TORCH_FORCE_WEIGHTS_ONLY_LOAD' not in os.environ\n"
        "assert CheckpointLoader._schemes[''].__name__ == 'load_from_local'\n"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith('TORCH_FORCE')}
    root = str(Path(__file__).parents[2])
    subprocess.run([sys.executable, '-c', code], check=True, env={**environment, 'PYTHONPATH': root})


def test_the_same_file_runs_without_us(tmp_path, monkeypatch):
    """What the tests below refuse is dangerous: MMEngine's own loader runs it."""
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '0')
    torch.save({'x': Payload(tmp_path / 'ran')}, tmp_path / 'w.pth')
    mmengine_checkpoint.load_from_local(str(tmp_path / 'w.pth'), 'cpu')
    assert (tmp_path / 'ran').is_dir()


def test_every_scheme_of_mmengine_is_ours(safe):
    assert len(CheckpointLoader._schemes) >= 11
    assert set(CheckpointLoader._schemes.values()) == {mmengine_loaders.load_from_config}


def test_mmengine_reads_weights_safely(safe, hostile):
    message = sentence(CheckpointLoader.load_checkpoint, str(hostile / 'w.pth'), 'cpu')
    assert message.startswith(f'{hostile / "w.pth"} needs posix.mkdir to load')
    model = torch.nn.Linear(1, 1)
    assert 'posix.mkdir' in sentence(mmengine_checkpoint.load_checkpoint, model, str(hostile / 'w.pth'))
    torch.save({'state_dict': torch.nn.Linear(1, 1).state_dict()}, hostile / 'good.pth')
    mmengine_checkpoint.load_checkpoint(model, str(hostile / 'good.pth'), map_location=lambda storage, _: storage)
    assert torch.equal(model.weight, torch.load(hostile / 'good.pth')['state_dict']['weight'])


@pytest.mark.parametrize('options', [{'weights_only': False}, {}, {'weights_only': False, 'pickle_module': pickle}])
def test_torch_load_is_safe_whatever_it_is_told(safe, hostile, options):
    with pytest.raises((pickle.UnpicklingError, RuntimeError)):
        torch.load(hostile / 'w.pth', **options)


def test_torch_hub_and_timm(safe, hostile):
    url = (hostile / 'w.pth').as_uri()
    with pytest.raises(pickle.UnpicklingError):
        torch.hub.load_state_dict_from_url(url, model_dir=str(hostile / 'hub'))
    helpers = pytest.importorskip('timm.models')
    for weights_only in (True, False):
        with pytest.raises((pickle.UnpicklingError, RuntimeError)):
            helpers.load_checkpoint(torch.nn.Linear(1, 1), str(hostile / 'w.pth'), weights_only=weights_only)


def test_a_contrary_environment_is_overruled(safe, hostile, monkeypatch):
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    forbid_unpickling()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(hostile / 'w.pth', weights_only=False)


def test_names_of_the_model_zoos(safe, tmp_path, monkeypatch):
    assert address('open-mmlab://resnet50_v1c').startswith('https://')
    assert address('openmmlab://detectron2/resnet50_caffe').startswith('https://')
    assert address('mmcls://resnet18').startswith('https://')
    assert address('https://host.test/x.pth') == 'https://host.test/x.pth'
    assert "'no_such' is not a model of MMEngine's table openmmlab://" in sentence(address, 'open-mmlab://no_such')
    for source in ('s3://bucket/x.pth', 'petrel://x', 'pavi://x', 'cluster:s3://bucket/x.pth'):
        message = sentence(CheckpointLoader.load_checkpoint, source)
        assert message == (
            f'{source} has a scheme that is not supported: download the file and give its path, or an http(s) URL'
        )
    torch.save({'backbone.conv': torch.ones(1), 'head.fc': torch.ones(1)}, tmp_path / 'w.pth')
    monkeypatch.setattr(mmengine_loaders, 'address', lambda _: str(tmp_path / 'w.pth'))
    assert list(CheckpointLoader.load_checkpoint('mmcls://x')['state_dict']) == ['conv']


def test_lists_are_read_without_pickle(safe, hostile):
    for name in ('w.pkl', 'w.pickle'):
        (hostile / name).write_bytes((hostile / 'w.pkl').read_bytes())
        assert 'is a pickle, which can run code' in sentence(mmengine_load, str(hostile / name))
    for name in ('w.yaml', 'w.yml'):
        (hostile / name).write_text(f'!!python/object/apply:os.mkdir ["{hostile / "ran"}"]')
        assert 'has more than plain values' in sentence(mmengine_load, str(hostile / name))
        (hostile / name).write_text('[1, 2.5]')
        assert mmengine_load(str(hostile / name)) == [1, 2.5]


# --- named in a config


@pytest.mark.parametrize(
    ('options', 'key'),
    [
        (['model.init_cfg.type=Pretrained', 'model.init_cfg.checkpoint={}'], 'model.init_cfg.checkpoint'),
        (
            ['model.decode_head.init_cfg.type=Pretrained', 'model.decode_head.init_cfg.checkpoint={}'],
            'model.decode_head.init_cfg.checkpoint',
        ),
        (
            [f'model.backbone.init_cfg.{entry}' for entry in ('_delete_=True', 'type=Pretrained', 'checkpoint={}')],
            'model.backbone.init_cfg.checkpoint',
        ),
        (['model.pretrained={}'], 'model.pretrained'),
        (['load_from={}'], 'load_from'),
    ],
)
def test_training_names_the_key(hostile, toyscapes, capsys, options, key):
    words = [option.format(hostile / 'w.pth') for option in options]
    words = ['train', NANO, '--data-root', str(toyscapes), '--work-dir', str(hostile / 'work'), '--cfg-options', *words]
    assert run(words[0], words[1:]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith(f"error: {key}='{hostile / 'w.pth'}': {hostile / 'w.pth'} needs posix.mkdir to load")
    assert not (hostile / 'work').exists()


@pytest.mark.parametrize(
    'kind', ['SwinTransformer', 'MixVisionTransformer', 'BEiT', 'MAE', 'VisionTransformer', 'PIDNet']
)
def test_foreign_backbones_read_safely(safe, hostile, kind):
    """Each class that reads ``init_cfg`` itself, built with its defaults and initialised."""
    from mmseg.registry import MODELS

    small = {
        'SwinTransformer': dict(embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), window_size=2),
        'MixVisionTransformer': dict(embed_dims=8, num_layers=[1] * 4, num_heads=[1] * 4),
        'BEiT': dict(img_size=32, embed_dims=8, num_layers=1, num_heads=1, out_indices=0),
        'MAE': dict(img_size=32, embed_dims=8, num_layers=1, num_heads=1, out_indices=0),
        'VisionTransformer': dict(img_size=32, embed_dims=8, num_layers=1, num_heads=1, out_indices=0),
        'PIDNet': dict(channels=4, ppm_channels=4),
    }[kind]
    built = MODELS.build(
        {'type': f'mmseg.{kind}', **small, 'init_cfg': {'type': 'Pretrained', 'checkpoint': str(hostile / 'w.pth')}}
    )
    assert 'needs posix.mkdir to load' in sentence(built.init_weights)


def test_which_weights_a_config_names():
    config = load_config(NANO)
    assert list(named_weights(config)) == []
    config.model.backbone.init_cfg = None
    config.model.decode_head.init_cfg = [{'type': 'Pretrained', 'checkpoint': 'a.pth'}, {'type': 'Normal', 'std': 1}]
    config.model.auxiliary_head = {'type': 'mmseg.TIMMBackbone', 'pretrained': True, 'checkpoint_path': 'b.pth'}
    config.load_from = 'c.pth'
    assert list(named_weights(config)) == [
        ('model.decode_head.init_cfg.0.checkpoint', 'a.pth'),
        ('model.auxiliary_head.checkpoint_path', 'b.pth'),
        ('load_from', 'c.pth'),
    ]
    config.resume = True
    assert len(list(named_weights(config))) == 2


# --- class weights


@pytest.mark.parametrize(
    ('name', 'content', 'told'),
    [
        ('w.pkl', b'', 'is not a .json or .txt or .npy file'),
        ('w.yaml', b'[1]', 'is not a .json or .txt or .npy file'),
        ('w.json', b'', 'contains no class weights'),
        ('w.json', b'[' * 100000, 'contains no class weights'),
        ('w.json', b'{"a": 1}', 'contains other values than numbers'),
        ('w.json', b'[1, "2"]', 'contains other values than numbers'),
        ('w.json', b'[1, null]', 'contains other values than numbers'),
        ('w.json', b'[1, NaN]', 'not a list of finite numbers'),
        ('w.json', b'[1, -1]', 'not a list of finite numbers'),
        ('w.json', b'[[1], [1]]', 'not a list of finite numbers'),
        ('w.json', b'[]', 'not a list of finite numbers'),
        ('w.json', b'[1' + b'0' * 400 + b']', 'contains no class weights'),
        ('w.json', b'\xff\xfe', 'contains no class weights'),
        ('w.json', b' ' * (2**20 + 1), 'is larger than 1 MiB'),
        ('w.txt', b'1 2 three', 'contains no class weights'),
        ('w.npy', b'\x93NUMPY', 'contains no class weights'),
        ('w.npy', pickle.dumps([1.0]), 'contains no class weights'),
    ],
)
def test_files_that_hold_no_class_weights(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    assert told in sentence(read_class_weights, tmp_path / name)


def test_files_of_class_weights(tmp_path):
    (tmp_path / 'w.json').write_text(json.dumps([1, 0.5]))
    (tmp_path / 'w.txt').write_text('1\n0.5\n')
    np.save(tmp_path / 'w.npy', np.array([1, 0.5], np.float32))
    for name in ('w.json', 'w.txt', 'w.npy'):
        assert read_class_weights(tmp_path / name) == [1.0, 0.5]
    np.save(tmp_path / 'o.npy', np.array([Payload(tmp_path / 'ran')]), allow_pickle=True)
    assert 'contains no class weights' in sentence(read_class_weights, tmp_path / 'o.npy')
    assert not (tmp_path / 'ran').exists()
    os.mkfifo(tmp_path / 'fifo.json')
    for name in ('none.json', 'fifo.json'):
        assert 'does not exist or is not a file' in sentence(read_class_weights, tmp_path / name)


def test_a_class_weight_that_would_be_unpickled_is_refused(hostile):
    for head in ('decode_head', 'auxiliary_head'):
        for name in ('w.pkl', 'w.yaml', 'http://127.0.0.1:1/w.pkl'):
            config = load_config(NANO)
            config.model[head].loss_decode['class_weight'] = source = str(hostile / name) if '/' not in name else name
            message = sentence(check_config, config, ('train',))
            assert message == (
                f'model.{head}.loss_decode.class_weight: {source!r} is not a .json or .npy file: '
                'write the weights as a JSON list'
            )
    (hostile / 'w.json').write_text('[1]')
    config.model[head].loss_decode['class_weight'] = str(hostile / 'w.json')
    check_config(config, ('train',))


def test_pickled_data_are_refused():
    config = load_config(NANO)
    config.train_dataloader.dataset.dataset.pipeline[0] = {'type': 'LoadBiomedicalData', 'decode_backend': 'pickle'}
    assert sentence(check_config, config, ('train',)).startswith(
        "train_dataloader.dataset.dataset.pipeline.0.decode_backend='pickle' would run code of the data files"
    )

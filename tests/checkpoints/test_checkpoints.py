"""Reading, recognising, converting and writing weights."""

from __future__ import annotations

import argparse
import http.server
import io
import os
import re
import resource
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from volo_seg.checkpoints import (
    VARIANTS,
    Architecture,
    convert,
    describe,
    load_file,
    load_pretrained,
    load_segmentor_weights,
    parameter_names,
    read_volo,
    recognise,
    save_file,
    to_backbone_names,
    variant_name,
)
from volo_seg.checkpoints import locate as locate_module
from volo_seg.checkpoints import read as read_module
from volo_seg.checkpoints.read import HISTORY, allowed_globals
from volo_seg.commands import run
from volo_seg.errors import UserError
from volo_seg.models import VOLO
from volo_seg.weights import WEIGHTS

TINY = Architecture((1, 1, 2, 1), (16, 24, 24, 24), (2, 2, 2, 2), 3, 8)


def backbone(arch: Architecture = TINY, *, grid=(4, 4), norms=range(4), device='cpu') -> dict[str, torch.Tensor]:
    """Weights with the names and shapes of the model, random on the CPU."""
    with torch.device('meta'):
        model = VOLO(arch._asdict(), img_size=[16 * side for side in grid], out_indices=norms)
    counters = '.num_batches_tracked'
    return {
        key: torch.tensor(7, device=device) if key.endswith(counters) else torch.rand(value.shape, device=device)
        for key, value in model.state_dict().items()
    }


def classifier(arch: Architecture = TINY, *, grid=(4, 4), device='cpu') -> dict[str, torch.Tensor]:
    """The same as a classifier: the last norm is called ``norm``, and it has what classification needs."""
    state = backbone(arch, grid=grid, norms=[3], device=device)
    state = {re.sub(r'^norm3\.', 'norm.', key): value for key, value in state.items()}
    width = arch.embed_dims[-1]
    extra = {
        'cls_token': (1, 1, width),
        'post_network.0.norm1.weight': (width,),
        'post_network.1.attn.kv.weight': (2 * width, width),
        'head.weight': (10, width),
        'head.bias': (10,),
        'aux_head.weight': (10, width),
        'aux_head.bias': (10,),
    }
    return state | {key: torch.rand(shape, device=device) for key, shape in extra.items()}


def save(content, path: Path) -> Path:
    torch.save(content, path)
    return path


def refusal(what, *arguments, **keywords) -> str:
    """The one sentence with which a call is refused."""
    with pytest.raises(UserError) as caught:
        what(*arguments, **keywords)
    message = str(caught.value)
    assert '\n' not in message
    assert len(message) < 700
    return message


def planted(path: Path, pickled: bytes) -> Path:
    """A torch file whose pickle is ``pickled``."""
    buffer = io.BytesIO()
    torch.save({'weight': torch.zeros(1)}, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, 'w') as copy:
        for name in source.namelist():
            copy.writestr(name, pickled if name.endswith('/data.pkl') else source.read(name))
    return path


class Payload:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


# --- the table of released files

OFFICIAL = {name: row for name, row in WEIGHTS.items() if row.url}


def test_the_eleven_official_files():
    assert len(OFFICIAL) == 11
    assert [f'{name}: {file.url.rsplit("/", 1)[1]}' for name, file in OFFICIAL.items()] == [
        'volo_d1_224: d1_224_84.2.pth.tar',
        'volo_d1_384: d1_384_85.2.pth.tar',
        'volo_d2_224: d2_224_85.2.pth.tar',
        'volo_d2_384: d2_384_86.0.pth.tar',
        'volo_d3_224: d3_224_85.4.pth.tar',
        'volo_d3_448: d3_448_86.3.pth.tar',
        'volo_d4_224: d4_224_85.7.pth.tar',
        'volo_d4_448: d4_448_86.79.pth.tar',
        'volo_d5_224: d5_224_86.10.pth.tar',
        'volo_d5_448: d5_448_87.0.pth.tar',
        'volo_d5_512: d5_512_87.07.pth.tar',
    ]
    assert {file.url.rsplit('/', 1)[0] for file in OFFICIAL.values()} == {
        'https://github.com/sail-sg/volo/releases/download/volo_1'
    }


def test_official_files_are_those_timm_knows():
    volo = pytest.importorskip('timm.models.volo')
    theirs = {f'timm/{name}': cfg.url for name, cfg in cfgs_of(volo).items()}
    assert theirs == {file.timm: file.url for file in OFFICIAL.values()}


def cfgs_of(module) -> dict:
    return {
        f'{name}.{tag}': cfg
        for name, entry in module.default_cfgs.items()
        for tag, cfg in (entry.cfgs.items() if hasattr(entry, 'cfgs') else [])
    } or dict(module.default_cfgs)


def test_docs_name_every_official_file():
    text = (Path(__file__).parents[2] / 'docs' / 'weights.md').read_text()
    for name, file in OFFICIAL.items():
        assert f'`{name}`' in text
        assert file.url.rsplit('/', 1)[1] in text


# --- telling architectures apart


@pytest.mark.parametrize('name', VARIANTS)
def test_variants_are_told_from_shapes(name):
    state = classifier(VARIANTS[name], device='meta')
    assert describe(state) == VARIANTS[name].signature
    assert variant_name(describe(state)) == f'volo_{name}'


def test_signatures_differ():
    assert list(VARIANTS) == ['nano', 'd1', 'd2', 'd3', 'd4', 'd5']
    assert len({variant.signature for variant in VARIANTS.values()}) == len(VARIANTS)


def test_parameter_names_are_those_a_backbone_has():
    counters = ('running_mean', 'running_var', 'num_batches_tracked')
    own = [key for key in backbone() if not key.endswith(counters) and not key.startswith('norm')]
    assert sorted(parameter_names(TINY.depths)) == sorted(own)


def test_timm_volo_d1_is_recognised_and_complete(tmp_path):
    timm = pytest.importorskip('timm')
    state = timm.create_model('volo_d1_224').state_dict()
    weights = recognise(state, name='timm')
    assert (weights.layout, variant_name(weights.architecture)) == ('classifier', 'volo_d1')
    target = backbone(VARIANTS['d1'], grid=(14, 14))
    result = convert(state, target=target)
    assert sum(
        v.numel() for k, v in result.state_dict.items() if k in parameter_names(weights.architecture.depths)
    ) + sum(result.state_dict[f'norm3.{kind}'].numel() for kind in ('weight', 'bias')) == sum(
        v.numel() for k, v in state.items() if not k.startswith(('cls_', 'post_', 'head', 'aux_')) and is_weight(k)
    )
    assert all(key.startswith(('cls_token', 'post_network.', 'head.', 'aux_head.')) for key in result.dropped)
    for key in target:
        source = key.replace('norm3.', 'norm.') if key.startswith('norm3.') else key
        expected = target[key] if re.match(r'norm[012]\.', key) else state[source]
        assert torch.equal(result.state_dict[key], expected), key
    save_file(state, tmp_path / 'model.safetensors')
    assert read_volo(tmp_path / 'model.safetensors').layout == 'classifier'


def is_weight(key: str) -> bool:
    return not key.endswith(('running_mean', 'running_var', 'num_batches_tracked'))


# --- recognising files


def test_every_container_and_prefix(tmp_path):
    state = classifier()
    parallel = {f'module.{key}': value for key, value in state.items()}
    contents = {
        '': state,
        'state_dict': {'state_dict': parallel, 'epoch': 3, 'arch': 'volo_d1'},
        'state_dict_ema': {'state_dict_ema': parallel},
    }
    for container, content in contents.items():
        weights = read_volo(save(content, tmp_path / 'official.pth.tar'))
        assert (weights.layout, weights.container) == ('classifier', container)
        assert weights.architecture == TINY.signature
        assert weights.state_dict.keys() == state.keys()


def test_plain_weights_go_before_averaged_ones():
    plain, averaged = classifier(), classifier()
    weights = recognise({'state_dict_ema': averaged, 'state_dict': plain}, name='x')
    assert weights.container == 'state_dict'
    assert torch.equal(weights.state_dict['pos_embed'], plain['pos_embed'])


def test_a_trained_segmentor_gives_its_backbone():
    state = {f'backbone.{key}': value for key, value in backbone().items()}
    state |= {
        'decode_head.conv_seg.weight': torch.rand(19, 8, 1, 1),
        'auxiliary_head.conv_seg.bias': torch.rand(19),
    }
    weights = recognise({'meta': {'epoch': 1}, 'state_dict': state}, name='x')
    assert weights.layout == 'segmentor'
    assert weights.dropped == ['decode_head.conv_seg.weight', 'auxiliary_head.conv_seg.bias']
    result = convert(weights.state_dict, target=backbone())
    assert all(torch.equal(result.state_dict[key], value) for key, value in weights.state_dict.items())


def test_not_a_volo():
    state = {'conv1.weight': torch.zeros(1), 'bn1.weight': torch.zeros(1)}
    assert refusal(recognise, state, name='resnet.pth') == (
        'resnet.pth contains no VOLO weights (its names start with conv1.weight, bn1.weight): '
        'give an official, timm or volo-seg file of VOLO'
    )
    assert 'x.pth contains no tensors but epoch' in refusal(recognise, {'epoch': 3}, name='x.pth')
    assert 'contains no tensors but nothing' in refusal(recognise, {'state_dict': {}}, name='x.pth')


# --- converting


def test_classifier_to_backbone():
    state, target = classifier(), backbone()
    before = {key: value.clone() for key, value in target.items()}
    result = convert(state, target=target)
    assert result.state_dict.keys() == target.keys()
    assert torch.equal(result.state_dict['norm3.weight'], state['norm.weight'])
    assert torch.equal(result.state_dict['norm3.bias'], state['norm.bias'])
    assert torch.equal(result.state_dict['norm1.weight'], target['norm1.weight'])
    assert torch.equal(result.state_dict['network.3.1.attn.qkv.weight'], state['network.3.1.attn.qkv.weight'])
    assert set(result.dropped) == {key for key in state if key.startswith(('cls_', 'post_', 'head', 'aux_'))}
    assert result.kept == [f'norm{i}.{kind}' for i in range(3) for kind in ('weight', 'bias')]
    assert result.resized is None
    assert all(torch.equal(target[key], before[key]) for key in target)


def test_summary_tells_what_happened(tmp_path):
    path = save({'state_dict': classifier(grid=(2, 2))}, tmp_path / 'a.pth')
    target = backbone(grid=(4, 6))
    assert load_pretrained(target, path, model_name='volo_x').summary() == (
        'classifier weights (state_dict) of VOLO of depths (1, 1, 2, 1) and widths (16, 24, 24, 24); '
        'position grid 2x2 -> 4x6; dropped aux_head (2), cls_token (1), head (2), post_network (2); '
        'left as initialised norm0 (2), norm1 (2), norm2 (2)'
    )


@settings(max_examples=15, deadline=None)
@given(old=st.tuples(*[st.integers(1, 9)] * 2), new=st.tuples(*[st.integers(1, 9)] * 2), value=st.floats(-3, 3))
def test_position_grid_fits_any_shape(old, new, value):
    state = {**classifier(), 'pos_embed': torch.full((1, *old, 24), value, dtype=torch.float16)}
    result = convert(state, target=backbone(grid=new))
    positions = result.state_dict['pos_embed']
    assert positions.shape == (1, *new, 24)
    assert positions.dtype == torch.float16
    torch.testing.assert_close(positions, torch.full_like(positions, value), atol=5e-3, rtol=1e-2)
    assert result.resized == (None if old == new else (old, new))


@settings(max_examples=10, deadline=None)
@given(chosen=st.sets(st.integers(0, 3), min_size=1), wanted=st.sets(st.integers(0, 3), min_size=1))
def test_any_choice_of_outputs_fits_any_other(chosen, wanted):
    state, target = backbone(norms=sorted(chosen)), backbone(norms=sorted(wanted))
    result = convert(state, target=target)
    for i in wanted:
        expected = state if i in chosen else target
        assert torch.equal(result.state_dict[f'norm{i}.weight'], expected[f'norm{i}.weight'])
    assert {key[4] for key in result.dropped} == {str(i) for i in chosen - wanted}
    assert {key[4] for key in result.kept} == {str(i) for i in wanted - chosen}


def test_old_files_lack_the_batch_counters():
    state = {key: value for key, value in classifier().items() if not key.endswith('num_batches_tracked')}
    result = convert(state, target=backbone())
    assert int(result.state_dict['patch_embed.conv.1.num_batches_tracked']) == 7
    assert all(key.startswith('norm') for key in result.kept)


def test_statistics_have_no_place_in_a_stem_with_other_norms():
    target = {key: value for key, value in backbone().items() if not re.search('running|batches', key)}
    assert 'patch_embed.conv.1.running_mean' in convert(classifier(), target=target).dropped


def test_another_variant_is_named():
    state = classifier(VARIANTS['d2'], device='meta')
    target = backbone(VARIANTS['d1'], device='meta')
    message = refusal(convert, state, target=target, name='X', model_name='volo_d1')
    assert message == (
        'X contains volo_d2 weights, this model is volo_d1 (depths (6, 4, 10, 4) against (4, 4, 8, 2), '
        'embed_dims (256, 512, 512, 512) against (192, 384, 384, 384), outlook_heads 8 against 6): '
        'use a file of volo_d1 or build the other model'
    )


def test_what_a_file_lacks_is_named():
    state = classifier()
    for key in [key for key in state if key.startswith('network.3.0.mlp.')]:
        del state[key]
    assert refusal(convert, state, target=backbone(), name='X', model_name='M') == (
        'X lacks names that M needs (network.3.0.mlp.fc1.weight, network.3.0.mlp.fc1.bias, '
        'network.3.0.mlp.fc2.weight, … 4 in all): give a complete file'
    )
    state = classifier()
    del state['norm.weight']
    assert 'norm3.weight' in refusal(convert, state, target=backbone())
    state = classifier()
    del state['pos_embed']
    assert '(pos_embed)' in refusal(convert, state, target=backbone())


def test_what_the_model_has_no_place_for_is_named():
    state = classifier() | {'network.2.0.attn.qkv.bias': torch.zeros(72)}
    message = refusal(convert, state, target=backbone(), name='X', model_name='M')
    assert 'X contains names that M does not have (network.2.0.attn.qkv.bias)' in message


def test_other_shapes_are_named():
    state = classifier() | {'network.1.proj.bias': torch.zeros(5)}
    assert 'network.1.proj.bias is (5,) against (24,)' in refusal(convert, state, target=backbone())
    state = classifier() | {'pos_embed': torch.zeros(1, 16, 24)}
    assert 'position grid of shape (1, 16, 24), not (1, H, W, 24)' in refusal(convert, state, target=backbone())


def test_conversion_on_disk_comes_back_unchanged():
    found, dropped = to_backbone_names(classifier())
    again, nothing = to_backbone_names(found)
    assert list(again) == list(found)
    assert len(dropped) == 7
    assert nothing == []


# --- reading safely


def test_a_malicious_file_is_refused_and_does_not_run(tmp_path, monkeypatch):
    marker = tmp_path / 'ran'
    path = save({'state_dict': classifier(), 'x': Payload(os.system, f'touch {marker}')}, tmp_path / 'evil.pth')
    message = refusal(load_file, path)
    assert message == (
        f'{path} needs {os.system.__module__}.system to load, which is refused because it is more than '
        'weights: use a trusted source, and a file that is saved as a plain state_dict() or as '
        '.safetensors'
    )
    assert not marker.exists()
    # the very same file does run where loading is unsafe: the test can fail
    monkeypatch.delenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', raising=False)  # set by the commands that other tests run
    torch.load(path, weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize('call', [(eval, '1'), (exec, '1'), (getattr, (), 'index'), (open, '/nonexistent'), (print,)])
def test_builtins_are_refused(tmp_path, call):
    path = save({'x': Payload(*call)}, tmp_path / 'evil.pth')
    assert call[0].__name__ in refusal(load_file, path)


def test_a_whole_pickled_model_is_refused(tmp_path):
    message = refusal(load_file, save(nn.Linear(1, 1), tmp_path / 'model.pth'))
    assert 'torch.nn.modules.linear.Linear' in message
    assert 'state_dict()' in message


def test_what_others_allow_in_this_process_is_not_allowed_here(tmp_path):
    path = save({'x': Payload(print, 'hello')}, tmp_path / 'x.pth')
    torch.serialization.add_safe_globals([print])
    try:
        assert 'print' in refusal(load_file, path)
        assert print in torch.serialization.get_safe_globals()
    finally:
        torch.serialization.clear_safe_globals()


def test_nothing_stays_allowed(tmp_path):
    load_file(save({'x': 1}, tmp_path / 'x.pth'))
    refusal(load_file, save({'x': Payload(print)}, tmp_path / 'y.pth'))
    assert not torch.serialization.get_safe_globals()


def test_the_allowlist_is_short():
    entries = [entry[1] if isinstance(entry, tuple) else entry.__qualname__ for entry in allowed_globals()]
    assert sorted(entries) == sorted(
        ['slice', 'Namespace', 'ndarray', 'dtype']
        + [f'{n}DType' for n in ('Float16', 'Float32', 'Float64', 'Int32', 'Int64', 'UInt8', 'UInt32', 'Bool')]
        + [f'numpy.{p}.multiarray.{n}' for p in ('core', '_core') for n in ('_reconstruct', 'scalar')]
    )


def test_arguments_and_numpy_values_are_read(tmp_path):
    dtypes = (np.float16, np.float32, np.float64, np.int32, np.int64, np.uint8, np.uint32, np.bool_)
    content = {
        'args': argparse.Namespace(lr=1e-3, model='volo_d1', sizes=[1, 2]),
        'numbers': [dtype(1) for dtype in dtypes],
        'arrays': [np.ones((2, 3), dtype) for dtype in dtypes],
        'slice': slice(1, 2),
    }
    got = load_file(save(content, tmp_path / 'x.pth'))
    assert got['args'] == content['args']
    assert got['slice'] == slice(1, 2)
    for name in ('numbers', 'arrays'):
        assert [x.dtype for x in got[name]] == [np.dtype(dtype) for dtype in dtypes]
        assert all(np.array_equal(a, b) for a, b in zip(got[name], content[name], strict=True))


def test_files_written_under_numpy_1_are_read(tmp_path):
    buffer = io.BytesIO()
    torch.save({'metric': np.float64(84.2)}, buffer)
    with zipfile.ZipFile(buffer) as file:
        pickled = file.read(next(name for name in file.namelist() if name.endswith('/data.pkl')))
    assert b'numpy._core.multiarray' in pickled
    old = planted(tmp_path / 'old.pth', pickled.replace(b'numpy._core.multiarray', b'numpy.core.multiarray'))
    assert load_file(old)['metric'] == 84.2


def test_a_namespace_cannot_be_made_to_act(tmp_path):
    """It takes any attribute, ``__setstate__`` too; what it could call is only what is allowed anyway."""
    marker = tmp_path / 'ran'
    pickled = (
        b'\x80\x02cargparse\nNamespace\n)\x81}X\x0c\x00\x00\x00__setstate__cposix\nsystem\nsb'
        + b'X'
        + len(f'touch {marker}').to_bytes(4, 'little')
        + f'touch {marker}'.encode()
        + b'b.'
    )
    assert 'posix.system' in refusal(load_file, planted(tmp_path / 'evil.pth', pickled))
    assert not marker.exists()
    called_with_arguments = planted(tmp_path / 'odd.pth', b'\x80\x02cargparse\nNamespace\nK\x01\x85R.')
    assert 'damaged, incomplete or not a weights file' in refusal(load_file, called_with_arguments)


# --- the log of a training run


def training_checkpoint(path: Path, state: dict) -> Path:
    logging = pytest.importorskip('mmengine.logging')
    hub = logging.MessageHub(f'hub of {path.name}')
    for value in (0.5, 0.25):
        hub.update_scalar('train/loss', value)
    hub.update_scalar('train/accuracy', torch.tensor(0.75))
    hub.update_info('iter', 2)
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    content = {
        'meta': {'iter': 2, 'dataset_meta': {'classes': ('road', 'sky'), 'palette': [[1, 2, 3], [4, 5, 6]]}},
        'state_dict': state,
        'message_hub': hub.state_dict(),
        'optimizer': optimizer.state_dict(),
    }
    return save(content, path)


def test_a_training_checkpoint_is_read_with_its_log(tmp_path):
    content = load_file(training_checkpoint(tmp_path / 'iter_2.pth', {'a': torch.ones(1)}))
    loss = content['message_hub']['log_scalars']['train/loss']
    assert f'{type(loss).__module__}.{type(loss).__name__}' == HISTORY
    assert (loss.mean(), loss.current()) == (0.375, 0.25)
    assert content['meta']['dataset_meta']['classes'] == ('road', 'sky')
    assert 'exp_avg' in content['optimizer']['state'][0]


@pytest.mark.parametrize(
    ('owner', 'name'), [(HISTORY, '__init__'), (HISTORY, 'statistics'), ('argparse.Namespace', 'min')]
)
def test_a_log_cannot_ask_for_other_attributes(tmp_path, owner, name):
    pytest.importorskip('mmengine.logging')
    module, _, attribute = owner.rpartition('.')
    history = f'c{HISTORY.rpartition(".")[0]}\nHistoryBuffer\n'.encode()
    asked = f'c__builtin__\ngetattr\nc{module}\n{attribute}\n'.encode()
    asked += b'X' + len(name).to_bytes(4, 'little') + name.encode() + b'\x86R'
    path = planted(tmp_path / 'evil.pth', b'\x80\x02' + history + asked + b'\x86.')
    assert 'needs builtins.getattr to load' in refusal(load_file, path)


def test_a_training_log_without_mmengine(tmp_path, monkeypatch):
    path = training_checkpoint(tmp_path / 'iter_2.pth', {'a': torch.ones(1)})
    monkeypatch.setitem(sys.modules, 'mmengine.logging', None)
    assert refusal(load_file, path) == (
        f'{path} contains the log of a training run, which needs mmengine: install onedl-mmengine'
    )


# --- damaged files and things that are no weights


def test_missing_files(tmp_path):
    message = refusal(load_file, tmp_path / 'none.pth')
    assert message.startswith(f"no weights file '{tmp_path / 'none.pth'}': give a path, an http(s) URL, or one of")
    assert 'volo_d5_512' in refusal(load_file, 'volo_d1_256')
    assert 'correct the URL' in refusal(load_file, f'file://{tmp_path}/none.pth')
    assert refusal(load_file, 's3://bucket/x.pth') == (
        's3://bucket/x.pth is neither an http(s) nor a file URL: download the file and give its path'
    )


def tar_bytes() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w') as file:
        info = tarfile.TarInfo('pickle')
        info.size = 3
        file.addfile(info, io.BytesIO(b'abc'))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ('content', 'told'),
    [
        (b'', 'is empty: download or copy it again'),
        (b'\0' * 4096, 'is empty: download or copy it again'),
        (
            b'\n <!DOCTYPE html><html></html>',
            'is a web page, not weights: use the URL of the file itself',
        ),
        (
            b'version https://git-lfs.github.com/spec/v1\noid sha256:00\n',
            'is a Git LFS pointer: run "git lfs pull"',
        ),
        (b'no weights at all', 'is damaged, incomplete or not a weights file'),
        (os.urandom(3000), 'is damaged, incomplete or not a weights file'),
        (tar_bytes(), 'is a tar archive, not a weights file'),
    ],
)
@pytest.mark.parametrize('suffix', ['.pth', '.pth.tar', '.safetensors'])
def test_no_weights(tmp_path, content, told, suffix):
    path = tmp_path / f'x{suffix}'
    path.write_bytes(content)
    message = refusal(load_file, path)
    assert message.startswith(f'{path} {told}')
    assert 'trust' not in message  # torch's own words advise unsafe loading


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_truncated_files(tmp_path, suffix):
    path = tmp_path / f'x{suffix}'
    save_file({'a': torch.rand(1000)}, path)
    whole = path.read_bytes()
    for length in (9, 100, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:length])
        assert f'{path} is damaged, incomplete or not a weights file' in refusal(load_file, path)


def test_old_torch_format_and_its_truncation(tmp_path):
    path = tmp_path / 'x.pth.tar'
    torch.save({'a': torch.arange(9.0)}, path, _use_new_zipfile_serialization=False)
    assert torch.equal(load_file(path)['a'], torch.arange(9.0))
    path.write_bytes(path.read_bytes()[:-10])
    assert 'damaged' in refusal(load_file, path)


@pytest.mark.filterwarnings('ignore:.*TorchScript', 'ignore:.*torch.jit')
def test_other_things(tmp_path):
    assert 'is a folder: give the path of the weights file' in refusal(load_file, tmp_path)
    path = save(torch.zeros(2), tmp_path / 'x.pth')
    assert 'contains a Tensor, not a dict of weights' in refusal(load_file, path)
    torch.jit.save(torch.jit.script(nn.Identity()), path)
    assert 'is a TorchScript program' in refusal(load_file, path)
    with zipfile.ZipFile(save({'a': torch.zeros(2)}, path)) as file:
        piece = tmp_path / 'data.pkl'
        piece.write_bytes(file.read(next(name for name in file.namelist() if name.endswith('/data.pkl'))))
    assert 'is a part of an unpacked torch file' in refusal(load_file, piece)


def test_a_file_one_may_not_read(tmp_path, monkeypatch):
    path = save({}, tmp_path / 'x.pth')

    def refuse(*_):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(read_module, 'open', refuse, raising=False)
    assert refusal(load_file, path) == f'{path} cannot be read (Permission denied): correct the path or its permissions'


def test_the_content_decides_not_the_suffix(tmp_path):
    save_file({'a': torch.ones(2)}, tmp_path / 'x.safetensors')
    (tmp_path / 'x.safetensors').rename(tmp_path / 'x.bin')
    assert torch.equal(load_file(tmp_path / 'x.bin')['a'], torch.ones(2))
    save({'a': torch.ones(2)}, tmp_path / 'y.safetensors')
    assert torch.equal(load_file(tmp_path / 'y.safetensors')['a'], torch.ones(2))


# --- downloading


class Server(http.server.ThreadingHTTPServer):
    """Serves ``content`` under every path but /none, and counts."""

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.content, self.promised, self.count = b'', None, 0


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.count += 1
        if self.path.startswith('/none'):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header('Content-Length', str(self.server.promised or len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    server = Server()
    buffer = io.BytesIO()
    torch.save(classifier(), buffer)
    server.content = buffer.getvalue()
    server.address = f'http://127.0.0.1:{server.server_port}'
    thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def kept(tmp_path) -> list[str]:
    return sorted(path.name for path in (tmp_path / 'hub' / 'checkpoints').iterdir())


def test_an_address_is_downloaded_once(server, tmp_path):
    url = f'{server.address}/a/model.pth?download=true'
    for _ in range(2):
        assert load_file(url).keys() == classifier().keys()
    assert server.count == 1
    load_file(f'{server.address}/b/model.pth')  # the same name on another hub page is another file
    assert server.count == 2
    assert len(kept(tmp_path)) == 2
    assert all(name.endswith('-model.pth') for name in kept(tmp_path))


def test_a_short_name_is_downloaded_under_its_own_name(server, tmp_path, monkeypatch):
    url = f'{server.address}/d1_224_84.2.pth.tar'
    monkeypatch.setitem(WEIGHTS, 'volo_d1_224', WEIGHTS['volo_d1_224']._replace(url=url))
    assert read_volo('volo_d1_224').architecture == TINY.signature
    assert read_volo('volo_d1_224').name == 'volo_d1_224'
    assert kept(tmp_path) == ['d1_224_84.2.pth.tar']
    assert server.count == 1


def test_real_short_names_are_kept_under_their_released_names():
    for file in OFFICIAL.values():
        assert locate_module.cache_path(file.url).name == file.url.rsplit('/', 1)[1]


def test_a_file_of_the_users_goes_before_a_short_name(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save({'mine': torch.ones(1)}, Path('volo_d1_224'))
    assert list(load_file('volo_d1_224')) == ['mine']
    assert server.count == 0


def test_a_file_address_is_read_in_place(server, tmp_path):
    save({'a': torch.ones(1)}, tmp_path / 'with space.pth')
    assert list(load_file(f'file://{tmp_path}/with%20space.pth')) == ['a']
    assert not (tmp_path / 'hub').exists()


def test_no_bad_download_is_kept(server, tmp_path):
    url = f'{server.address}/model.pth'
    whole = server.content
    server.content = b'<html>moved</html>'
    assert refusal(load_file, url) == f'{url} is a web page, not weights: use the URL of the file itself'
    server.content, server.promised = whole[: len(whole) // 2], len(whole)
    refusal(load_file, url)
    assert kept(tmp_path) == []
    server.content = whole
    load_file(url)
    assert len(kept(tmp_path)) == 1


def test_an_address_that_gives_nothing(server, tmp_path):
    message = refusal(load_file, f'{server.address}/none.pth')
    assert message.startswith(f'cannot download {server.address}/none.pth to {tmp_path}/hub/checkpoints/')
    assert '404' in message
    assert 'check the URL and the connection' in message
    assert kept(tmp_path) == []
    assert 'cannot download' in refusal(load_file, 'http://127.0.0.1:1/x.pth')


def test_a_kept_file_that_went_bad(server, tmp_path):
    url = f'{server.address}/model.pth'
    load_file(url)
    path = next((tmp_path / 'hub' / 'checkpoints').iterdir())
    path.write_bytes(server.content[:500])
    message = refusal(load_file, url)
    assert message.startswith(f'{path} is damaged')
    assert message.endswith(f'delete it to download {url} again')
    assert path.exists()


def test_processes_that_want_the_same_file_download_it_once(server, tmp_path):
    url = f'{server.address}/model.pth'
    threads = [threading.Thread(target=load_file, args=(url,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(kept(tmp_path)) == 1
    assert server.count == 1


def test_downloading_where_the_system_has_no_such_locks(server, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'fcntl', None)
    load_file(f'{server.address}/model.pth')
    assert len(kept(tmp_path)) == 1


# --- writing


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_saving_and_reading_back(tmp_path, suffix):
    path = tmp_path / 'new' / 'folder' / f'x{suffix}'
    shared = torch.rand(1000, 4)
    state = {'a': shared[:2], 'b': shared[:2].T, 'half': torch.rand(3).half(), 'count': torch.tensor(3)}
    save_file(state, path, metadata={'origin': 'a test'})
    content = load_file(path)
    assert content['meta'] == {'origin': 'a test'}
    assert content['state_dict'].keys() == state.keys()
    for key, value in state.items():
        assert torch.equal(content['state_dict'][key], value)
        assert content['state_dict'][key].dtype == value.dtype
    assert path.stat().st_size < 8000  # not the thousand rows that the views come from
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_equal_contents_are_equal_bytes(tmp_path):
    metadata = {name: f'{name} "é\x7f\x01\n\u2028' for name in 'jihgfedcba'}
    for name in 'xy':
        save_file({'b': torch.ones(3).half(), 'a': torch.ones(2)}, tmp_path / f'{name}.safetensors', metadata=metadata)
    assert (tmp_path / 'x.safetensors').read_bytes() == (tmp_path / 'y.safetensors').read_bytes()
    assert load_file(tmp_path / 'x.safetensors')['meta'] == metadata


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_nothing_is_overwritten_unasked_nor_left_half_written(tmp_path, suffix, monkeypatch):
    path = tmp_path / f'x{suffix}'
    save_file({'a': torch.ones(1)}, path)
    before = path.read_bytes()
    assert refusal(save_file, {'a': torch.zeros(1)}, path) == (f'{path} exists: give another name or allow overwriting')

    def fail(*_):
        raise OSError('no space left')

    with monkeypatch.context() as patch:
        patch.setattr(os, 'replace', fail)
        assert 'cannot be written' in refusal(save_file, {'a': torch.zeros(1)}, path, overwrite=True)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    save_file({'a': torch.zeros(1)}, path, overwrite=True)
    assert path.read_bytes() != before


@pytest.mark.parametrize('size', [2**10, 2**16])
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_a_full_disk_leaves_nothing(tmp_path, suffix, size):
    path = tmp_path / f'x{suffix}'
    save_file({'a': torch.ones(1)}, path)
    good, before = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        # the first writes of a small limit are refused by the check before
        told = refusal(save_file, {'a': torch.zeros(2**16)}, path, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert re.fullmatch(r"'.*' cannot be written \(.*File too large.*\); .*name another place", told)
    assert path.read_bytes() == good and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_destinations_that_cannot_be(tmp_path):
    assert "ends in '.pt'" in refusal(save_file, {}, tmp_path / 'x.pt')
    assert "ends in 'nothing'" in refusal(save_file, {}, tmp_path / 'x')
    (tmp_path / 'x.pth').mkdir()
    assert 'is a folder' in refusal(save_file, {}, tmp_path / 'x.pth')
    (tmp_path / 'file').write_text('')
    assert 'cannot be written' in refusal(save_file, {}, tmp_path / 'file' / 'x.pth')


# --- whole trained models


class Head(nn.Module):
    def __init__(self, classes: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        self.conv_seg = nn.Conv2d(4, classes, 1)


class Backbone(nn.Module):
    def __init__(self, grid=(2, 2)):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.rand(1, *grid, 4))
        self.proj = nn.Linear(3, 4)


class Segmentor(nn.Module):
    def __init__(self, classes=19, *, grid=(2, 2)):
        super().__init__()
        self.backbone = Backbone(grid)
        self.decode_head = Head(classes)


def test_a_trained_model_is_loaded_whole(tmp_path):
    trained, model = Segmentor(), Segmentor()
    trained.decode_head.norm.running_mean += 3
    meta = load_segmentor_weights(model, training_checkpoint(tmp_path / 'iter_2.pth', trained.state_dict()))
    assert meta['dataset_meta']['classes'] == ('road', 'sky')
    for key, value in trained.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key
    save_file({f'module.{key}': value for key, value in trained.state_dict().items()}, tmp_path / 'x.safetensors')
    assert load_segmentor_weights(Segmentor(), tmp_path / 'x.safetensors') == {}


def test_a_trained_model_on_other_crops(tmp_path):
    save_file(Segmentor(grid=(2, 2)).state_dict(), tmp_path / 'x.pth')
    model = Segmentor(grid=(3, 5))
    before = model.backbone.pos_embed.clone()
    load_segmentor_weights(model, tmp_path / 'x.pth')
    assert model.backbone.pos_embed.shape == before.shape
    assert not torch.equal(model.backbone.pos_embed, before)


def test_another_number_of_classes(tmp_path):
    save_file(Segmentor(19).state_dict(), tmp_path / 'x.pth')
    model = Segmentor(150)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for strict in (True, False):
        assert refusal(load_segmentor_weights, model, tmp_path / 'x.pth', strict=strict) == (
            f'{tmp_path / "x.pth"} has 19 classes at decode_head.conv_seg, this model has 150: '
            'use the config with which it was trained'
        )
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_another_model(tmp_path, caplog):
    path = save({'backbone.conv1.weight': torch.zeros(2)}, tmp_path / 'x.pth')
    assert refusal(load_segmentor_weights, Segmentor(), path) == (
        f'{path} belongs to another model (it lacks backbone.pos_embed, backbone.proj.weight, backbone.proj.bias, '
        '… 9 in all and it contains backbone.conv1.weight, which this model does not have): '
        'use the config with which it was trained'
    )
    load_segmentor_weights(Segmentor(), path, strict=False)
    assert 'fits in part: it lacks backbone.pos_embed' in caplog.text
    path = save(Backbone().state_dict(), path)
    assert "weights of a backbone in the backbone's init_cfg" in refusal(load_segmentor_weights, Segmentor(), path)
    path = save(Segmentor().state_dict() | {'backbone.proj.bias': torch.zeros(9)}, path)
    assert 'backbone.proj.bias is (9,) against (4,)' in refusal(load_segmentor_weights, Segmentor(), path)


class Named(nn.Module):
    """A module whose state dict is ``state``."""

    def __init__(self, state):
        super().__init__()
        self.state = state

    def state_dict(self):
        return self.state


def test_a_trained_model_of_another_variant(tmp_path):
    bigger = TINY._replace(depths=(1, 2, 2, 1))
    save_file({f'backbone.{key}': value for key, value in backbone(bigger).items()}, tmp_path / 'x.pth')
    model = Named({f'backbone.{key}': value for key, value in backbone().items()})
    message = refusal(load_segmentor_weights, model, tmp_path / 'x.pth')
    assert 'depths (1, 2, 2, 1) against (1, 1, 2, 1)' in message
    assert message.endswith('use the config with which it was trained')


# --- the command


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_volo2mmseg(tmp_path, capsys, suffix):
    state = classifier()
    source = save({'state_dict': state, 'args': argparse.Namespace(lr=1)}, tmp_path / 'official.pth.tar')
    target = tmp_path / f'out{suffix}'
    assert run('volo2mmseg', [str(source), str(target)]) == 0
    printed = capsys.readouterr().out
    assert 'dropped: aux_head (2), cls_token (1), head (2), post_network (2)' in printed
    assert f'wrote {len(state) - 7} tensors to {target}' in printed
    weights = read_volo(target)
    assert weights.layout == 'backbone'
    assert torch.equal(weights.state_dict['norm3.weight'], state['norm.weight'])
    direct, converted = (load_pretrained(backbone(), path, model_name='M') for path in (source, target))
    loaded = [key for key in direct.state_dict if key not in direct.kept]
    assert all(torch.equal(direct.state_dict[key], converted.state_dict[key]) for key in loaded)
    assert run('volo2mmseg', [str(source), str(target)]) == 2
    assert f'{target} exists' in capsys.readouterr().err
    assert run('volo2mmseg', [str(source), str(target), '--force']) == 0


def test_volo2mmseg_refuses_half_a_backbone(tmp_path, capsys):
    state = classifier()
    del state['network.3.0.attn.proj.bias']
    source = save(state, tmp_path / 'half.pth')
    assert run('volo2mmseg', [str(source), str(tmp_path / 'out.pth')]) == 2
    assert 'lacks parts of the backbone (network.3.0.attn.proj.bias): give a complete file' in capsys.readouterr().err
    state = {key: value for key, value in state.items() if not key.startswith('network.4.')}
    save(state, source)
    assert run('volo2mmseg', [str(source), str(tmp_path / 'out.pth')]) == 2
    assert 'lacks parts of the backbone' in capsys.readouterr().err
    assert not (tmp_path / 'out.pth').exists()


def test_volo2mmseg_checks_the_destination_first(tmp_path, capsys):
    assert run('volo2mmseg', ['no such file', str(tmp_path / 'out.onnx')]) == 2
    assert "ends in '.onnx': use .pth or .safetensors" in capsys.readouterr().err


def test_the_door_and_its_help():
    door = Path(__file__).parents[2] / 'tools' / 'model_converters' / 'volo2mmseg.py'
    assert 'short name such as volo_d1_224' in ' '.join(python(str(door), '--help').split())


def python(*arguments: str) -> str:
    root = Path(__file__).parents[2]
    environment = {**os.environ, 'PYTHONPATH': str(root)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


def test_reading_weights_takes_torch_alone():
    code = (
        'import sys, volo_seg.checkpoints\n'
        "print([name for name in sys.modules if name.split('.')[0] in ('mmengine', 'mmcv', 'mmseg')])"
    )
    assert python('-c', code).strip() == '[]'

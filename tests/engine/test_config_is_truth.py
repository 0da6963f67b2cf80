"""What a config names is what runs: no part of a run is replaced behind the config's back."""

from pathlib import Path

import mmseg
import pytest
import tiny
from mmengine.config import Config
from mmengine.runner import Runner
from mmseg.registry import RUNNERS

from volo_seg.commands import run
from volo_seg.commands.train import build_parser, prepare
from volo_seg.config.load import config_root, shipped_configs
from volo_seg.config.validation import find_type
from volo_seg.datasets.toyscapes import write_toyscapes

SWIN = Path(mmseg.__file__).parent / '.mim/configs/swin'
SWIN_T = SWIN / 'swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py'
STOCK_CONFIG = """
_base_ = '{swin}'
norm_cfg = dict(type='BN', requires_grad=True)
data = dict(type='BaseSegDataset', metainfo=dict(classes=('a', 'b', 'c'), palette=[[0, 0, 0], [9, 9, 9], [99, 0, 0]]),
            data_root='{data}', img_suffix='.png', reduce_zero_label=False)
crop_size = (32, 32)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(init_cfg=None, embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), window_size=2),
    decode_head=dict(in_channels=[8, 16, 32, 64], channels=8, num_classes=3, norm_cfg=norm_cfg),
    auxiliary_head=dict(in_channels=32, channels=8, num_classes=3, norm_cfg=norm_cfg))
train_pipeline = [
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='RandomCrop', crop_size=crop_size),
    dict(type='PackSegInputs')]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
train_dataloader = dict(num_workers=0, dataset=dict(_delete_=True, pipeline=train_pipeline, data_prefix=dict(
    img_path='images/train', seg_map_path='annotations/train'), **data))
val_dataloader = dict(num_workers=0, dataset=dict(_delete_=True, pipeline=test_pipeline, data_prefix=dict(
    img_path='images/val', seg_map_path='annotations/val'), **data))
test_dataloader = val_dataloader
train_cfg = dict(max_iters=2, val_interval=2)
default_hooks = dict(checkpoint=dict(interval=2))
"""


def printed(capsys, *words):
    """The config that ``print_config`` prints."""
    assert run('print_config', [str(word) for word in words]) == 0
    return Config.fromstring(capsys.readouterr().out, '.py')


def types_of(dataset):
    """The types of a data set and of those inside it, outer ones first, and of the steps of the innermost pipeline."""
    kinds = [type(dataset)]
    while hasattr(dataset, 'dataset'):
        dataset = dataset.dataset
        kinds.append(type(dataset))
    return kinds, [type(step) for step in dataset.pipeline.transforms]


def named_types(dataset):
    kinds = [find_type(dataset.type)]
    while 'dataset' in dataset:
        dataset = dataset.dataset
        kinds.append(find_type(dataset.type))
    return kinds, [find_type(step.type, step.get('_scope_', 'mmseg')) for step in dataset.pipeline]


def check_equal(runner, config):
    """Each part of ``runner``, built and not started, is of the class that ``config`` names."""
    assert type(runner) is find_type(config.runner_type)
    hooks = [*config.default_hooks.values(), *config.get('custom_hooks', [])]
    always = {'RuntimeInfoHook'}  # MMEngine's own, which no config of MMSegmentation names
    found = [type(hook) for hook in runner.hooks if type(hook).__name__ not in always]
    assert sorted(map(str, found)) == sorted(str(find_type(hook.type)) for hook in hooks)
    loops = {'train': runner.build_train_loop(runner._train_loop)}
    loops |= {'val': runner.build_val_loop(runner._val_loop), 'test': runner.build_test_loop(runner._test_loop)}
    for split, loop in loops.items():
        loader = config[f'{split}_dataloader']
        assert type(loop) is find_type(config[f'{split}_cfg'].type)
        assert type(loop.dataloader.sampler) is find_type(loader.sampler.type)
        assert types_of(loop.dataloader.dataset) == named_types(loader.dataset)
        if 'worker_init_fn' in loader:
            assert loop.dataloader.worker_init_fn.func is find_type(loader.worker_init_fn.type)
        if split != 'train':
            evaluator = config[f'{split}_evaluator']
            metrics = evaluator.get('metrics', evaluator)
            assert type(loop.evaluator) is find_type(evaluator.type if 'metrics' in evaluator else 'Evaluator')
            assert [type(metric) for metric in loop.evaluator.metrics] == [find_type(metrics.type)]
    model = runner.model
    for part in ('', '.backbone', '.neck', '.decode_head', '.auxiliary_head'):
        built, named = model, config.model
        for name in part.split('.')[1:]:
            built, named = getattr(built, name, None), named.get(name)
        assert built is None and named is None or type(built) is find_type(named.type), part
    assert type(runner.build_optim_wrapper(config.optim_wrapper)) is find_type(config.optim_wrapper.type)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Data roots by data set: three folders with a few images each."""
    roots = {'folders': tiny.make_data(tmp_path_factory.mktemp('folders') / 'data')}
    roots['cityscapes'] = roots['toyscapes'] = tmp_path_factory.mktemp('toyscapes')
    write_toyscapes(roots['toyscapes'], train=1, val=1, size=(32, 64), seed=0)
    roots['ade20k'] = tmp_path_factory.mktemp('ade')
    for kind in ('images', 'annotations'):
        for ours, theirs in (('train', 'training'), ('val', 'validation')):
            folder = roots['ade20k'] / kind / theirs
            folder.mkdir(parents=True)
            source = (roots['folders'] / kind / ours / '0.png').read_bytes()
            (folder / ('0.jpg' if kind == 'images' else '0.png')).write_bytes(source)
    return roots


def test_every_shipped_config_builds_what_it_prints(data, tmp_path, capsys):
    named = {name: name.rsplit('_', 1)[-1].split('-')[0] for name in shipped_configs()}
    assert sum(kind in data for kind in named.values()) == 17
    for name, root in ((name, data[kind]) for name, kind in named.items() if kind in data):
        # the variants differ in their widths alone: the smallest one stands for them
        options = ['train_dataloader.batch_size=2', 'model.backbone.init_cfg=None']
        options += ['model.decode_head.channels=16', 'model.auxiliary_head.channels=16']
        if 'volo-nano' not in name:
            options += ['model.backbone.arch=nano', 'model.decode_head.in_channels=[64,128,128,128]']
            options += ['model.auxiliary_head.in_channels=128']
        options += ['model.neck.in_channels=[64,128,128,128]'] if 'pyramid' in name else []
        words = [name, '--data-root', root, '--work-dir', tmp_path / name, '--seed', '1', '--cfg-options', *options]
        config = printed(capsys, *words)
        ran = prepare(build_parser().parse_args([*map(str, words)]))
        assert ran.to_dict() == config.to_dict()
        check_equal(RUNNERS.build(tiny.named(ran)), config)
        (saved,) = (tmp_path / name).glob('*/vis_data/config.py')
        assert Config.fromfile(saved).train_dataloader == config.train_dataloader


def test_flags_change_the_printed_config(data, capsys):
    name = 'volo-d1_upernet_8xb2-160k_cityscapes-512x1024'
    plain = printed(capsys, name, '--data-root', data['toyscapes'], '--from-scratch')
    flags = [
        '--from-scratch',
        '--ema',
        '--patience',
        '3',
        '--amp',
        'bf16',
        '--accumulate',
        '2',
        '--layer-decay',
        '0.9',
        '--ohem',
        '--console',
        'mmengine',
        '--seed',
        '5',
    ]
    changed = printed(capsys, name, '--data-root', data['toyscapes'], *flags)
    types = [hook.type for hook in changed.custom_hooks]
    assert {'AveragedWeightsHook', 'ResumableEarlyStoppingHook'} <= set(types) and 'ConsoleHook' not in types
    assert 'ConsoleHook' in [hook.type for hook in plain.custom_hooks]
    assert changed.optim_wrapper.type == 'AutocastOptimWrapper' and plain.optim_wrapper.type == 'OptimWrapper'
    assert changed.default_hooks.param_scheduler.type == 'OptimizerStepSchedulerHook'
    assert changed.optim_wrapper.constructor == 'VOLOLayerDecayConstructor'
    assert changed.model.decode_head.sampler.type == 'OHEMPixelSampler'
    assert changed.randomness.seed == 5 and plain.randomness.seed is None
    assert run('print_config', [name]) == 0
    assert "'data/cityscapes/' does not exist" in capsys.readouterr().err


@pytest.fixture(scope='module')
def stock(data, tmp_path_factory):
    """MMSegmentation's own Swin-T + UPerNet, made small."""
    path = tmp_path_factory.mktemp('stock') / 'stock.py'
    path.write_text(STOCK_CONFIG.format(swin=SWIN_T, data=data['folders']))
    return path


def test_a_stock_config_runs_its_stock_parts(stock, tmp_path, capsys):
    config = printed(capsys, stock, '--work-dir', tmp_path)
    assert 'custom_hooks' not in config and config.default_hooks.checkpoint.type == 'CheckpointHook'
    runner = RUNNERS.build(tiny.named(prepare(build_parser().parse_args([str(stock), '--work-dir', str(tmp_path)]))))
    assert isinstance(runner, Runner)
    check_equal(runner, config)
    modules = {type(hook).__module__.split('.')[0] for hook in runner.hooks}
    assert modules == {'mmengine', 'mmseg'}
    assert runner.train_dataloader.sampler.__module__.startswith('mmengine')
    assert run('train', [str(stock), '--work-dir', str(tmp_path / 'run')]) == 0
    assert (tmp_path / 'run' / 'iter_2.pth').is_file()
    assert 'Iter(val) [3/3]' in next((tmp_path / 'run').glob('*/*.log')).read_text()


def test_two_lines_give_a_stock_config_our_runner_and_hooks(stock, tmp_path, capsys):
    ours = config_root() / 'configs/_base_/safe_runner.py'
    config = tmp_path / 'ours.py'
    sampler = "train_dataloader = dict(sampler=dict(type='ResumableInfiniteSampler'))"
    config.write_text(f"_base_ = ['{stock}', '{ours}']\n{sampler}\n")
    words = [str(config), '--work-dir', str(tmp_path / 'run')]
    shown = printed(capsys, *words)
    check_equal(RUNNERS.build(tiny.named(prepare(build_parser().parse_args(words)))), shown)
    types = {hook.type for hook in shown.custom_hooks}
    assert {'IterationSeedHook', 'ValidationSyncHook', 'InterruptionHook', 'ConsoleHook'} <= types
    assert run('train', words) == 0
    assert '2/2  loss' in capsys.readouterr().out

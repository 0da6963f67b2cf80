"""Our runner and hooks beside those of MMEngine: the same operations, the same results (differences: docs/training.md).

The model is a linear layer and the data are numbers, so that nothing of segmentation is needed for a result.
"""

import itertools
import json
import re

import pytest
import tiny
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.fileio import BaseStorageBackend, FileClient, LocalBackend, register_backend
from mmengine.hooks import CheckpointHook, EarlyStoppingHook, EMAHook, Hook, ParamSchedulerHook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import DATASETS, METRICS, MODELS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from volo_seg.checkpoints import load_file
from volo_seg.commands.apply_flags import set_resume
from volo_seg.engine.hooks import AtomicCheckpointHook, AveragedWeightsHook, ResumableEarlyStoppingHook
from volo_seg.engine.optim.batch_size import OptimizerStepSchedulerHook
from volo_seg.engine.runner import SafeRunner
from volo_seg.errors import UserError

BOTH = ((Runner, CheckpointHook), (SafeRunner, AtomicCheckpointHook))
MIXED = (*BOTH, (Runner, AtomicCheckpointHook), (SafeRunner, CheckpointHook))
EPOCHS = dict(by_epoch=True, max_epochs=3, val_interval=1)
ITERATIONS = dict(by_epoch=False, max_iters=6, val_interval=2)
SAMPLER = dict(type='DefaultSampler', shuffle=False)
VALUES = [0.5, 0.9, 0.7, 0.95, 0.1, 0.99]
DIFFERENT = ('time', 'experiment_name', 'mmengine_version')
numbers = itertools.count()


class Model(BaseModel):
    """A linear layer and a batch norm with fixed weights."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(2, 1), nn.BatchNorm1d(1)
        nn.init.constant_(self.layer.weight, 0.3)
        nn.init.constant_(self.layer.bias, 0.1)

    def forward(self, x, y, mode='tensor'):
        found = self.norm(self.layer(x))
        return dict(loss=(found - y).square().mean()) if mode == 'loss' else [found] if mode == 'predict' else found


class Numbers(Dataset):
    metainfo = dict(classes=('a', 'b'))

    def __len__(self):
        return 12

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return dict(x=torch.rand(2, generator=generator), y=torch.rand(1, generator=generator))


class Scores(BaseMetric):
    """``acc`` of the nth evaluation is the nth of ``values``; ``loss`` and ``other`` follow it."""

    def __init__(self, values=VALUES):
        super().__init__()
        self.values, self.count = values, 0

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        value = self.values[self.count]
        self.count += 1
        return dict(acc=value, loss=1 - value, other=value / 2)


def build(kind, work_dir, *, checkpoint=None, loop=ITERATIONS, values=VALUES, data=None, **settings):
    """A runner of class ``kind``; ``checkpoint`` is its checkpoint hook."""
    data = data or Numbers()
    batches = dict(batch_size=2, num_workers=0, collate_fn=dict(type='default_collate'))
    sampled = dict(batches, dataset=data, sampler=SAMPLER)
    name = f'contract{next(numbers)}'
    arguments = dict(
        model=Model(),
        work_dir=work_dir,
        train_dataloader=sampled,
        val_dataloader={**batches, 'dataset': Numbers(), 'sampler': SAMPLER},
        test_dataloader={**batches, 'dataset': Numbers(), 'sampler': SAMPLER},
        train_cfg=loop,
        val_cfg=dict(),
        test_cfg=dict(),
        val_evaluator=[Scores(values)],
        test_evaluator=[Scores(values)],
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9)),
        param_scheduler=dict(type='PolyLR', by_epoch=loop['by_epoch'], end=6),
        default_hooks=dict(checkpoint=checkpoint, logger=dict(type='LoggerHook', interval=1)),
        visualizer=dict(type='Visualizer', name=name, vis_backends=[dict(type='LocalVisBackend')]),
        log_processor=dict(by_epoch=loop['by_epoch']),
        randomness=dict(seed=3),
        experiment_name=name,
        default_scope='mmengine',
        cfg=Config(dict(answer=42)),
    )
    return kind(**{**arguments, **settings})


def short(value, root):
    """``value`` with paths below ``root`` relative to it, and without the number of the experiment."""
    if isinstance(value, str):
        return re.sub(r'contract\d+_\d+_\d+', '<experiment>', value.replace(str(root), '<root>'))
    if isinstance(value, dict):
        return {key: short(item, root) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(short(item, root) for item in value)
    return value


def content(path, root):
    """What a checkpoint has, without what differs from run to run."""
    found = load_file(path)
    found.pop('progress', None)
    found.get('message_hub', {}).get('runtime_info', {}).pop('eta', None)
    meta = found.get('meta') or dict.fromkeys(DIFFERENT, 'removed')
    for key in DIFFERENT:
        assert meta.pop(key)
    hub = found.get('message_hub', {})
    scalars = {
        key: value._log_history.tolist()
        for key, value in hub.get('log_scalars', {}).items()
        if 'time' not in key and 'memory' not in key
    }
    return short({**found, 'message_hub': [scalars, hub.get('runtime_info'), dict(hub.get('resumed_keys', {}))]}, root)


def outcome(started, root):
    """Files of a run with the contents of its checkpoints, and what the message hub has."""
    files = {str(path.relative_to(root)): path for path in sorted(root.rglob('*')) if path.is_file()}
    logs = re.compile(r'\d{8}_\d{6}|(^|/)run\.json|(^|/)\.\w+\.lock')
    kept = {name: path for name, path in files.items() if not logs.search(name)}
    published = re.compile(r'-[0-9a-f]{8}\.pth')
    found = {published.sub('-<digest>.pth', name): path for name, path in kept.items()}
    contents = {
        name: content(path, root) if path.suffix == '.pth' else short(path.read_text(), root)
        for name, path in found.items()
    }
    info = {key: value for key, value in started.message_hub.runtime_info.items() if key != 'eta'}
    return {'files': contents, 'info': short(info, root)}


def agree(results):
    """All results are equal to the first one, which is that of MMEngine."""
    different = [tiny.differences(results[0], result) for result in results[1:]]
    assert different == [[]] * len(different)


# the checkpoint hook

NEVER = dict(save_last=False)
CHECKPOINTS = [
    ({}, ITERATIONS),
    (NEVER, ITERATIONS),
    (dict(by_epoch=False), ITERATIONS),
    (dict(by_epoch=False, interval=1), ITERATIONS),
    (dict(by_epoch=False, interval=4), ITERATIONS),
    (dict(by_epoch=False, interval=4, save_last=False), ITERATIONS),
    (dict(by_epoch=False, interval=2, save_begin=4), ITERATIONS),
    (dict(by_epoch=False, interval=1, max_keep_ckpts=2), ITERATIONS),
    (dict(by_epoch=False, interval=4, max_keep_ckpts=1, save_best='acc'), ITERATIONS),
    (dict(by_epoch=False, interval=2, save_best='auto'), ITERATIONS),
    (dict(by_epoch=False, interval=2, save_best=['auto'], rule='less'), ITERATIONS),
    (dict(by_epoch=False, interval=2, save_best='acc', rule='less'), ITERATIONS),
    (dict(by_epoch=False, interval=2, save_best=['acc', 'loss']), ITERATIONS),
    (dict(by_epoch=False, interval=2, save_best=['acc', 'other'], rule=['less', 'greater']), ITERATIONS),
    (dict(by_epoch=False, interval=2, save_best=['acc', 'other'], rule='greater', max_keep_ckpts=1), ITERATIONS),
    (dict(by_epoch=False, interval=2, save_best='other', greater_keys='other'), ITERATIONS),
    (dict(by_epoch=False, interval=2, save_best='other', less_keys=('other',)), ITERATIONS),
    (dict(by_epoch=False, interval=3, save_optimizer=False, save_param_scheduler=False), ITERATIONS),
    (dict(by_epoch=False, interval=3, save_param_scheduler=False), ITERATIONS),
    (dict(by_epoch=False, interval=3, filename_tmpl='at_{}.pth', save_best='acc', max_keep_ckpts=1), ITERATIONS),
    (dict(by_epoch=False, interval=3, published_keys='state_dict', save_best='acc'), ITERATIONS),
    (dict(by_epoch=False, interval=3, published_keys=['meta', 'state_dict'], save_best=['acc', 'loss']), ITERATIONS),
    (dict(by_epoch=False, interval=3, published_keys=['meta'], save_last=False), ITERATIONS),
    (dict(by_epoch=False, interval=3, out_dir='{root}/elsewhere', save_best='acc'), ITERATIONS),
    (dict(by_epoch=False, interval=3, backend_args=dict(backend='local')), ITERATIONS),
    (dict(by_epoch=False, interval=3, file_client_args=dict(backend='disk')), ITERATIONS),
    (dict(interval=1), EPOCHS),
    (dict(interval=2, save_begin=1), EPOCHS),
    (dict(interval=2, save_last=False), EPOCHS),
    (dict(interval=1, max_keep_ckpts=1, save_best='acc'), EPOCHS),
    (dict(interval=1, max_keep_ckpts=2, save_best=['acc', 'loss']), EPOCHS),
    (dict(interval=1, by_epoch=False, max_keep_ckpts=1, save_best='auto'), EPOCHS),
]


def trained(kinds, tmp_path, arguments, **settings):
    """The outcome of a training with each of ``kinds``."""
    results = []
    for index, (kind, hook) in enumerate(kinds):
        root = tmp_path / str(index)
        given = {
            key: value.replace('{root}', str(root)) if isinstance(value, str) else value
            for key, value in arguments.items()
        }
        started = build(kind, root / 'work', checkpoint=hook(**given), **settings)
        started.train()
        results.append(outcome(started, root))
    return results


@pytest.mark.parametrize(('arguments', 'loop'), CHECKPOINTS, ids=str)
def test_checkpoints(arguments, loop, tmp_path):
    results = trained(BOTH, tmp_path, arguments, loop=loop)
    assert any(name.endswith('.pth') for name in results[0]['files']) is (arguments != NEVER)
    agree(results)


@pytest.mark.parametrize('index', [0, 7, 11, 22, 27, 30])
def test_each_hook_with_each_runner(index, tmp_path):
    arguments, loop = CHECKPOINTS[index]
    agree(trained(MIXED, tmp_path, arguments, loop=loop))


@pytest.mark.parametrize(
    ('arguments', 'error'),
    [
        (dict(save_best=1), AssertionError),
        (dict(save_best=['acc', 'acc']), AssertionError),
        (dict(save_best=['auto', 'acc']), AssertionError),
        (dict(save_best='unknown'), ValueError),
        (dict(save_best='acc', rule='most'), KeyError),
        (dict(save_best=['acc', 'loss'], rule=['less'] * 3), AssertionError),
        (dict(save_begin=-1), ValueError),
        (dict(published_keys=1), TypeError),
        (dict(published_keys=['meta', 'meta']), AssertionError),
        (dict(file_client_args={}, backend_args={}), ValueError),
    ],
    ids=str,
)
def test_wrong_arguments_of_the_checkpoint_hook(arguments, error):
    for _, hook in BOTH:
        with pytest.raises(error):
            hook(**arguments)


def test_arguments_by_position_and_attributes():
    given = (2, False, False, True, 'place', 3, False, ['acc', 'loss'], 'less', ['a'], ['b'], None, '{}.pth')
    hooks = [hook(*given, dict(backend='local'), 'meta', 4) for _, hook in BOTH]
    theirs, ours = (dict(vars(hook), is_better_than=list(hook.is_better_than)) for hook in hooks)
    assert theirs == {key: ours[key] for key in theirs}
    assert hooks[1].priority == hooks[0].priority


# the logger hook: MMEngine's, in our runner

LOGGERS = [
    {},
    dict(interval=2),
    dict(interval=4),
    dict(interval=4, ignore_last=False),
    dict(interval=2, interval_exp_name=4),
    dict(interval=1, log_metric_by_epoch=False),
    dict(interval=2, out_dir='{root}/logs'),
    dict(interval=2, out_dir='{root}/logs', keep_local=False),
    dict(interval=2, out_dir='{root}/logs', out_suffix=('.json',)),
]


def logged(started, root):
    """Scalars in each JSON file of a run without times, and the names of all files."""
    files = [path for path in sorted(root.rglob('*')) if path.is_file() and not path.name.startswith('.')]
    names = [str(path.relative_to(root)).replace(started.timestamp, '<time>') for path in files]
    timed = ('time', 'data_time', 'memory', 'eta')
    scalars = {
        name: [
            {key: value for key, value in json.loads(line).items() if key not in timed}
            for line in path.read_text().splitlines()
        ]
        for name, path in zip(names, files, strict=True)
        if path.suffix == '.json' and path.name != 'run.json'
    }
    return {'names': [name for name in names if not name.endswith('run.json')], 'scalars': scalars}


@pytest.mark.parametrize('loop', [ITERATIONS, EPOCHS], ids=['iterations', 'epochs'])
@pytest.mark.parametrize('arguments', LOGGERS, ids=str)
def test_logs(arguments, loop, tmp_path):
    results = []
    for index, (kind, hook) in enumerate(BOTH):
        root = tmp_path / str(index)
        given = {key: str(value).format(root=root) if key == 'out_dir' else value for key, value in arguments.items()}
        checkpoint = hook(interval=2, by_epoch=loop['by_epoch'])
        logger = dict(type='LoggerHook', **given)
        started = build(kind, root / 'work', loop=loop, default_hooks=dict(checkpoint=checkpoint, logger=logger))
        started.train()
        results.append(logged(started, root))
    assert any('acc' in line for lines in results[0]['scalars'].values() for line in lines)
    agree(results)


# the other hooks


@pytest.mark.parametrize('accumulative_counts', [1, 2])
def test_averaged_weights(accumulative_counts, tmp_path):
    """As ``EMAHook`` with the same settings; accumulated batches are one step, so that ours averages less often."""
    settings = dict(ema_type='MomentumAnnealingEMA', momentum=0.3, gamma=2, update_buffers=True, strict_load=True)
    results = []
    for index, ema in enumerate((EMAHook(**settings), AveragedWeightsHook(momentum=0.3, gamma=2))):
        kind, hook = BOTH[index]
        root = tmp_path / str(index)
        wrapper = dict(optimizer=dict(type='SGD', lr=0.1), accumulative_counts=accumulative_counts)
        started = build(
            kind, root, checkpoint=hook(by_epoch=False, interval=3), custom_hooks=[ema], optim_wrapper=wrapper
        )
        started.train()
        steps = int(ema.ema_model.steps)
        results.append({**outcome(started, root), 'steps': steps, 'metrics': started.test()})
    if accumulative_counts == 1:
        agree(results)
    assert [result['steps'] for result in results] == [6, 6 // accumulative_counts]


@pytest.mark.parametrize(
    'arguments',
    [
        dict(monitor='acc', patience=1),
        dict(monitor='acc', patience=2, min_delta=0.2),
        dict(monitor='loss', patience=1),
        dict(monitor='other', rule='less', patience=1),
        dict(monitor='acc', patience=5, stopping_threshold=0.8),
    ],
    ids=str,
)
def test_early_stopping(arguments, tmp_path):
    results = []
    for index, kind in enumerate((EarlyStoppingHook, ResumableEarlyStoppingHook)):
        stop = kind(**{'min_delta': 1e-6, **arguments})
        started = build(
            BOTH[index][0], tmp_path / str(index), loop=dict(ITERATIONS, val_interval=1), custom_hooks=[stop]
        )
        started.train()
        results.append((started.iter, stop.best_score, stop.wait_count))
    assert results[0] == results[1]
    assert results[0][0] < 6


def test_a_score_that_is_not_finite_stops_early(tmp_path):
    for index, kind in enumerate((EarlyStoppingHook, ResumableEarlyStoppingHook)):
        stop = kind(monitor='acc', patience=9)
        started = build(
            BOTH[index][0], tmp_path / str(index), loop=ITERATIONS, values=[0.5, float('nan'), 1], custom_hooks=[stop]
        )
        started.train()
        assert started.iter == 4


def test_schedulers_of_steps_without_accumulation(tmp_path):
    rates = []
    for index, kind in enumerate((ParamSchedulerHook, OptimizerStepSchedulerHook)):
        hooks = dict(checkpoint=None, param_scheduler=kind())
        started = build(BOTH[index][0], tmp_path / str(index), default_hooks=hooks)
        started.train()
        rates.append(started.message_hub.log_scalars['train/lr']._log_history.tolist())
    assert rates[0] == rates[1] and len(set(rates[0])) == 6


# the runner


def continued(kind, hook, root, **settings):
    """The runner that follows a run of four iterations in the same work dir."""
    first = build(
        kind, root, checkpoint=hook(by_epoch=False, interval=2, save_best='acc'), loop=dict(ITERATIONS, max_iters=4)
    )
    first.train()
    values = settings.pop('values', VALUES[2:])
    given = {
        key: value.replace('{root}', str(root)) if isinstance(value, str) else value for key, value in settings.items()
    }
    return build(kind, root, checkpoint=hook(by_epoch=False, interval=2, save_best='acc'), values=values, **given)


@pytest.mark.parametrize(
    'settings',
    [
        dict(resume=True),
        dict(resume=True, load_from='{root}/iter_2.pth'),
        dict(load_from='{root}/iter_2.pth'),
        dict(load_from='{root}/best_acc_iter_4.pth'),
        dict(),
    ],
    ids=str,
)
def test_resume_and_load_from(settings, tmp_path):
    results = []
    for index, (kind, hook) in enumerate(MIXED):
        root = tmp_path / str(index)
        started = continued(kind, hook, root, **settings)
        started.train()
        results.append({**outcome(started, root), 'iter': started.iter, 'epoch': started.epoch})
    agree(results)


@pytest.mark.parametrize('arguments', [{}, dict(resume_optimizer=False), dict(resume_param_scheduler=False)], ids=str)
def test_resume_by_hand(arguments, tmp_path):
    results = []
    for index, (kind, hook) in enumerate(BOTH):
        root = tmp_path / str(index)
        started = continued(kind, hook, root)
        started.optim_wrapper = started.build_optim_wrapper(started.optim_wrapper)
        started.resume(str(root / 'iter_2.pth'), **arguments)
        started.train()
        results.append({**outcome(started, root), 'iter': started.iter})
    agree(results)


def test_weights_of_another_model(tmp_path):
    """MMEngine loads what fits; ours refuses, unless ``strict`` is false."""
    torch.save({'state_dict': {'layer.weight': torch.ones(1, 2), 'head.weight': torch.ones(1)}}, tmp_path / 'part.pth')
    weights = []
    for index, (kind, _) in enumerate(BOTH):
        started = build(kind, tmp_path / str(index))
        started.load_checkpoint(str(tmp_path / 'part.pth'), strict=False)
        weights.append(dict(started.model.state_dict()))
    assert not tiny.differences(*weights)
    assert weights[1]['layer.weight'].tolist() == [[1, 1]]
    with pytest.raises(UserError, match='it lacks .* and it contains head.weight'):
        build(SafeRunner, tmp_path / 'strict', load_from=str(tmp_path / 'part.pth')).train()


def test_revised_keys(tmp_path):
    states = {f'old.{name}': torch.full_like(value, 2) for name, value in Model().state_dict().items()}
    torch.save({'state_dict': states}, tmp_path / 'old.pth')
    weights = []
    for index, (kind, _) in enumerate(BOTH):
        started = build(kind, tmp_path / str(index))
        started.load_checkpoint(str(tmp_path / 'old.pth'), revise_keys=[(r'^old\.', '')])
        weights.append(dict(started.model.state_dict()))
    assert not tiny.differences(*weights)
    assert weights[1]['layer.bias'].tolist() == [2]


class Named(Hook):
    """Appends its name and the stage to ``calls``."""

    def __init__(self, name, calls, priority='NORMAL'):
        self.name, self.calls, self.priority = name, calls, priority

    def before_run(self, runner):
        self.calls.append((self.name, 'before_run'))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.calls.append((self.name, 'after_train_iter', runner.iter, batch_idx, sorted(outputs), sorted(data_batch)))

    def after_val_epoch(self, runner, metrics=None):
        self.calls.append((self.name, 'after_val_epoch', runner.iter, metrics))

    def after_train_epoch(self, runner):
        self.calls.append((self.name, 'after_train_epoch', runner.epoch))

    def before_save_checkpoint(self, runner, checkpoint):
        checkpoint['from_' + self.name] = runner.iter
        self.calls.append((self.name, 'save', sorted(set(checkpoint) - {'progress'})))

    def after_load_checkpoint(self, runner, checkpoint):
        self.calls.append((self.name, 'load', sorted(set(checkpoint) - {'progress'})))

    def after_run(self, runner):
        self.calls.append((self.name, 'after_run'))


@pytest.mark.parametrize('loop', [ITERATIONS, EPOCHS], ids=['iterations', 'epochs'])
def test_hooks_are_called_in_the_order_of_their_priority(loop, tmp_path):
    results = []
    for index, (kind, hook) in enumerate(BOTH):
        root, calls = tmp_path / str(index), []
        custom = [Named('a', calls, 'LOW'), Named('b', calls, 'VERY_HIGH'), Named('c', calls)]
        checkpoint = hook(by_epoch=loop['by_epoch'], interval=2)
        started = build(kind, root, checkpoint=checkpoint, custom_hooks=custom, loop=loop)
        started.register_hook(Named('d', calls), priority='HIGHEST')
        started.register_hook(Named('e', calls), priority=35)
        started.register_hook(Named('f', calls))
        hooks = started.get_hooks_info().replace(hook.__name__.ljust(35), 'CheckpointHook'.ljust(35))
        started.train()
        build(
            kind,
            root,
            custom_hooks=[Named('g', calls)],
            loop=loop,
            load_from=f'{started.message_hub.get_info("last_ckpt")}',
        ).test()
        results.append((hooks, calls))
    assert len(results[0][1]) > 50
    agree(results)


def whole(kind, hook, work_dir, **settings):
    """The settings of a run as a ``Config``, which has no objects."""
    for registered in (Model, Numbers, Scores):
        registry = {Model: MODELS, Numbers: DATASETS, Scores: METRICS}[registered]
        registry.register_module(registered.__name__ + 'OfContract', module=registered, force=True)
    name = f'contract{next(numbers)}'
    batches = dict(batch_size=2, num_workers=0, sampler=SAMPLER, collate_fn=dict(type='default_collate'))
    loader = dict(batches, dataset=dict(type='NumbersOfContract'))
    return Config(
        dict(
            runner_type=kind.__name__,
            model=dict(type='ModelOfContract'),
            work_dir=str(work_dir),
            train_dataloader=loader,
            val_dataloader=loader,
            test_dataloader=loader,
            train_cfg=dict(type='IterBasedTrainLoop', max_iters=6, val_interval=2),
            val_cfg=dict(type='ValLoop'),
            test_cfg=dict(type='TestLoop'),
            val_evaluator=dict(type='ScoresOfContract'),
            test_evaluator=dict(type='ScoresOfContract'),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
            param_scheduler=[
                dict(type='LinearLR', by_epoch=False, start_factor=0.1, end=3),
                dict(type='PolyLR', by_epoch=False, begin=3, end=6),
            ],
            default_hooks=dict(checkpoint=dict(type=hook.__name__, by_epoch=False, interval=3)),
            custom_hooks=[dict(type='IterTimerHook', priority='LOWEST')],
            visualizer=dict(type='Visualizer', name=name, vis_backends=[dict(type='LocalVisBackend')]),
            log_processor=dict(by_epoch=False),
            randomness=dict(seed=3),
            experiment_name=name,
            default_scope='mmseg',
            **settings,
        )
    )


@pytest.mark.parametrize('settings', [{}, dict(auto_scale_lr=dict(enable=True, base_batch_size=8))], ids=str)
def test_from_a_config(settings, tmp_path):
    results, texts = [], []
    for index, (kind, hook) in enumerate(BOTH):
        root = tmp_path / str(index)
        started = kind.from_cfg(whole(kind, hook, root, **settings))
        started.train()
        started.test()
        results.append(outcome(started, root))
        dumped = [path.read_text() for path in (*root.glob('*.py'), *root.glob('*/vis_data/config.py'))]
        assert len(dumped) == 2 and dumped[0] == dumped[1] == started.cfg.pretty_text
        texts.append(re.sub(r'contract\d+|Safe(?=Runner)|Atomic', '', short(dumped[0], root)))
    assert texts[0] == texts[1]
    for result in results:
        result['info'].pop('cfg')
        for name in result['files']:
            if name.endswith('.pth'):
                result['files'][name]['message_hub'][1].pop('cfg')
                result['files'][name]['meta'].pop('cfg')
    agree(results)


def rates(wrapper):
    return {key: value if isinstance(value, list) else dict(value) for key, value in wrapper.get_lr().items()}


@pytest.mark.parametrize(
    'scale',
    [
        None,
        dict(enable=False, base_batch_size=8),
        dict(enable=True, base_batch_size=8),
        dict(enable=True, base_batch_size=2),
    ],
    ids=str,
)
def test_scaled_rates(scale, tmp_path):
    results = []
    for index, (kind, _) in enumerate(BOTH):
        started = build(kind, tmp_path / str(index))
        wrapper = started.build_optim_wrapper(started.optim_wrapper)
        several = OptimWrapperDict(one=OptimWrapper(torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.5)))
        started.scale_lr(wrapper, scale)
        started.scale_lr(several, scale)
        results.append([rates(wrapper), rates(several)])
    agree(results)


def test_rates_are_scaled_before_schedulers_are_built(tmp_path):
    for index, (kind, _) in enumerate(BOTH):
        started = build(kind, tmp_path / str(index))
        started.optim_wrapper = started.build_optim_wrapper(started.optim_wrapper)
        started.param_schedulers = started.build_param_scheduler(started.param_schedulers)
        with pytest.raises(RuntimeError, match='before building'):
            started.scale_lr(started.optim_wrapper, dict(enable=True, base_batch_size=8))
        with pytest.raises(AssertionError):
            build(kind, tmp_path / str(index)).scale_lr(started.optim_wrapper, dict(enable=True))
        with pytest.raises(AssertionError):
            build(kind, tmp_path / str(index)).scale_lr(Model(), dict(enable=True, base_batch_size=8))


def test_validation_and_test_alone(tmp_path):
    for index, (kind, hook) in enumerate(MIXED):
        started = build(kind, tmp_path / str(index), checkpoint=hook(by_epoch=False, interval=3))
        assert started.val() == started.test() == dict(acc=0.5, loss=0.5, other=0.25)
        assert started.test()['acc'] == 0.9


def test_data_loaders_of_torch(tmp_path):
    """Loaders that are built already: with a sampler of batches, and without worker processes."""
    results = []
    for index, (kind, hook) in enumerate(BOTH):
        root = tmp_path / str(index)
        batches = torch.utils.data.BatchSampler(range(12), 3, drop_last=False)
        loader = torch.utils.data.DataLoader(Numbers(), batch_sampler=batches)
        started = build(kind, root, checkpoint=hook(interval=1), loop=EPOCHS, train_dataloader=loader)
        started.train()
        results.append(outcome(started, root))
    agree(results)


class Extended(Model):
    """A model with a state that is no tensor, and a version of its state dict."""

    _version = 7
    loaded = None

    def get_extra_state(self):
        return dict(name='state', values=[1, 2.5])

    def set_extra_state(self, state):
        self.loaded = state

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *more):
        self.seen = local_metadata.get('version')
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *more)


@pytest.mark.parametrize('resume', [False, True])
def test_state_that_is_no_tensor(resume, tmp_path):
    for index, (kind, hook) in enumerate(BOTH):
        root = tmp_path / str(index)
        build(kind, root, checkpoint=hook(by_epoch=False), loop=dict(ITERATIONS, max_iters=4), model=Extended()).train()
        started = build(kind, root, load_from=str(root / 'iter_4.pth'), resume=resume, model=Extended())
        started.train()
        assert started.model.loaded == dict(name='state', values=[1, 2.5])
        assert started.model.seen == 7


class Pair(Model):
    """Two optimizers."""

    def __init__(self):
        super().__init__()
        self.second = nn.Linear(2, 1)
        nn.init.constant_(self.second.weight, 0.2)
        nn.init.constant_(self.second.bias, 0)

    def train_step(self, data, optim_wrapper):
        losses = {}
        for name, layer in (('one', self.layer), ('two', self.second)):
            losses[f'loss_{name}'] = (layer(data['x']) - data['y']).square().mean()
            optim_wrapper[name].update_params(losses[f'loss_{name}'])
        return losses


def test_several_optimizers(tmp_path):
    schedulers = dict(
        one=dict(type='PolyLR', by_epoch=False, end=6), two=[dict(type='ConstantLR', by_epoch=False, end=2)]
    )
    results = []
    for index, (kind, hook) in enumerate(BOTH):
        root = tmp_path / str(index)
        for settings in (dict(loop=dict(ITERATIONS, max_iters=4)), dict(resume=True)):
            model = Pair()
            wrappers = OptimWrapperDict(
                one=OptimWrapper(torch.optim.SGD(model.layer.parameters(), lr=0.1)),
                two=OptimWrapper(torch.optim.Adam(model.second.parameters(), lr=0.2)),
            )
            settings.update(model=model, optim_wrapper=wrappers, param_scheduler=schedulers)
            started = build(kind, root, checkpoint=hook(by_epoch=False, interval=2), **settings)
            started.train()
        results.append(outcome(started, root))
    agree(results)


def test_checkpoints_behind_a_prefix(tmp_path):
    """``out_dir`` and ``load_from`` of a registered storage backend."""
    register_backend('contract', Prefixed, prefixes='contract', force=True)
    FileClient.register_backend('contract', Prefixed, prefixes='contract', force=True)
    results = []
    for index, (kind, hook) in enumerate(BOTH):
        root = tmp_path / str(index)
        checkpoint = hook(
            by_epoch=False, interval=2, out_dir=f'contract://{root}/store', save_best='acc', max_keep_ckpts=1
        )
        build(kind, root / 'run', checkpoint=checkpoint, loop=dict(ITERATIONS, max_iters=4)).train()
        results.append(sorted(path.name for path in (root / 'store' / 'run').iterdir()))
        last = f'contract://{root}/store/run/iter_4.pth'
        assert (root / 'run' / 'last_checkpoint').read_text() == last
        config = Config({'work_dir': str(root / 'run')})
        set_resume(config, 'auto')
        assert config.load_from == last
        started = build(kind, root / 'run', resume=True)
        started.train()
        assert started.message_hub.get_info('last_ckpt') == last
        with pytest.raises(UserError, match='contract://none.pth does not exist'):
            build(SafeRunner, root / 'none', load_from='contract://none.pth').train()
    assert results[0] == results[1] == ['best_acc_iter_4.pth', 'iter_4.pth']


class Prefixed(BaseStorageBackend):
    """Local files with a prefix."""

    def __getattr__(self, name):
        return lambda *given: getattr(LocalBackend(), name)(
            *[value.removeprefix('contract://') if isinstance(value, str) else value for value in given]
        )

    def get(self, filepath):
        return LocalBackend().get(filepath.removeprefix('contract://'))

    def get_text(self, filepath):
        return LocalBackend().get_text(filepath.removeprefix('contract://'))

    def join_path(self, filepath, *filepaths):
        return '/'.join([filepath, *filepaths])


def test_constructor(tmp_path):
    """Arguments by position, and an error that names what is missing."""
    for index, (kind, _) in enumerate(BOTH):
        folder = str(tmp_path / str(index))
        loader = dict(dataset=Numbers(), batch_size=2, sampler=SAMPLER)
        given = (loader, None, None, ITERATIONS, None, None, None, dict(optimizer=dict(type='SGD', lr=1)))
        started = kind(Model(), folder, *given, experiment_name=f'contract{next(numbers)}')
        assert (started.work_dir, started.train_loop.max_iters) == (folder, 6)
        with pytest.raises(TypeError, match='work_dir'):
            kind(Model())


def test_a_work_dir_that_is_a_path(tmp_path):
    for index, (kind, hook) in enumerate(BOTH):
        started = build(kind, tmp_path / str(index), checkpoint=hook(by_epoch=False))
        started.train()
        assert (tmp_path / str(index) / 'iter_6.pth').is_file()


def test_training_twice(tmp_path):
    """A second ``train`` of a runner starts at the end."""
    for index, (kind, hook) in enumerate(BOTH):
        started = build(kind, tmp_path / str(index), checkpoint=hook(by_epoch=False, interval=2))
        for _ in range(2):
            assert started.train() is started.model
            assert started.iter == 6

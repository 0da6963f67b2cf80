"""The flags --iters, --batch-size and --lr: all that counts iterations moves with the run."""

import copy
import math

import pytest
from mmengine.config import Config
from mmengine.optim import LinearLR, PolyLR, build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS
from torch import nn

from volo_seg.config.load import load_config, shipped_configs
from volo_seg.engine.recipe import apply_recipe
from volo_seg.engine.schedule import check_schedule, set_iterations
from volo_seg.errors import UserError

FOLDERS = 'volo-nano_upernet_1xb4-20k_folders-256x256'
# one of MMSegmentation's, 40,000 iterations of SGD
STOCK = dict(
    optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9)),
    param_scheduler=[dict(type='PolyLR', eta_min=1e-4, power=0.9, begin=0, end=40000, by_epoch=False)],
    train_cfg=dict(type='IterBasedTrainLoop', max_iters=40000, val_interval=4000),
    default_hooks=dict(
        logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
        checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=4000),
    ),
    train_dataloader=dict(batch_size=2),
)
EPOCHS = dict(
    optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3)),
    param_scheduler=[
        dict(type='LinearLR', start_factor=0.1, begin=0, end=5, by_epoch=True, convert_to_iter_based=True),
        dict(type='CosineAnnealingLR', T_max=95, begin=5, end=100),
    ],
    train_cfg=dict(by_epoch=True, max_epochs=100, val_interval=10, val_begin=20, dynamic_intervals=[(80, 2)]),
    default_hooks=dict(
        logger=dict(type='LoggerHook', interval=50), checkpoint=dict(type='CheckpointHook', interval=10, save_begin=20)
    ),
    custom_hooks=[dict(type='EMAHook', momentum=0.001, begin_epoch=10)],
    log_processor=dict(by_epoch=True),
)


def rates(config, count):
    """The rate of each of ``count`` iterations, as the schedulers of ``config`` give them."""
    wrapper = build_optim_wrapper(nn.Linear(1, 1), copy.deepcopy(config.optim_wrapper))
    schedulers = [PARAM_SCHEDULERS.build(dict(one, optimizer=wrapper)) for one in config.param_scheduler]
    found = []
    for _ in range(count):
        found.append(wrapper.param_groups[0]['lr'])
        wrapper.update_params(nn.Linear(1, 1).weight.sum(), zero_kwargs={})
        for scheduler in schedulers:
            scheduler.step()
    return found


@pytest.mark.parametrize('name', shipped_configs())
def test_all_intervals_of_a_shipped_config_move_together(name):
    before, config = load_config(name), load_config(name)
    length = before.train_cfg.max_iters
    set_iterations(config, 5 * length)
    assert config.train_cfg.max_iters == config.max_iters == config.param_scheduler[-1].end == 5 * length
    assert config.train_cfg.val_interval == 5 * before.train_cfg.val_interval
    assert config.default_hooks.checkpoint.interval == 5 * before.default_hooks.checkpoint.interval
    assert config.default_hooks.logger == before.default_hooks.logger
    warm_up, decay = config.param_scheduler
    assert warm_up.end == decay.begin == 5 * before.param_scheduler[0].end
    set_iterations(config, length)
    assert config.to_dict() == before.to_dict()


def test_a_short_run_has_its_whole_schedule_and_few_validations():
    config = load_config(FOLDERS)
    apply_recipe(config, iterations=1000, batch_size=2, rate=0.01, ema=True)
    assert config.train_cfg == dict(type='IterBasedTrainLoop', max_iters=1000, val_interval=200)
    assert config.default_hooks.checkpoint.interval == 200 and config.default_hooks.logger.interval == 50
    assert config.train_dataloader.batch_size == 2
    average = config.custom_hooks[-1]
    assert average == dict(type='AveragedWeightsHook', momentum=0.004)  # 0.0002 is for 20,000
    seen = rates(config, 1000)
    assert max(seen) == pytest.approx(0.01) and seen.index(max(seen)) == pytest.approx(75, abs=1)
    assert seen[0] < 1e-7 and seen[-1] < 2e-5
    given = load_config(FOLDERS)
    apply_recipe(given, iterations=100, ema=0.5)
    assert given.custom_hooks[-1].momentum == 0.5 and given.default_hooks.logger.interval == 5
    assert given.train_cfg.val_interval == 100


def test_momentum_of_a_config_moves_and_is_bounded():
    config = load_config(FOLDERS)
    config.custom_hooks = [dict(type='AveragedWeightsHook', momentum=0.0002, begin_iter=2000)]
    set_iterations(config, 2000)
    assert config.custom_hooks == [dict(type='AveragedWeightsHook', momentum=0.002, begin_iter=200)]
    set_iterations(config, 10)
    assert config.custom_hooks[0].momentum == 0.1


@pytest.mark.parametrize('count', [1, 2, 13, 20, 27])
def test_schedules_of_very_short_runs_reach_the_rate(count):
    """MMEngine stays at the first value of a warm-up of one iteration."""
    config = load_config(FOLDERS)
    set_iterations(config, count)
    assert max(rates(config, count)) == pytest.approx(2e-3)


def test_accumulated_batches():
    config = load_config(FOLDERS)
    apply_recipe(config, iterations=1000, accumulated=4)
    assert config.train_cfg.max_iters == 4000 and config.param_scheduler[-1].end == 1000
    assert check_schedule(config) is None
    set_iterations(config, 500)
    assert config.train_cfg.max_iters == 2000 and config.param_scheduler[-1].end == 500


def test_stock_config():
    config = Config(copy.deepcopy(STOCK))
    apply_recipe(config, iterations=4000, rate=0.001, batch_size=8)
    assert config.train_cfg == dict(type='IterBasedTrainLoop', max_iters=4000, val_interval=400)
    assert config.default_hooks.checkpoint == dict(type='CheckpointHook', by_epoch=False, interval=400)
    assert config.param_scheduler[0].end == 4000 and config.param_scheduler[0].eta_min == pytest.approx(1e-5)
    assert config.optim_wrapper.optimizer.lr == 0.001 and config.train_dataloader.batch_size == 8


def test_epochs_become_iterations():
    config = Config(copy.deepcopy(EPOCHS))
    set_iterations(config, 5000)
    assert config.train_cfg == dict(
        type='IterBasedTrainLoop', max_iters=5000, val_interval=500, val_begin=1000, dynamic_intervals=[[4000, 100]]
    )
    warm_up, cosine = config.param_scheduler
    assert warm_up == dict(type='LinearLR', start_factor=0.1, begin=0, end=250, by_epoch=False)
    assert cosine == dict(type='CosineAnnealingLR', T_max=4750, begin=250, end=5000, by_epoch=False)
    checkpoint = config.default_hooks.checkpoint
    assert (checkpoint.by_epoch, checkpoint.interval, checkpoint.save_begin) == (False, 500, 1000)
    assert config.default_hooks.logger.log_metric_by_epoch is config.log_processor.by_epoch is False
    assert config.custom_hooks == [dict(type='EMAHook', momentum=0.001, begin_iter=500)]


def test_other_schedules():
    steps = [
        dict(type='MultiStepLR', milestones=[20000, 30000], by_epoch=False),
        dict(type='ExponentialLR', gamma=0.9, by_epoch=False, end=math.inf),
        dict(type='ConstantLR', begin=0, end=3),  # counts epochs in a run by iterations: as it was
    ]
    config = Config({**copy.deepcopy(STOCK), 'param_scheduler': steps})
    set_iterations(config, 20000)
    assert config.param_scheduler[0].milestones == [10000, 15000]
    assert config.param_scheduler[1].gamma == pytest.approx(0.81) and config.param_scheduler[1].end == math.inf
    assert config.param_scheduler[2] == dict(type='ConstantLR', begin=0, end=3)


@pytest.mark.parametrize(
    ('flags', 'change', 'message'),
    [
        (dict(iterations=0), {}, '--iters 0 is below 1'),
        (
            dict(iterations=5),
            dict(train_cfg=dict(type='Mine', max_iters=9)),
            "needs a train_cfg with .* the config has {'type",
        ),
        (dict(iterations=5), dict(train_cfg=None), 'the config has {}'),
        (dict(batch_size=0), {}, '--batch-size 0 is below 1'),
        (dict(batch_size=3), dict(train_dataloader=dict(batch_sampler=dict(type='X'))), 'has a batch_sampler'),
        (dict(batch_size=3), dict(train_dataloader=None), 'is missing in the config'),
        (dict(rate=0.0), {}, '--lr 0 is not a positive number'),
        (dict(rate=math.nan), {}, '--lr nan is not a positive number'),
        (dict(rate=0.1), dict(optim_wrapper=dict(a=dict(optimizer=dict(type='SGD')))), 'several optimizers or none'),
        (dict(iterations=9), dict(optim_wrapper=None), 'optim_wrapper is missing'),
        (dict(crop=(64, 64)), {}, '--crop 64 64: the training pipeline of the config has no RandomCrop'),
        (dict(scale=(64, 64)), {}, '--scale 64 64: no pipeline of the config has Resize'),
    ],
)
def test_mistakes(flags, change, message):
    config = Config({**copy.deepcopy(STOCK), 'model': {}, **change})
    with pytest.raises(UserError, match=message):
        apply_recipe(config, **flags)


def test_schedule_in_iterations_of_a_run_by_epochs():
    config = Config(copy.deepcopy(EPOCHS))
    config.param_scheduler[0] = dict(type='LinearLR', start_factor=0.1, begin=0, end=1500, by_epoch=False)
    with pytest.raises(UserError, match=r'--iters 1000: param_scheduler.0.end=1500 counts iterations while'):
        set_iterations(config, 1000)


def test_a_length_that_the_schedule_does_not_have_is_told():
    assert all(check_schedule(load_config(name)) is None for name in shipped_configs())
    assert check_schedule(Config(copy.deepcopy(STOCK))) is check_schedule(Config(copy.deepcopy(EPOCHS))) is None
    told = check_schedule(load_config(FOLDERS, ['train_cfg.max_iters=600']))
    assert told == (
        'train_cfg.max_iters=600, but the schedule of the learning rate is made for 20000 iterations '
        '(param_scheduler.1.end); --iters 600 sets both, with warm-up, validations and checkpoints'
    )


def test_the_stock_scheduler_that_the_removal_is_for():
    """If MMEngine handles a warm-up of one iteration some day, schedules of one step need not be removed."""
    wrapper = build_optim_wrapper(nn.Linear(1, 1), dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=1.0)))
    schedulers = [
        LinearLR(wrapper, start_factor=1e-6, begin=0, end=1, by_epoch=False),
        PolyLR(wrapper, eta_min=0.0, power=1.0, begin=1, end=13, by_epoch=False),
    ]
    for scheduler in schedulers:
        scheduler.step()
    assert wrapper.param_groups[0]['lr'] < 1e-5

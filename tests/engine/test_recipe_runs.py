"""The recipe in runs of a few iterations: averaged weights saved, evaluated and resumed; flags; the rate."""

import json

import pytest
import tiny
import torch
from mmengine.config import Config, ConfigDict
from mmengine.hooks import Hook
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS, RUNNERS
from torch import nn

import volo_seg.models  # noqa: F401
from volo_seg.checkpoints import load_file
from volo_seg.checkpoints.segmentor import load_segmentor_weights
from volo_seg.commands import run
from volo_seg.config.load import load_config, set_data_root
from volo_seg.engine.hooks.ema_hook import use_ema
from volo_seg.engine.launch import replace_types
from volo_seg.engine.recipe import apply_recipe

NANO = 'volo-nano_upernet_1xb4-1200_toyscapes-256x256'
D1 = 'volo-d1_upernet_8xb2-160k_cityscapes-512x1024'
CONV = 'decode_head.conv_seg.weight'


@pytest.fixture(autouse=True)
def _scope():
    init_default_scope('mmseg')


def small(toyscapes, work_dir, *options):
    """A run of a few iterations on tiny crops."""
    words = (
        *tiny.pairs_of(tiny.small_options(64)),
        'default_hooks.checkpoint.interval=3',
        'train_cfg.val_interval=3',
        'randomness.seed=3',
        *options,
    )
    config = tiny.use_volo(load_config(NANO, words))
    set_data_root(config, str(toyscapes))
    config.work_dir, config.launcher = str(work_dir), 'none'
    config.visualizer.name = config.experiment_name = f'{work_dir.parent.name}_{work_dir.name}'
    return config


def without_validation(config):
    config.val_dataloader = config.val_cfg = config.val_evaluator = None
    return config


def weights(path):
    return load_file(path)


class Recorder(Hook):
    """Keeps the state before the first iteration and after each one."""

    priority = 'VERY_HIGH'

    def __init__(self):
        self.states = []

    def before_train(self, runner):
        self.states.append(copied(runner.model))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.states.append(copied(runner.model))


def copied(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture(scope='module')
def averaged(toyscapes, tmp_path_factory):
    """A run of six iterations with averaged weights: its runner, its folder, its weights over time."""
    init_default_scope('mmseg')
    folder = tmp_path_factory.mktemp('ema') / 'whole'
    config = small(toyscapes, folder, 'train_cfg.max_iters=6')
    use_ema(config, 0.05)
    runner = RUNNERS.build(config)
    recorder = Recorder()
    runner.register_hook(recorder)
    runner.train()
    return runner, folder, recorder.states


def expected_average(states):
    """The average by the rule itself: the first step's weights are copied, then each step moves it."""
    average = {name: value.clone() for name, value in states[0].items()}
    for step, state in enumerate(states[1:], 1):
        momentum = max(0.05, 10 / (10 + step))
        for name, value in state.items():
            if value.dtype.is_floating_point:
                average[name] += momentum * (value - average[name])
    return average


def test_averaged_weights_follow_the_rule_and_are_saved(averaged):
    _, folder, states = averaged
    assert len(states) == 7
    saved = weights(folder / 'iter_6.pth')
    for name, value in expected_average(states[1:]).items():
        if value.dtype.is_floating_point:
            torch.testing.assert_close(saved['state_dict'][name], value, msg=name)
        assert torch.equal(saved['ema_state_dict'][f'module.{name}'], states[-1][name]), name
    mean = 'backbone.patch_embed.conv.1.running_mean'
    assert not torch.equal(saved['state_dict'][mean], states[-1][mean])


def test_one_process_trains_with_plain_batch_norms(averaged, toyscapes):
    """The config names SyncBN; what can run here is chosen by the runner."""
    runner, folder, _ = averaged
    assert small(toyscapes, folder).model.decode_head.norm_cfg.type == 'SyncBN'
    kinds = {type(module) for module in runner.model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)}
    assert nn.SyncBatchNorm not in kinds and len(kinds) == 1


def test_best_checkpoint_is_the_average_that_was_evaluated(averaged, toyscapes, tmp_path):
    """What validation said of the best checkpoint is what testing it says, with the hook in the config and without."""
    runner, folder, _ = averaged
    (best,) = folder.glob('best_mIoU_*.pth')
    for hook in (True, False):
        config = small(toyscapes, tmp_path / f'test{hook}')
        if hook:
            use_ema(config, 0.05)
        config.load_from = str(best)
        assert RUNNERS.build(config).test()['mIoU'] == runner.message_hub.get_info('best_score')


def test_resumed_average_goes_on_where_it_was(averaged, toyscapes, tmp_path):
    _, folder, states = averaged
    config = without_validation(small(toyscapes, tmp_path / 'rest', 'train_cfg.max_iters=4'))
    config.default_hooks.checkpoint.interval = 4
    use_ema(config, 0.05)
    config.load_from, config.resume = str(folder / 'iter_3.pth'), True
    runner = RUNNERS.build(config)
    recorder = Recorder()
    runner.register_hook(recorder)
    runner.train()
    for name, value in recorder.states[0].items():  # the weights that train, not their average
        assert torch.equal(value, states[3][name]), name
    saved = weights(tmp_path / 'rest' / 'iter_4.pth')
    assert saved['ema_state_dict']['steps'] == 4
    expected = expected_average([*states[1:4], recorder.states[1]])
    torch.testing.assert_close(saved['state_dict'][CONV], expected[CONV])


def test_average_begins_at_resumed_weights_without_one(averaged, toyscapes, tmp_path):
    """Weights loaded to start from are averaged from there on; so are those of a run that kept no average."""
    _, folder, _ = averaged
    plain = weights(folder / 'iter_3.pth')
    del plain['ema_state_dict']
    torch.save(plain, tmp_path / 'plain.pth')
    config = without_validation(small(toyscapes, tmp_path / 'rest', 'train_cfg.max_iters=4'))
    use_ema(config, 0.05)
    config.custom_hooks[-1].begin_iter = 4
    config.load_from, config.resume = str(tmp_path / 'plain.pth'), True
    runner = RUNNERS.build(config)
    runner.train()
    (hook,) = [hook for hook in runner.hooks if type(hook).__name__ == 'AveragedWeightsHook']
    assert torch.equal(hook.ema_model.module.state_dict()[CONV], runner.model.state_dict()[CONV])
    assert not torch.equal(runner.model.state_dict()[CONV], plain['state_dict'][CONV])


def test_frozen_stages_stay_as_they_are(toyscapes, tmp_path):
    """Neither a step, nor weight decay, nor a batch changes frozen parameters and statistics."""
    options = ('train_cfg.max_iters=2', 'model.backbone.frozen_stages=2', 'optim_wrapper.optimizer.weight_decay=0.5')
    runner = RUNNERS.build(without_validation(small(toyscapes, tmp_path / 'run', *options)))
    recorder = Recorder()
    runner.register_hook(recorder)
    runner.train()
    before, _, after = recorder.states
    frozen = tuple(
        f'backbone.{part}' for part in ('patch_embed.', 'network.0.', 'network.1.', 'network.2.', 'pos_embed')
    )
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert not [name for name in moved if name.startswith(frozen)]
    assert {'backbone.network.3.0.attn.qkv.weight', CONV, 'decode_head.bottleneck.bn.running_mean'} <= moved


def test_layer_decay_and_averages_under_ddp(toyscapes, tmp_path, monkeypatch):
    """One gloo process: the wrapped model gives the same groups, and its average is saved without the wrapper."""
    config = without_validation(small(toyscapes, tmp_path / 'run', 'train_cfg.max_iters=2'))
    apply_recipe(config, layer_decay=0.5, ema=0.05, accumulated=2)
    config.model = replace_types(config.model, {'SyncBN': 'BN'})
    config.model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)
    config.launcher = 'pytorch'
    monkeypatch.setenv('LOCAL_RANK', '0')
    store = torch.distributed.FileStore(str(tmp_path / 'store'), 1)
    torch.distributed.init_process_group('gloo', store=store, rank=0, world_size=1)
    try:
        runner = RUNNERS.build(config)
        runner.train()
    finally:
        torch.distributed.destroy_process_group()
    assert type(runner.model).__name__ == 'MMDistributedDataParallel'
    groups = runner.optim_wrapper.optimizer.param_groups
    assert [group['layer'] for group in groups[::2]] == [*range(9, -1, -1)]
    assert sum(len(g['params']) for g in groups) == len(list(runner.model.parameters()))
    saved = weights(tmp_path / 'run' / 'iter_4.pth')
    assert saved['ema_state_dict']['steps'] == 2
    assert CONV in saved['state_dict'] and f'module.{CONV}' in saved['ema_state_dict']


def test_other_commands_read_averaged_weights(averaged, toyscapes):
    _, folder, _ = averaged
    config = small(toyscapes, folder)
    model = MODELS.build(replace_types(config.model.to_dict(), {'SyncBN': 'BN'}))
    load_segmentor_weights(model, folder / 'iter_6.pth')
    assert torch.equal(model.state_dict()[CONV], weights(folder / 'iter_6.pth')['state_dict'][CONV])


def test_class_weights_of_the_labels(toyscapes):
    from volo_seg.datasets.inspection.frequencies import training_weights

    config = load_config(NANO)
    set_data_root(config, str(toyscapes))
    one = training_weights(config, 'inverse', processes=1)
    # the same images twice, put together: the same weights
    part = config.train_dataloader.dataset.dataset
    config.train_dataloader.dataset.dataset = ConfigDict(type='ConcatDataset', datasets=[part, part])
    assert training_weights(config, 'inverse', processes=1) == one
    # a repeated data set counts as often as it is repeated, inside other wrappers too
    other = config.val_dataloader.dataset
    repeated = dict(type='RepeatDataset', times=3, dataset=dict(type='ConcatDataset', datasets=[other]))
    found = []
    for datasets in ([part, repeated], [part, other, other, other], [part, other]):
        config.train_dataloader.dataset.dataset = ConfigDict(type='ConcatDataset', datasets=datasets)
        found.append(training_weights(config, 'inverse', processes=1))
    assert found[0] == found[1] != found[2]
    assert len(one) == 19 and max(one) > 2 * min(one)


def prepared(words, toyscapes, tmp_path):
    """The config that ``volo-seg train WORDS`` would run."""
    from volo_seg.commands.flags import bare_amp
    from volo_seg.commands.train import build_parser, prepare

    where = ['--data-root', str(toyscapes), '--work-dir', str(tmp_path)]
    return prepare(build_parser().parse_args(bare_amp([*words, *where])))


def test_flags_reach_the_config(toyscapes, tmp_path):
    words = ['--amp', D1, '--accumulate', '2', '--auto-scale-lr', '--layer-decay', '0.9', '--ema', '--patience', '3']
    config = prepared([*words, '--class-weights', '--ohem', '--from-scratch'], toyscapes, tmp_path)
    wrapper = config.optim_wrapper
    assert (wrapper.type, wrapper.accumulative_counts) == ('AutocastOptimWrapper', 2)
    assert (wrapper.constructor, wrapper.paramwise_cfg.decay_rate) == ('VOLOLayerDecayConstructor', 0.9)
    assert config.auto_scale_lr.enable
    for hook in (
        dict(type='AveragedWeightsHook', momentum=0.0002),
        dict(type='ResumableEarlyStoppingHook', monitor='mIoU', patience=3),
    ):
        assert config.custom_hooks.count(hook) == 1
    assert len(config.model.decode_head.loss_decode.class_weight) == 19
    assert config.model.decode_head.sampler.type == 'OHEMPixelSampler'
    assert Config.fromstring(config.pretty_text, '.py').custom_hooks == config.custom_hooks  # what a run writes down


def test_class_weights_from_a_file(toyscapes, tmp_path, capsys):
    file = tmp_path / 'weights.json'
    file.write_text(json.dumps([1.0] * 19))
    config = prepared([NANO, '--class-weights', str(file)], toyscapes, tmp_path)
    assert config.model.decode_head.loss_decode.class_weight == [1.0] * 19
    assert run('train', [NANO, '--data-root', str(toyscapes), '--class-weights', 'nothing']) == 2
    told = "--class-weights 'nothing' is neither inverse nor median nor sqrt nor a .json or .txt or .npy file"
    assert told in capsys.readouterr().err


def test_run_with_accumulation_scales_its_rate(toyscapes, tmp_path):
    """The optimizer's rate is for the images of its step, and the run makes as many steps as the config says."""
    config = without_validation(small(toyscapes, tmp_path / 'run', 'train_cfg.max_iters=2'))
    apply_recipe(config, accumulated=4, scale_lr=True, layer_decay=0.5)
    runner = RUNNERS.build(config)
    rates, counts = [], []
    original = runner.optim_wrapper

    class Watch(Hook):
        def before_train(self, runner):
            optimizer = runner.optim_wrapper.optimizer
            plain = optimizer.step
            optimizer.step = lambda *a, **k: (rates.append(optimizer.param_groups[0]['lr']), plain(*a, **k))[1]

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            counts.append(batch_idx)

    assert isinstance(original, dict)
    runner.register_hook(Watch())
    runner.train()
    assert len(counts) == 8 and len(rates) == 2
    # 2 images x 4 batches, the config's rate is for 4; the schedule starts at a thousandth and takes 30 steps to rise
    assert rates[0] == pytest.approx(2e-3 * 2 * 1e-3)
    assert rates[1] == pytest.approx(2e-3 * 2 * (1e-3 + (1 - 1e-3) / 59), rel=1e-6)
    assert [g['lr'] for g in runner.optim_wrapper.optimizer.param_groups[::2]] == pytest.approx(
        [runner.optim_wrapper.optimizer.param_groups[0]['lr'] * 0.5**i for i in range(10)]
    )

"""The recipe: groups of the optimizer, averaged weights, accumulation, stopping, losses, number formats."""

import copy
import math
from types import SimpleNamespace

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.optim import OptimWrapper, PolyLR, build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import nn

import volo_seg.models  # noqa: F401
from volo_seg.config.load import load_config
from volo_seg.config.losses import check_losses, choose_loss, losses, set_class_weights
from volo_seg.engine.hooks import ResumableEarlyStoppingHook
from volo_seg.engine.hooks.compile_hook import (
    CompiledBackboneHook,
    compile_backbone,
    use_compiled_backbone,
    why_not_compiled,
)
from volo_seg.engine.hooks.early_stopping_hook import stop_early
from volo_seg.engine.hooks.ema_hook import use_ema
from volo_seg.engine.launch import replace_types
from volo_seg.engine.optim import AutocastOptimWrapper, OptimizerStepSchedulerHook
from volo_seg.engine.optim.amp import enable_amp
from volo_seg.engine.optim.batch_size import accumulate, auto_scale_lr
from volo_seg.engine.optim.layer_decay_constructor import layer_of, table
from volo_seg.engine.recipe import apply_recipe
from volo_seg.errors import UserError
from volo_seg.models.backbones.volo import VOLO

NANO = 'volo-nano_upernet_1xb4-1200_toyscapes-256x256'
ADE = 'volo-d1_upernet_8xb2-160k_ade20k-512x512'


@pytest.fixture(autouse=True)
def _scope():
    init_default_scope('mmseg')


@pytest.fixture
def config():
    return tiny.use_volo(load_config(NANO))


def segmentor(config, **backbone):
    model = replace_types(config.model.to_dict(), {'SyncBN': 'BN'})
    model['backbone'].update(img_size=64, **backbone)
    return MODELS.build(model)


def samples(count, classes=19, side=64, ignored=0.1):
    found = []
    for _ in range(count):
        labels = torch.randint(0, classes, (1, side, side))
        labels[torch.rand(labels.shape) < ignored] = 255
        meta = dict(img_shape=(side, side), ori_shape=(side, side))
        found.append(SegDataSample(gt_sem_seg=PixelData(data=labels), metainfo=meta))
    return found


# layer-wise learning rates


def decayed(model, config, **paramwise):
    wrapper = copy.deepcopy(config.optim_wrapper)
    wrapper.constructor = 'VOLOLayerDecayConstructor'
    wrapper.paramwise_cfg = {**wrapper.paramwise_cfg, **paramwise}
    return build_optim_wrapper(model, wrapper)


# written by hand for nano (2, 2, 2, 2 blocks): what a parameter's name starts with -> its layer of 0..9
NANO_LAYERS = {
    'backbone.patch_embed.': 0,
    'backbone.network.0.0.': 1,
    'backbone.network.0.1.': 2,
    'backbone.network.1.': 3,
    'backbone.pos_embed': 3,
    'backbone.network.2.0.': 3,
    'backbone.network.2.1.': 4,
    'backbone.network.3.0.': 5,
    'backbone.network.3.1.': 6,
    'backbone.network.4.0.': 7,
    'backbone.network.4.1.': 8,
    'backbone.norm': 9,
    'decode_head.': 9,
    'auxiliary_head.': 9,
}


def test_layer_decay_parameter_by_parameter(config):
    model = segmentor(config)
    optimizer = decayed(model, config, decay_rate=0.5).optimizer
    names = {id(p): name for name, p in model.named_parameters()}
    seen = []
    for group in optimizer.param_groups:
        for parameter in group['params']:
            name = names[id(parameter)]
            seen.append(name)
            (layer,) = [layer for start, layer in NANO_LAYERS.items() if name.startswith(start)]
            assert group['lr'] == pytest.approx(2e-3 * 0.5 ** (9 - layer)), name
            assert group['layer'] == layer, name
            # one axis only: norms and biases; every other parameter but the position grid decays
            exempt = parameter.ndim == 1 or name == 'backbone.pos_embed'
            assert group['weight_decay'] == (0.0 if exempt else 0.01), name
    assert sorted(seen) == sorted(names.values())
    assert len(optimizer.param_groups) == 20
    assert optimizer.param_groups[0]['lr'] == 2e-3  # the log shows the first group's


def test_layers_of_d5_rise_with_the_forward_pass():
    depths = (12, 12, 20, 4)
    with torch.device('meta'):
        model = VOLO('d5')
    layers = {name: layer_of(f'backbone.{name}', depths) for name, _ in model.named_parameters()}
    assert set(layers.values()) == set(range(50))
    in_order = [layers[name] for name in layers if name.startswith('network.')]
    assert in_order == sorted(in_order)
    assert (layers['network.1.proj.weight'], layers['pos_embed'], layers['network.2.0.norm1.weight']) == (13, 13, 13)
    assert layers['norm3.weight'] == layer_of('neck.levels.0.0.weight', depths) == 49


@settings(max_examples=20, deadline=None)
@given(depths=st.tuples(*[st.integers(1, 5)] * 4))
def test_every_block_has_a_layer_of_its_own(depths):
    blocks = [(part, i) for stage, part in enumerate((0, 2, 3, 4)) for i in range(depths[stage])]
    layers = [layer_of(f'backbone.network.{part}.{i}.mlp.fc1.weight', depths) for part, i in blocks]
    assert layers == list(range(1, sum(depths) + 1))


def test_layer_decay_leaves_frozen_parameters_out(config):
    model = segmentor(config, frozen_stages=2)
    optimizer = decayed(model, config, decay_rate=0.9).optimizer
    got = {id(p) for group in optimizer.param_groups for p in group['params']}
    assert got == {id(p) for p in model.parameters() if p.requires_grad}
    assert {group['layer'] for group in optimizer.param_groups} == {5, 6, 7, 8, 9}


def test_layer_decay_honours_custom_keys_and_wrappers(config):
    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    model = segmentor(config)
    custom = {'decode_head': dict(lr_mult=10.0), 'pos_embed': dict(decay_mult=0.0)}
    optimizer = decayed(Wrapper(model), config, decay_rate=1.0, norm_decay_mult=1.0, custom_keys=custom).optimizer
    rates = {id(p): g for g in optimizer.param_groups for p in g['params']}
    assert rates[id(model.decode_head.conv_seg.weight)]['lr'] == pytest.approx(2e-2)
    assert rates[id(model.auxiliary_head.conv_seg.weight)]['lr'] == pytest.approx(2e-3)
    assert rates[id(model.backbone.network[0][0].norm1.weight)]['weight_decay'] == 0.01
    assert rates[id(model.backbone.pos_embed)]['weight_decay'] == 0.0


def test_layer_decay_prints_its_groups_once(config, monkeypatch):
    told = []
    monkeypatch.setattr('volo_seg.engine.optim.layer_decay_constructor.print_log', lambda text, *_: told.append(text))
    optimizer = decayed(segmentor(config), config, decay_rate=0.9).optimizer
    (text,) = told
    assert len(text.splitlines()) == 2 + len(optimizer.param_groups)
    assert '0 stem' in text and '3 stage 2, 1' in text and '9 heads' in text
    assert table(optimizer.param_groups[:1], (2, 2, 2, 2)).endswith('571,168')


def test_schedules_keep_the_ratio_of_the_layers(config):
    wrapper = decayed(segmentor(config), config, decay_rate=0.5)
    schedule = PolyLR(wrapper, power=1.0, eta_min=0.0, begin=0, end=10, by_epoch=False)
    for _ in range(4):
        wrapper.optimizer.step()
        schedule.step()
    for group in wrapper.optimizer.param_groups:
        assert group['lr'] == pytest.approx(2e-3 * (1 - 4 / 9) * 0.5 ** (9 - group['layer']))


@pytest.mark.parametrize(
    ('paramwise', 'message'),
    [
        (dict(decay_rate=1.5), r'decay_rate=1.5 is not in \(0, 1\]'),
        (dict(decay_rate=None), 'decay_rate=None'),
        (dict(decay_rate=0.9, num_layers=4), 'paramwise_cfg.num_layers is unknown to layer decay'),
    ],
)
def test_layer_decay_mistakes(config, paramwise, message):
    with pytest.raises(UserError, match=message):
        decayed(nn.Linear(1, 1), config, **paramwise)


def test_layer_decay_needs_volo(config):
    with pytest.raises(UserError, match='counts the layers of VOLO'):
        decayed(nn.Sequential(nn.Linear(1, 1)), config, decay_rate=0.9)
    config.model.backbone.type = 'ResNet'
    with pytest.raises(UserError, match="needs model.backbone.type=VOLO, and the config has 'ResNet'"):
        apply_recipe(config, layer_decay=0.9)
    config.model.backbone.type = 'VOLO'
    with pytest.raises(UserError, match=r'--layer-decay 0 is not in \(0, 1\]'):
        apply_recipe(config, layer_decay=0)
    config.optim_wrapper.constructor = 'Other'
    with pytest.raises(UserError, match="constructor='Other'"):
        apply_recipe(config, layer_decay=0.9)


def test_a_config_without_an_optimizer(config):
    config.optim_wrapper = None
    apply_recipe(config)
    with pytest.raises(UserError, match='optim_wrapper is missing in the config'):
        apply_recipe(config, ema=0.1)


def test_a_constructor_that_is_not_there(config):
    config.optim_wrapper.constructor = 'VOLOLayerDecay'
    with pytest.raises(UserError, match="is not registered; did you mean 'VOLOLayerDecayConstructor'"):
        apply_recipe(config)
    del config.optim_wrapper['constructor']
    config.optim_wrapper.paramwise_cfg.decay_rate = 0.9
    with pytest.raises(UserError, match='decay_rate has no effect without a constructor'):
        apply_recipe(config)
    apply_recipe(config, layer_decay=0.9)
    apply_recipe(config)


# accumulation and the learning rate


def steps(model, batches, count):
    """Train ``model`` as the runner does; return the rates at which the optimizer made its steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    wrapper = OptimWrapper(optimizer, accumulative_counts=count, clip_grad=dict(max_norm=0.1))
    wrapper.initialize_count_status(model, 0, len(batches))
    schedule = PolyLR(wrapper, power=1.0, eta_min=0.0, begin=0, end=4, by_epoch=False)
    runner = SimpleNamespace(optim_wrapper=wrapper, param_schedulers=[schedule])
    hook, rates = OptimizerStepSchedulerHook(), []
    for index, (image, labels) in enumerate(batches):
        rate = optimizer.param_groups[0]['lr']
        with wrapper.optim_context(model):
            maps = model(image)
            loss = nn.functional.cross_entropy(maps[-1][:, :5], labels, reduction='mean')
        wrapper.update_params(loss)
        if wrapper.should_update():
            rates.append(rate)
        hook.after_train_iter(runner, index)
    return rates


def test_accumulated_batches_equal_one_large_batch():
    """In float64, with batch norms frozen: same rates, same weights after three clipped steps."""
    start = VOLO('nano', img_size=32).double().eval()
    images, labels = torch.randn(12, 3, 32, 32).double(), torch.randint(0, 5, (12, 2, 2))
    large, small = copy.deepcopy(start), copy.deepcopy(start)
    rates = steps(large, [(images[i : i + 4], labels[i : i + 4]) for i in range(0, 12, 4)], 1)
    assert steps(small, [(images[i : i + 2], labels[i : i + 2]) for i in range(0, 12, 2)], 2) == rates
    assert rates == pytest.approx([1e-3, 1e-3 * 2 / 3, 1e-3 / 3])
    for (name, one), other, before in zip(
        large.named_parameters(), small.parameters(), start.parameters(), strict=True
    ):
        # Adam divides by the root of squared gradients, which magnifies rounding where a gradient is all but zero
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9, msg=name)
        if one.grad is not None and one.grad.abs().max() > 1e-8:
            assert not torch.equal(one, before), name


def test_accumulate_multiplies_what_counts_iterations(config):
    before = copy.deepcopy(config)
    accumulate(config, 3)
    assert config.optim_wrapper.accumulative_counts == 3
    assert config.train_cfg.max_iters == 3 * before.train_cfg.max_iters
    assert config.train_cfg.val_interval == 3 * before.train_cfg.val_interval
    assert config.default_hooks.checkpoint.interval == 3 * before.default_hooks.checkpoint.interval
    assert config.default_hooks.logger.interval == 3 * before.default_hooks.logger.interval
    assert config.param_scheduler == before.param_scheduler
    assert config.default_hooks.param_scheduler.type == 'OptimizerStepSchedulerHook'
    again = copy.deepcopy(config)
    accumulate(again, 3)
    assert again.to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ('count', 'change', 'message'),
    [
        (0, {}, '--accumulate 0 is below 1'),
        (2, {'optim_wrapper.accumulative_counts': 4}, 'the config has optim_wrapper.accumulative_counts=4; remove one'),
        (2, {'train_cfg.type': 'EpochBasedTrainLoop'}, 'IterBasedTrainLoop'),
    ],
)
def test_accumulate_mistakes(config, count, change, message):
    config.merge_from_dict(change)
    with pytest.raises(UserError, match=message):
        accumulate(config, count)


def test_auto_scale_lr_needs_a_base(config):
    auto_scale_lr(config)
    assert config.auto_scale_lr == dict(enable=True, base_batch_size=4)
    with pytest.raises(UserError, match='add auto_scale_lr = dict'):
        auto_scale_lr(Config(dict(optim_wrapper=dict())))


# averaged weights, stopping


@pytest.mark.parametrize('momentum', [0.0, 1.0, 2.0])
def test_ema_mistakes(config, momentum):
    with pytest.raises(UserError, match=r'is not in \(0, 1\)'):
        use_ema(config, momentum)


def test_ema_has_no_rival(config):
    config.custom_hooks = [dict(type='EMAHook')]
    with pytest.raises(UserError, match="custom_hooks has 'EMAHook' already"):
        use_ema(config)
    config.custom_hooks = [dict(type='AveragedWeightsHook', momentum=0.5), dict(type='Other')]
    use_ema(config, 0.1)
    assert config.custom_hooks == [dict(type='Other'), dict(type='AveragedWeightsHook', momentum=0.1)]


def stopped_at(scores, patience, known=None):
    """Index of the score at which training stops, or None; and what a checkpoint would hold."""
    info = dict(known or {})
    hub = SimpleNamespace(runtime_info=info, update_info=info.__setitem__)
    loop = SimpleNamespace(stop_training=False)
    runner = SimpleNamespace(message_hub=hub, train_loop=loop, logger=SimpleNamespace(info=lambda _: None))
    hook = ResumableEarlyStoppingHook(patience=patience)
    hook.before_train(runner)
    for index, score in enumerate(scores):
        hook.after_val_epoch(runner, {'mIoU': score})
        if loop.stop_training:
            return index, info
    return None, info


def test_patience():
    assert stopped_at([1, 2, 2, 1.5, 3], 2)[0] == 3
    assert stopped_at([1, 2, 2, 3, 2, 2.5, 2.9], 3)[0] == 6
    assert stopped_at([1, 2, 3], 1)[0] is None
    assert stopped_at([1, math.nan, 2], 2)[0] == 1


@settings(max_examples=40, deadline=None)
@given(scores=st.lists(st.integers(0, 4), min_size=2, max_size=10), patience=st.integers(1, 3), data=st.data())
def test_patience_goes_on_after_a_resume(scores, patience, data):
    whole, _ = stopped_at(scores, patience)
    cut = data.draw(st.integers(1, len(scores) - 1))
    first, info = stopped_at(scores[:cut], patience)
    if first is None:
        second, _ = stopped_at(scores[cut:], patience, info)
        assert (None if second is None else cut + second) == whole


def test_patience_mistakes(config):
    with pytest.raises(UserError, match='--patience 0'):
        stop_early(config, 0)
    hook = ResumableEarlyStoppingHook(patience=1, monitor='mAP')
    with pytest.raises(UserError, match="monitor='mAP' is not a score of the validation; use one of mIoU"):
        hook.after_val_epoch(SimpleNamespace(), {'mIoU': 1.0})
    config.val_dataloader = None
    with pytest.raises(UserError, match='no val_dataloader'):
        stop_early(config, 1)


# losses


def test_weighted_loss_equals_the_hosts_and_holds_in_float16():
    theirs = MODELS.build(dict(type='CrossEntropyLoss', class_weight=[0.5, 2.0, 1.0], loss_weight=0.4))
    ours = MODELS.build(dict(type='WeightedCrossEntropyLoss', class_weight=[0.5, 2.0, 1.0], loss_weight=0.4))
    logits, truth = torch.randn(2, 3, 300, 300, requires_grad=True), torch.randint(0, 3, (2, 300, 300))
    truth[:, :50] = 255
    hard = (torch.rand(truth.shape) < 0.3).float()
    for weight in (None, hard):
        for reduction in (None, 'none'):
            known = dict(weight=weight, reduction_override=reduction, ignore_index=255)
            torch.testing.assert_close(ours(logits, truth, **known), theirs(logits, truth, **known))
    with torch.autocast('cpu', dtype=torch.float16):
        assert theirs(logits.half(), truth, ignore_index=255) == 0  # what it is for
        half = ours(logits.half(), truth, ignore_index=255)
    torch.testing.assert_close(half, ours(logits, truth, ignore_index=255), rtol=1e-3, atol=0)
    nothing = ours(logits, torch.full_like(truth, 255), ignore_index=255)
    nothing.backward()
    assert nothing == 0 and logits.grad.abs().max() == 0


def test_class_weights_where_the_hosts_loss_fails(config):
    loss = config.model.auxiliary_head.loss_decode
    loss.update(class_weight=[1.0] * 19, avg_non_ignore=True)
    built = MODELS.build(loss)
    truth = torch.full((1, 2, 2), 255)
    truth[0, 0] = 3
    with pytest.raises(IndexError):
        built(torch.randn(1, 19, 2, 2), truth, ignore_index=255)
    with pytest.raises(UserError, match='auxiliary_head.loss_decode: class_weight and avg_non_ignore=True'):
        check_losses(config)
    loss.avg_non_ignore = False
    check_losses(config)
    for wrapper in (dict(type='AmpOptimWrapper'), dict(type='AutocastOptimWrapper', dtype='float16')):
        config.optim_wrapper.update(wrapper)
        with pytest.raises(UserError, match='overflows in float16'):
            check_losses(config)
    config.optim_wrapper.dtype = 'bfloat16'
    check_losses(config)


def test_class_weights_reach_every_loss_and_ignored_pixels_do_not_matter(config):
    given = [float(i + 1) for i in range(19)]
    set_class_weights(config, given)
    assert [loss['class_weight'] for _, loss in losses(config.model)] == [given, given]
    assert [loss['loss_weight'] for _, loss in losses(config.model)] == [1.0, 0.4]
    set_class_weights(config, given)
    model = segmentor(config).train()
    logits, truth = torch.randn(2, 19, 8, 8), torch.randint(0, 19, (2, 8, 8))
    truth[0, :4] = 255
    expected = nn.functional.cross_entropy(logits, truth, weight=torch.tensor(given), ignore_index=255)
    torch.testing.assert_close(model.decode_head.loss_decode(logits, truth, ignore_index=255), expected)
    config.model.decode_head.loss_decode = [dict(type='DiceLoss')]
    config.model.auxiliary_head = None
    with pytest.raises(UserError, match='no loss of this config takes class_weight'):
        set_class_weights(config, given)


def test_hard_pixels_are_learned_from_and_easy_ones_are_not(config):
    choose_loss(config, 'ohem')
    assert config.model.decode_head.sampler == dict(type='OHEMPixelSampler', thresh=0.7, min_kept=256 * 256 // 6)
    assert 'sampler' not in config.model.auxiliary_head
    config.model.decode_head.sampler.min_kept = 8
    head = segmentor(config).decode_head
    truth = torch.zeros(1, 16, 16, dtype=torch.long)
    logits = torch.zeros(1, 19, 16, 16)
    logits[:, 0, :8] = 20.0  # the upper half is right and sure
    logits.requires_grad_()
    sample = SegDataSample(gt_sem_seg=PixelData(data=truth))
    head.loss_by_feat(logits, [sample])['loss_ce'].backward()
    assert logits.grad[:, :, :8].abs().max() == 0 and logits.grad[:, :, 8:].abs().min() > 0
    del config.model.data_preprocessor['size']
    config._cfg_dict.pop('crop_size')
    with pytest.raises(UserError, match='--loss ohem needs the size of a crop'):
        choose_loss(config, 'ohem')


# number formats


def autocast_step(config, dtype):
    torch.manual_seed(0)
    model = segmentor(config).train()
    wrapper = AutocastOptimWrapper(torch.optim.SGD(model.parameters(), lr=0.0), dtype=dtype)
    data = {'inputs': torch.randn(2, 3, 64, 64), 'data_samples': samples(2)}
    with wrapper.optim_context(model):
        parts = model(**data, mode='loss')
    loss = sum(value for key, value in parts.items() if 'loss' in key)
    wrapper.backward(loss)
    scale = wrapper.loss_scaler.get_scale()
    gradients = torch.cat([p.grad.flatten() / scale for p in model.parameters() if p.grad is not None])
    return loss.item(), gradients, wrapper


def test_both_formats_train_on_a_cpu(config):
    exact, gradients, _ = autocast_step(config, 'float32')
    for dtype, scaled in (('bfloat16', False), ('float16', True)):
        loss, found, wrapper = autocast_step(config, dtype)
        assert loss != exact and loss == pytest.approx(exact, rel=0.02)
        assert nn.functional.cosine_similarity(found, gradients, dim=0) > 0.9
        assert wrapper.loss_scaler.is_enabled() is scaled
        assert ('loss_scaler' in wrapper.state_dict()) is scaled


def test_scale_of_the_loss_is_resumed_and_overflow_skips_the_step():
    def make():
        layer = nn.Linear(2, 1)
        return layer, AutocastOptimWrapper(torch.optim.SGD(layer.parameters(), lr=0.1), dtype='float16')

    layer, wrapper = make()
    before, scale = layer.weight.detach().clone(), wrapper.loss_scaler.get_scale()
    wrapper.update_params(layer(torch.ones(1, 2)).sum() * float('inf'))
    assert torch.equal(layer.weight, before) and wrapper.loss_scaler.get_scale() == scale / 2
    _, resumed = make()
    resumed.load_state_dict(wrapper.state_dict())
    assert resumed.loss_scaler.get_scale() == scale / 2
    plain = OptimWrapper(torch.optim.SGD(layer.parameters(), lr=0.1)).state_dict()
    resumed.load_state_dict(plain)


@pytest.mark.parametrize(
    ('asked', 'gpu', 'kind', 'dtype'),
    [
        ('auto', False, 'AutocastOptimWrapper', 'bfloat16'),
        ('bf16', False, 'AutocastOptimWrapper', 'bfloat16'),
        ('fp16', False, 'AutocastOptimWrapper', 'float16'),
        ('auto', True, 'AmpOptimWrapper', 'float16'),
        ('fp16', True, 'AmpOptimWrapper', 'float16'),
        ('bf16', True, 'AutocastOptimWrapper', 'bfloat16'),
    ],
)
def test_amp_picks_a_wrapper(config, monkeypatch, asked, gpu, kind, dtype):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: gpu)
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda: True)
    enable_amp(config, asked)
    assert (config.optim_wrapper.type, config.optim_wrapper.dtype) == (kind, dtype)
    assert ('loss_scale' in config.optim_wrapper) is (kind == 'AmpOptimWrapper')
    enable_amp(config)
    assert config.optim_wrapper.type == kind


def test_amp_says_what_cannot_run(config, monkeypatch):
    def fail():
        raise RuntimeError('"addmm" not implemented for Half\nand more')

    monkeypatch.setattr('volo_seg.engine.optim.amp._try_float16_on_cpu', fail)
    with pytest.raises(UserError, match=r'does not train in float16 on a CPU \("addmm" not .*use --amp bf16'):
        enable_amp(config, 'fp16')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda: False)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda: 'Old GPU')
    with pytest.raises(UserError, match='Old GPU does not support bfloat16; use --amp fp16'):
        enable_amp(config, 'bf16')
    config.optim_wrapper.type = 'Other'
    with pytest.raises(UserError, match="the config has 'Other'"):
        enable_amp(config)


# compiling


def test_compiled_backbone_keeps_names_and_copies(config):
    model = segmentor(config).eval()
    names, image = list(model.state_dict()), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model.backbone(image)
        compile_backbone(model, backend='eager')
        assert list(model.state_dict()) == names
        for one, other in zip(model.backbone(image), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert list(copy.deepcopy(model).state_dict()) == names
    use_compiled_backbone(config)
    use_compiled_backbone(config)
    assert [hook.type for hook in config.custom_hooks].count('CompiledBackboneHook') == 1


def test_compiled_for_training_only(config):
    runner = SimpleNamespace(model=segmentor(config))
    backbone, hook = runner.model.backbone, CompiledBackboneHook(backend='eager')
    hook.before_train(runner)
    compiled = backbone._compiled_call_impl
    assert compiled is not None
    hook.before_val_epoch(runner)
    assert backbone._compiled_call_impl is None
    hook.after_val_epoch(runner, {})
    assert backbone._compiled_call_impl is compiled


def test_compile_says_where_it_cannot(config, monkeypatch):
    import torch._dynamo

    apply_recipe(config)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setenv('CXX', '/nowhere/g++')
    with pytest.raises(UserError, match="--compile: compiling for a CPU needs a C.. compiler, and '/nowhere/g"):
        apply_recipe(config, compiled=True)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    assert 'needs the package triton' in why_not_compiled()
    monkeypatch.setattr(torch._dynamo, 'is_dynamo_supported', lambda: False)
    assert 'does not compile on Python' in why_not_compiled()
    config.compile = True
    with pytest.raises(UserError, match='compile=True in the config'):
        apply_recipe(config)


@pytest.mark.parametrize(
    ('words', 'spelled'),
    [
        (['--amp', 'c.py'], ['--amp=auto', 'c.py']),
        (['c.py', '--amp'], ['c.py', '--amp=auto']),
        (['--amp', 'bf16', 'c.py'], ['--amp', 'bf16', 'c.py']),
        (['--amp=fp16', 'c.py'], ['--amp=fp16', 'c.py']),
    ],
)
def test_bare_amp_leaves_the_config_alone(words, spelled):
    from volo_seg.commands.flags import bare_amp

    assert bare_amp(words) == spelled

"""A loss or gradient that is NaN or infinite: steps that are not made, the end of training, checkpoints."""

import json

import pytest
import tiny
import torch
from mmengine.hooks import Hook

from volo_seg.checkpoints import load_file
from volo_seg.errors import UserError

HOOKS = 'custom_hooks'


class Spoil(Hook):
    """Multiplies the weight or the gradient of the classifier at some iterations by ``factor``."""

    priority = 'VERY_HIGH'

    def __init__(self, iterations, factor, what='gradient'):
        self.iterations, self.factor, self.what = iterations, factor, what

    def before_train(self, runner):
        self.runner = runner
        self.weight = runner.model.decode_head.conv_seg.weight
        if self.what == 'gradient':
            self.weight.register_hook(lambda gradient: gradient * self.factor if self.due() else gradient)

    def due(self):
        return self.runner.iter + 1 in self.iterations

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if self.what == 'loss':
            runner.model.decode_head.loss_decode.loss_weight = self.factor if self.due() else 1.0


def patience(steps):
    """The option that sets the patience of the hook, which stands fourth in the shipped base."""
    return {'custom_hooks.4.patience': steps}


def run(data, work, *hooks, steps=2, **changes):
    return tiny.train(data, work, hooks=hooks, **patience(steps), **changes)


def tensors(work, name):
    return load_file(work / name)['state_dict']


@pytest.mark.parametrize('factor', [float('nan'), float('inf')])
def test_a_loss_that_stays_non_finite_ends_training_in_one_sentence(factor, data, tmp_path):
    with pytest.raises(UserError) as caught:
        run(data, tmp_path, Spoil(range(3, 99), factor, 'loss'))
    sentence, report = str(caught.value), json.loads((tmp_path / 'non_finite.json').read_text())
    assert f'decode.loss_ce is {factor} at iteration 4' in sentence and 'the last of 2 in a row' in sentence
    assert 'learning rate' in sentence and 'images/train/' in sentence and 'non_finite.json' in sentence
    assert '\n' not in sentence and str(tmp_path / 'iter_2.pth') in sentence
    assert report['iteration'] == 4 and report['iterations_in_a_row'] == 2
    assert report['loss_terms']['decode.loss_ce'] == str(factor)
    assert report['loss_terms']['aux.loss_ce'] > 0
    assert len(report['images']) == 2 and all(str(data) in path for path in report['images'])
    assert report['learning_rates']['lr'] > 0
    assert 'decode_head.conv_seg' in report['largest_outputs'] and len(report['largest_outputs']) > 20
    assert report['largest_outputs']['decode_head.conv_seg'] > 0
    assert sorted(path.name for path in tmp_path.glob('iter_*')) == ['iter_1.pth', 'iter_2.pth']
    assert json.loads((tmp_path / 'run.json').read_text())['status'] == 'failed'


def test_a_layer_that_overflows_is_named(data, tmp_path):
    class Grow(Hook):
        def before_train(self, runner):
            runner.model.backbone.network[0][0].mlp.fc2.weight.data.fill_(float('inf'))

    with pytest.raises(UserError, match=r"largest output (inf|nan) at layer 'backbone.network.0.0.mlp"):
        run(data, tmp_path, Grow(), steps=1)


def test_one_bad_step_is_not_made_and_training_goes_on(data, tmp_path):
    losses = run(data, tmp_path, Spoil([3, 5], float('nan')))
    assert len(losses) == 6
    for name in ('iter_2.pth', 'iter_6.pth'):
        assert all(value.isfinite().all() for value in tensors(tmp_path, name).values())
    before, after = (tensors(tmp_path, f'iter_{i}.pth') for i in (2, 3))
    weight = 'decode_head.conv_seg.weight'
    assert torch.equal(before[weight], after[weight])
    assert not torch.equal(after[weight], tensors(tmp_path, 'iter_4.pth')[weight])


def test_a_gradient_that_is_not_finite_is_named(data, tmp_path):
    with pytest.raises(UserError, match='the loss is finite, but not its gradient at iteration 3'):
        run(data, tmp_path, Spoil(range(2, 99), float('inf')), optim_wrapper__clip_grad='None')
    report = json.loads((tmp_path / 'non_finite.json').read_text())
    assert report['gradients_not_finite'] == ['decode_head.conv_seg.weight'] and report['weights_not_finite'] == []


def test_training_that_ends_non_finite_fails(data, tmp_path):
    with pytest.raises(UserError, match='training ended with the loss is finite, but not its gradient at iteration 6'):
        run(data, tmp_path, Spoil(range(5, 99), float('nan')), steps=50)


def test_steps_that_the_scaler_skips_do_not_count(data, tmp_path):
    losses = run(
        data,
        tmp_path,
        Spoil([1, 2, 3], float('inf')),
        optim_wrapper__type='AutocastOptimWrapper',
        optim_wrapper__dtype='float16',
    )
    assert len(losses) == 6 and not (tmp_path / 'non_finite.json').exists()


def test_batch_statistics_that_a_batch_spoils_stop_training_at_once(data, tmp_path):
    class Overflow(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter == 2:
                runner.model.decode_head.bottleneck.conv.weight.data[0, 0, 0, 0] = float('inf')

    with pytest.raises(UserError, match=r'iteration 3 .* in a row, and \d+ of the weights are NaN or infinite'):
        run(data, tmp_path, Overflow(), steps=50)
    broken = json.loads((tmp_path / 'non_finite.json').read_text())['weights_not_finite']
    assert 'decode_head.bottleneck.bn.running_mean' in broken
    assert not list(tmp_path.glob('iter_3*'))


@pytest.mark.parametrize(
    'clip, norms',
    [({'max_norm': 1.0}, 0), ({'clip_value': 1.0, 'type': 'value'}, 6), (None, 6)],
)
def test_the_norm_of_clip_grad_is_used_where_there_is_one(clip, norms, data, tmp_path, monkeypatch):
    calls = []
    original = torch.nn.utils.get_total_norm
    monkeypatch.setattr(torch.nn.utils, 'get_total_norm', lambda *args: calls.append(1) or original(*args))
    started = tiny.runner(data, tmp_path)
    started.optim_wrapper['clip_grad'] = clip
    started.train()
    assert started.iter == 6 and len(calls) == norms


class Poison(Hook):
    """Writes a NaN into the running statistics of a batch norm after an iteration."""

    def __init__(self, after):
        self.after = after

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 >= self.after:
            runner.model.decode_head.bottleneck.bn.running_mean[0] = float('nan')


@pytest.mark.parametrize('hook', [True, False])
def test_no_checkpoint_with_nan_is_saved_or_called_best(hook, data, tmp_path):
    options = {} if hook else {'custom_hooks': '[]'}
    with pytest.raises(UserError, match=r'1 of its tensors hold NaN or inf.*last complete checkpoint is .*iter_3.pth'):
        tiny.train(data, tmp_path, hooks=[Poison(4)], **options, default_hooks__checkpoint__max_keep_ckpts=1)
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == ['best_mIoU_iter_3.pth', 'iter_3.pth']
    assert (tmp_path / 'last_checkpoint').read_text().endswith('iter_3.pth')


@pytest.mark.parametrize('value', ['0', '-1', 'None'])
def test_patience_is_a_number_of_iterations(value, data, tmp_path):
    with pytest.raises(UserError, match=f'NonFiniteHook.patience={value} is not a number of iterations'):
        tiny.runner(data, tmp_path, **patience(value))

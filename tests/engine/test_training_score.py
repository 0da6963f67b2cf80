"""Training images are scored beside those of validation."""

import pytest
import tiny
import torch
from mmengine.config import Config
from mmengine.hooks import Hook

from volo_seg.commands import run
from volo_seg.engine.hooks import TrainingScoreHook
from volo_seg.reports.runs import read_run, run_table


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return tiny.make_data(tmp_path_factory.mktemp('data'), train=5, val=3)


def same_images(data, work, *flags, **changes):
    """Validate on the training images; return the scalars of the validations."""
    images, labels = 'images/train', 'annotations/train'
    prefix = {
        'val_dataloader.dataset.data_prefix.img_path': images,
        'val_dataloader.dataset.data_prefix.seg_map_path': labels,
    }
    tiny.runner(data, work, *flags, **prefix, **changes).train()
    return read_run(work)


@pytest.mark.parametrize('flags', [(), ('--ema', '0.3')])
def test_scores_are_those_of_a_validation_on_the_same_images(data, tmp_path, flags):
    """Also of averaged weights, and without augmentation."""
    logged = same_images(data, tmp_path / 'work', *flags)
    assert len(logged.val) == 2
    for record in logged.val:
        assert record['train_mIoU'] == record['mIoU'] and record['train_aAcc'] == record['aAcc']


def test_a_subset_that_is_evenly_spread(data, tmp_path):
    runner = tiny.runner(data, tmp_path / 'work')
    hook = TrainingScoreHook(images=3)
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner._val_loop = runner.build_val_loop(runner._val_loop)
    hook.before_train(runner)
    names = [hook.loader.dataset.get_data_info(i)['img_path'].rsplit('/')[-1] for i in range(len(hook.loader.dataset))]
    assert names == ['0.png', '2.png', '4.png']
    assert len(runner.train_dataloader.dataset) == 5, 'the training data set is unchanged'


class Weights(Hook):
    """The weights after training."""

    def after_train(self, runner):
        self.state = {name: value.clone() for name, value in runner.model.state_dict().items()}


def test_training_is_the_same_without_it(data, tmp_path):
    with_scores, without = Weights(), Weights()
    tiny.train(data, tmp_path / 'a', hooks=[with_scores])
    other = tiny.runner(data, tmp_path / 'b')
    other._hooks = [hook for hook in other.hooks if not isinstance(hook, TrainingScoreHook)]
    other.register_hook(without)
    other.train()
    assert all(torch.equal(value, without.state[name]) for name, value in with_scores.state.items())
    logged = read_run(tmp_path / 'b')
    assert len(logged.val) == 2 and 'train_mIoU' not in logged.val[0]
    assert run_table([logged]).splitlines()[1].split()[-1] == '-'


def test_table_has_the_score_at_the_best_validation(data, tmp_path):
    tiny.runner(data, tmp_path / 'work').train()
    logged = read_run(tmp_path / 'work')
    best, step = logged.best()
    assert logged.training_score(step) in {record['train_mIoU'] for record in logged.val}
    assert run_table([logged]).splitlines()[1].split()[-3:] == [
        f'{best:.2f}',
        f'{step:.0f}',
        f'{logged.training_score(step):.2f}',
    ]


def test_the_command_takes_the_flags_and_the_sizes_of_the_data(data, tmp_path, capsys):
    """The recipe on folders, as a newcomer starts it: 64x32 images, so that the crop shrinks."""
    leaf = tmp_path / 'leaf.py'
    leaf.write_text((data / 'tiny.py').read_text())
    loaders = ['train_dataloader.num_workers=0', 'val_dataloader.num_workers=0', 'visualizer.name=score']
    words = [str(leaf), '--data-root', str(data), '--work-dir', str(tmp_path / 'work'), '--plain', '--patience', '1']
    assert run('train', [*words, '--iters', '3', '--batch-size', '2', '--lr', '1e-9', '--cfg-options', *loaders]) == 0
    captured = capsys.readouterr()
    told = (
        'image size (width x height): 64x32, 5 training images measured; training resizes to 0.5-2 times their size '
        'and crops 64x32; validation and test run at their own size'
    )
    assert told in captured.out and told in next((tmp_path / 'work').glob('*/*.log')).read_text()
    assert 'on training images)' in captured.out and 'max_iters' not in captured.err
    config = Config.fromfile(tmp_path / 'work' / 'leaf.py')
    assert (config.train_cfg.max_iters, config.param_scheduler[-1].end) == (3, 3)
    assert config.model.data_preprocessor.size == (32, 64) and config.train_dataloader.batch_size == 2
    assert config.model.backbone.img_size == (256, 256) and config.optim_wrapper.optimizer.lr == 1e-9
    assert len(read_run(tmp_path / 'work').val) == 1
    assert run('print_config', [str(leaf), '--crop', '64', '96', '--cfg-options', 'train_cfg.max_iters=600']) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith(
        'warning: train_cfg.max_iters=600, but the schedule of the learning rate is made for'
    )
    assert 'crop_from_data=False' in captured.out.replace(' ', '')
    assert run('train', [*words, '--crop', '8', '8']) == 2
    assert '--crop 8 8: a side is below 32 pixels' in capsys.readouterr().err


def test_patience_follows_the_validation_and_not_the_training_images(data, tmp_path, monkeypatch):
    """Validation gets worse while the score of training images grows."""
    scores = iter([(10.0, 50.0), (20.0, 40.0), (30.0, 30.0), (40.0, 20.0)])
    pending = []

    def evaluate(self, size):
        pending[:] = pending or next(scores)
        return {'mIoU': pending.pop(0), 'aAcc': 1.0}

    monkeypatch.setattr('volo_seg.evaluation.metric.ExactIoUMetric.evaluate', evaluate)
    tiny.runner(data, tmp_path / 'work', '--patience', '2', train_cfg__val_interval=1).train()
    logged = read_run(tmp_path / 'work')
    assert [(record['train_mIoU'], record['mIoU']) for record in logged.val] == [
        (10.0, 50.0),
        (20.0, 40.0),
        (30.0, 30.0),
    ]

"""Training images are scored beside those of validation."""

import pytest
import tiny
import torch
from mmengine.hooks import Hook

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
    run = same_images(data, tmp_path / 'work', *flags)
    assert len(run.val) == 2
    for record in run.val:
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
    run = read_run(tmp_path / 'b')
    assert len(run.val) == 2 and 'train_mIoU' not in run.val[0]
    assert run_table([run]).splitlines()[1].split()[-1] == '-'


def test_table_has_the_score_at_the_best_validation(data, tmp_path):
    tiny.runner(data, tmp_path / 'work').train()
    run = read_run(tmp_path / 'work')
    best, step = run.best()
    assert run.training_score(step) in {record['train_mIoU'] for record in run.val}
    assert run_table([run]).splitlines()[1].split()[-3:] == [
        f'{best:.2f}',
        f'{step:.0f}',
        f'{run.training_score(step):.2f}',
    ]

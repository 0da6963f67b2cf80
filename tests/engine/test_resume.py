"""A run that was interrupted and goes on equals the run that was not, to the last bit; so do two runs with one seed."""

import itertools
import multiprocessing
import random
import types

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.hooks import Hook
from mmseg.registry import RUNNERS

from volo_seg.checkpoints import load_file
from volo_seg.commands import run
from volo_seg.commands.train import build_parser, prepare
from volo_seg.datasets.samplers import ResumableEpochSampler, ResumableInfiniteSampler, resumable
from volo_seg.datasets.seeded_dataset import SeededDataset
from volo_seg.engine.hooks import IterationSeedHook
from volo_seg.engine.recipe import set_randomness
from volo_seg.errors import UserError
from volo_seg.seeding import derive_seed

KEPT = ('state_dict', 'optimizer', 'param_schedulers', 'progress', 'ema_state_dict')
ACCUMULATED = dict(
    optim_wrapper__accumulative_counts=2,
    default_hooks__param_scheduler__type='OptimizerStepSchedulerHook',
    train_cfg__val_interval=6,
)
CASES = {
    'plain, data loaded here': ((), {}),
    'averaged weights, two batches a step': (('--ema', '0.1'), ACCUMULATED),
    'data loaded in two processes': ((), dict(train_dataloader__num_workers=2, train_cfg__val_interval=6)),
}


@pytest.fixture(scope='module')
def whole(data, trained, tmp_path_factory):
    """Uninterrupted runs by case, with a checkpoint after each of six iterations over five images."""
    runs = {'plain, data loaded here': trained.work_dir}

    def run(case):
        if case not in runs:
            flags, changes = CASES[case]
            runs[case] = tmp_path_factory.mktemp('whole')
            tiny.runner(data, runs[case], *flags, **changes).train()
        return runs[case]

    return run


def kept(path):
    content = load_file(path)
    return {key: content[key] for key in KEPT if key in content}


@pytest.mark.parametrize(
    'case, position',
    [
        ('plain, data loaded here', 1),
        ('plain, data loaded here', 4),
        ('averaged weights, two batches a step', 3),
        ('averaged weights, two batches a step', 5),
        ('data loaded in two processes', 5),
    ],
)
def test_resumed_equals_uninterrupted(case, position, data, whole, tmp_path):
    flags, changes = CASES[case]
    tiny.runner(data, tmp_path, '--resume', whole(case) / f'iter_{position}.pth', *flags, **changes).train()
    first, last = (kept(path / 'iter_6.pth') for path in (whole(case), tmp_path))
    # whether the last validation found a new best depends on which others came before it
    first['progress'].pop('validated'), last['progress'].pop('validated')
    assert not tiny.differences(first, last)
    assert ('ema_state_dict' in first) == ('--ema' in flags)
    halfway = load_file(whole(case) / f'iter_{position}.pth')
    assert tiny.differences(halfway['state_dict'], first['state_dict']), 'nothing was learned in between'
    assert (halfway['progress']['gradients'] is not None) == (changes is ACCUMULATED and position % 2 == 1)


INNER = """
_base_ = './tiny.py'
prefix = dict(img_path='images/train', seg_map_path='annotations/train')
load = [dict(type='LoadImageFromFile'), dict(type='LoadLabels')]
change = [dict(type='RandomCrop', crop_size=(32, 32)), dict(type='RandomFlip', prob=0.5), dict(type='PackSegInputs')]
inner = dict(type='FolderDataset', data_root='nowhere', data_prefix=prefix, pipeline={pipeline})
train_dataloader = dict(dataset=dict(_delete_=True, type='SeededDataset', dataset={wrapper}))
"""
MOSAIC = "[dict(type='RandomMosaic', prob=1.0, img_scale=(32, 32)), *change]"
WRAPPERS = {
    'RepeatDataset': ('[*load, *change]', "dict(type='RepeatDataset', times=3, dataset=inner)"),
    'ConcatDataset': ('[*load, *change]', "dict(type='ConcatDataset', datasets=[inner, inner])"),
    'ClassBalancedDataset': (
        '[*load, *change]',
        "dict(type='ClassBalancedDataset', oversample_thr=1.0, dataset=inner)",
    ),
    'RareClassDataset': ('[*load, *change]', "dict(type='RareClassDataset', temperature=0.5, dataset=inner)"),
    'CopyPasteDataset': (
        '[*load, *change]',
        "dict(type='CopyPasteDataset', min_pixels=1, dataset=dict(type='RareClassDataset', dataset=inner))",
    ),
    'MultiImageMixDataset': ('load', f"dict(type='MultiImageMixDataset', dataset=inner, pipeline={MOSAIC})"),
}


@pytest.mark.parametrize('name', WRAPPERS)
def test_wrapped_data_sets_train_resume_and_can_be_looked_at(name, data, tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    pipeline, wrapper = WRAPPERS[name]
    config = tmp_path / f'{name}.py'
    config.write_text(INNER.format(pipeline=pipeline, wrapper=wrapper).replace('./tiny.py', str(data / 'tiny.py')))
    options = {key: value for key, value in tiny.OPTIONS.items() if not key.startswith('train_dataloader.dataset')}
    common = ['--data-root', str(data), '--cfg-options', *tiny.pairs_of({**options, 'train_cfg.max_iters': 4})]

    def train(work, *flags):
        flags = [str(config), '--work-dir', str(tmp_path / work), '--seed', '7', *map(str, flags), *common]
        RUNNERS.build(tiny.named(prepare(build_parser().parse_args(flags)))).train()
        return kept(tmp_path / work / 'iter_4.pth')

    whole = train('whole')
    assert not tiny.differences(train('resumed', '--resume', tmp_path / 'whole' / 'iter_3.pth'), whole)
    assert run('browse', [str(config), str(tmp_path / 'samples'), *common]) == 0
    assert (tmp_path / 'samples' / 'train_samples.png').is_file()
    assert run('check', [str(config), *common]) == 0


def test_workers_do_not_matter_and_the_seed_does(data, whole, tmp_path):
    one, two = (kept(whole(case) / 'iter_6.pth') for case in CASES if 'loaded' in case)
    assert not tiny.differences(one['state_dict'], two['state_dict'])
    tiny.runner(data, tmp_path, '--seed', '8').train()
    assert tiny.differences(one['state_dict'], kept(tmp_path / 'iter_6.pth')['state_dict'])


def test_a_checkpoint_without_our_state_goes_on_too(data, whole, tmp_path):
    """As MMEngine's own runner writes it."""
    content = load_file(whole('plain, data loaded here') / 'iter_4.pth')
    del content['progress']
    torch.save(content, tmp_path / 'theirs.pth')
    tiny.runner(data, tmp_path / 'work', '--resume', tmp_path / 'theirs.pth').train()
    first, last = (kept(path / 'iter_6.pth') for path in (whole('plain, data loaded here'), tmp_path / 'work'))
    assert not tiny.differences(first['state_dict'], last['state_dict'])


def test_epochs_are_resumed_too(data, tmp_path):
    """Three batches an epoch, the last of them of one image; the sampler shuffles each epoch anew."""
    (data / 'epochs.py').write_text(
        "_base_ = './even.py'\n"
        "train_cfg = dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=3, val_interval=3)\n"
        "train_dataloader = dict(sampler=dict(type='ResumableEpochSampler'))\n"
        'default_hooks = dict(checkpoint=dict(by_epoch=True, save_best=None), logger=dict(log_metric_by_epoch=True))\n'
    )
    dropped = ('train_cfg.max_iters', 'train_cfg.val_interval')
    options = {key: value for key, value in tiny.OPTIONS.items() if key not in dropped}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, 'OPTIONS', options)
        tiny.runner(data, tmp_path / 'whole', config='epochs.py').train()
        checkpoint = tmp_path / 'whole' / 'epoch_1.pth'
        tiny.runner(data, tmp_path / 'rest', '--resume', checkpoint, config='epochs.py').train()
    one, other = (load_file(tmp_path / name / 'epoch_3.pth') for name in ('whole', 'rest'))
    assert one['meta']['iter'] == other['meta']['iter'] == 9
    assert not tiny.differences(one['state_dict'], other['state_dict'])
    assert tiny.differences(one['state_dict'], load_file(checkpoint)['state_dict'])


@pytest.fixture
def numbers(monkeypatch):
    """Positions of the samples that were drawn."""
    seen = []

    def derive(seed, purpose, position):
        seen.append(position)
        return derive_seed(seed, purpose, position)

    monkeypatch.setattr(resumable, 'derive_seed', derive)
    return seen


def test_skipped_images_are_not_read(data, whole, numbers, tmp_path):
    tiny.runner(data, tmp_path, '--resume', whole('plain, data loaded here') / 'iter_4.pth').train()
    assert numbers == [8, 9, 10, 11]


def test_another_batch_size_goes_on_after_the_images_seen(data, whole, numbers, tmp_path):
    checkpoint = whole('plain, data loaded here') / 'iter_3.pth'
    runner = tiny.runner(data, tmp_path, '--resume', checkpoint, train_dataloader__batch_size=3)
    runner.train()
    assert numbers == list(range(6, 15))
    assert 'an iteration has 3 images, and had 2 in the checkpoint' in next(tmp_path.glob('*/*.log')).read_text()
    assert load_file(tmp_path / 'iter_6.pth')['progress']['samples'] == 15


class Validations(Hook):
    """Iterations at which a validation ran."""

    def __init__(self):
        self.at = []

    def before_val(self, runner):
        self.at.append(runner.iter)


@pytest.mark.parametrize('validated, expected', [(True, [6]), (False, [3, 6])])
def test_a_missed_validation_is_made_up_for(validated, expected, data, whole, tmp_path):
    content = load_file(whole('plain, data loaded here') / 'iter_3.pth')
    assert content['progress']['validated'] is True  # saved once more when the validation had found a new best
    content['progress']['validated'] = validated
    torch.save(content, tmp_path / 'iter_3.pth')
    runner = tiny.runner(data, tmp_path / 'work', '--resume', tmp_path / 'iter_3.pth')
    hook = Validations()
    runner.register_hook(hook)
    runner.train()
    assert hook.at == expected


def test_resuming_elsewhere_deletes_nothing_of_the_first_run(data, whole, tmp_path, monkeypatch):
    case = 'plain, data loaded here'
    (whole(case) / 'best_mIoU_iter_3.pth').touch()  # which iter_4.pth knows as the best
    before = sorted(path.name for path in whole(case).glob('*.pth'))
    monkeypatch.setattr(
        'volo_seg.evaluation.metric.ExactIoUMetric.evaluate', lambda self, size: {'mIoU': 99.0, 'aAcc': 99.0}
    )
    tiny.runner(
        data, tmp_path, '--resume', whole(case) / 'iter_4.pth', default_hooks__checkpoint__max_keep_ckpts=1
    ).train()
    assert sorted(path.name for path in whole(case).glob('*.pth')) == before
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == ['best_mIoU_iter_6.pth', 'iter_6.pth']


def test_what_cannot_be_resumed_is_refused(data, whole, tmp_path):
    best = max(whole('plain, data loaded here').glob('best_*.pth'))
    with pytest.raises(UserError, match='contains weights without a training state'):
        tiny.runner(data, tmp_path, '--resume', best).train()
    other = dict(optim_wrapper__paramwise_cfg='None')
    with pytest.raises(UserError, match='from a run with another optimizer or scheduler'):
        tiny.runner(data, tmp_path, '--resume', whole('plain, data loaded here') / 'iter_4.pth', **other).train()


def test_deterministic_runs_are_equal(data, tmp_path):
    before = torch.are_deterministic_algorithms_enabled()
    try:
        for name in ('one', 'two'):
            changes = dict(train_cfg__max_iters=3, train_dataloader__num_workers=2)
            runner = tiny.runner(data, tmp_path / name, '--deterministic', **changes)
            assert torch.are_deterministic_algorithms_enabled()
            runner.train()
            assert not multiprocessing.active_children(), 'data is still being loaded'
    finally:
        torch.use_deterministic_algorithms(before)
    assert not tiny.differences(*(kept(tmp_path / name / 'iter_3.pth') for name in ('one', 'two')))


class Range(list):
    """Numbers as a data set."""

    metainfo = {'classes': ('a',)}


def seeded(length):
    return SeededDataset(Range(range(length)))


@given(length=st.integers(1, 7), world=st.integers(1, 4), start=st.integers(0, 30), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_processes_deal_one_order_from_any_place(length, world, start, seed):
    def sampler():
        return ResumableInfiniteSampler(seeded(length), seed=seed)

    order = list(itertools.islice(sampler(), start + 12))
    assert [drawn for _, drawn in order] == [derive_seed(seed, 0, position) for position in range(start + 12)]
    assert sorted(index for index, _ in order[:length]) == list(range(length)), 'the first round is no permutation'
    dealt = set()
    for rank in range(world):
        one = sampler()
        one.rank, one.world_size = rank, world
        one.start_at(start)
        one.skip(5)  # the loop's own position has no effect then
        dealt.update(itertools.islice(one, 12 // world))
    assert dealt == set(order[start : start + 12 // world * world])


def test_samplers_give_indices_to_other_data_sets():
    for kind in (ResumableInfiniteSampler, ResumableEpochSampler):
        plain, pairs = (list(itertools.islice(kind(data, seed=3), 5)) for data in (range(5), seeded(5)))
        assert plain == [index for index, _ in pairs] and sorted(plain) == list(range(5))


@pytest.mark.parametrize('drop_last, places', [(False, [0, 2, 4, 5]), (True, [0, 2, 5, 7])])
def test_rounds_of_a_finite_order_are_continued(drop_last, places):
    """Five samples in batches of two: three batches a round, or two without the last."""

    def batches(skipped):
        sampler = ResumableEpochSampler(seeded(5), seed=3, batch_size=2, drop_last=drop_last)
        if skipped:
            sampler.skip(skipped * 2)
        for epoch in range(3):
            sampler.set_epoch(epoch)
            yield from torch.utils.data.BatchSampler(sampler, 2, drop_last)

    whole = list(batches(0))
    assert [batch[0][1] for batch in whole[:4]] == [derive_seed(3, 0, place) for place in places]
    for skipped in range(1, 5):
        rest = list(batches(skipped))[: len(whole) - skipped]
        assert rest == whole[skipped:]


def drawn():
    return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002 (what transforms draw from)


def test_samples_are_drawn_from_their_seed_alone():
    class Noise(Range):
        def __getitem__(self, index):
            return drawn()

    data = SeededDataset(Noise([0]))
    one = data[0, 3]
    data[0, 4]
    assert data[0, 3] == one and data[0, 4] != one
    assert data.metainfo == {'classes': ('a',)} and len(data) == 1
    assert seeded(3)[2] == seeded(3)[2, 9] == 2
    assert not hasattr(SeededDataset([0]), 'metainfo')


def test_iterations_and_ranks_have_numbers_of_their_own():
    seen = set()
    for iteration, rank in itertools.product(range(3), range(3)):
        IterationSeedHook().before_train_iter(types.SimpleNamespace(seed=1, iter=iteration, rank=rank), 0)
        seen.add(drawn())
    assert [len(set(numbers)) for numbers in zip(*seen, strict=True)] == [9, 9, 9]
    assert derive_seed(1, 2) != derive_seed(2, 1) and 0 <= derive_seed(0, 0) < 2**63


@pytest.mark.parametrize('seed', [-1, 2**32])
def test_seeds_that_no_generator_takes(seed):
    with pytest.raises(UserError, match=f'--seed {seed} is outside'):
        set_randomness(Config({}), seed=seed, deterministic=False)

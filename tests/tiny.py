"""Training in miniature: a handful of images, the smallest network, a second a run."""

import itertools
import json
import warnings

import cv2
import numpy as np
import torch
import yapf.yapflib.yapf_api as formatter
from mmengine.dist import all_reduce
from mmengine.hooks import Hook

from volo_seg.checkpoints import VARIANTS
from volo_seg.config.load import shipped_configs

LEAF = """
_base_ = '{base}'
arch = dict(depths=(1, 1, 1, 1), embed_dims=(16, 32, 32, 32), num_heads=(1, 2, 2, 2), mlp_ratio=1.0, stem_channels=8)
model = dict(
    backbone=dict(
        _delete_=True,
        type='VOLO',
        arch=arch,
        img_size=(256, 256),
        norm_cfg=dict(type='SyncBN', requires_grad=True),
    ),
    decode_head=dict(in_channels=[16, 32, 32, 32], in_index=[0, 1, 2, 3], channels=16),
    auxiliary_head=dict(in_channels=32, in_index=2, channels=8),
)
load_from = None
"""
# no batch statistics and no dropout, so that what a batch is split into makes no difference; SGD keeps rounding small
EVEN = """
_base_ = './tiny.py'
norm_cfg = dict(_delete_=True, type='GN', num_groups=4)
head = dict(norm_cfg=norm_cfg, dropout_ratio=0.0)
model = dict(backbone=dict(norm_cfg=norm_cfg), decode_head=head, auxiliary_head=head)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='SGD', lr=0.1, momentum=0.9, weight_decay=0.01), clip_grad=dict(max_norm=0.5)
)
"""


def small_options(side):
    """Options of a shipped config for crops of ``side`` x ``side`` pixels, two a batch, no worker processes."""
    return {
        'crop_size': (side, side),
        'model.data_preprocessor.size': (side, side),
        'train_dataloader.dataset.dataset.pipeline.2.scale': (2 * side, side),
        'train_dataloader.dataset.dataset.pipeline.3.crop_size': (side, side),
        'val_dataloader.dataset.pipeline.1.scale': (2 * side, side),
        'test_dataloader.dataset.pipeline.1.scale': (2 * side, side),
        'train_dataloader.batch_size': 2,
        'train_dataloader.num_workers': 0,
        'val_dataloader.num_workers': 0,
        'test_dataloader.num_workers': 0,
    }


def use_volo(config):
    """Give the nano ``config`` the smallest VOLO, with its four outputs, in place of its backbone; return it."""
    widths = list(VARIANTS['nano'].embed_dims)
    norm_cfg = dict(type='SyncBN', requires_grad=True)
    frozen = config.model.backbone.get('frozen_stages', -1)
    config.model.backbone = dict(
        type='VOLO', arch='nano', img_size=config.crop_size, frozen_stages=frozen, norm_cfg=norm_cfg
    )
    config.model.decode_head.update(in_channels=widths, in_index=[0, 1, 2, 3], channels=64)
    config.model.auxiliary_head.update(in_channels=widths[2], in_index=2)
    return config


def pairs_of(options):
    """``options`` as words of a command line."""
    return [f'{key}={value}'.replace(' ', '') for key, value in options.items()]


OPTIONS = {
    **small_options(32),
    'model.backbone.img_size': 32,
    'model.backbone.drop_path_rate': 0.3,
    'val_evaluator.metrics.figure': False,
    'test_evaluator.metrics.figure': False,
    'default_hooks.checkpoint.interval': 1,
    'default_hooks.checkpoint.max_keep_ckpts': -1,
    'default_hooks.logger.interval': 1,
    'param_scheduler.0.end': 2,
    'param_scheduler.1.begin': 2,
    'param_scheduler.1.end': 8,
    'train_cfg.max_iters': 6,
    'train_cfg.val_interval': 3,
}
_numbers = itertools.count()
# laying a config out prettily takes a second each time
formatter.FormatCode = lambda text, **_: (text, True)


def make_data(root, *, train=5, val=3):
    """Write images with three classes, one of them by colour; return ``root``."""
    generator = np.random.default_rng(0)
    for split, count in (('train', train), ('val', val)):
        for kind in ('images', 'annotations'):
            (root / kind / split).mkdir(parents=True)
        for index in range(count):
            labels = generator.integers(0, 3, (4, 8)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
            image = (labels[..., None] * 80 + generator.integers(0, 60, (32, 64, 3))).astype(np.uint8)
            cv2.imwrite(str(root / 'images' / split / f'{index}.png'), image)
            cv2.imwrite(str(root / 'annotations' / split / f'{index}.png'), labels)
    (root / 'classes.txt').write_text('a\nb\nc\n')
    base = shipped_configs()['volo-nano_upernet_1xb4-20k_folders-256x256']
    (root / 'tiny.py').write_text(LEAF.format(base=base))
    (root / 'even.py').write_text(EVEN)
    return root


def words(data, work, *flags, config='tiny.py', **changes):
    """The command line of a small training run; ``changes`` are options of the config with __ for a dot."""
    options = {**OPTIONS, **{key.replace('__', '.'): value for key, value in changes.items()}}
    common = ['--work-dir', str(work), '--data-root', str(data), '--seed', '7', '--plain']
    return [str(data / config), *common, *map(str, flags), '--cfg-options', *pairs_of(options)]


def write_config(data, path, **changes):
    """Write the config of a small training run of one iteration, with all settings in it, to ``path``."""
    from volo_seg.config.load import load_config, set_data_root

    options = {**OPTIONS, 'train_cfg.max_iters': 1, 'train_cfg.val_interval': 1, **changes}
    config = load_config(str(data / 'tiny.py'), [f'{key}={value}'.replace(' ', '') for key, value in options.items()])
    set_data_root(config, str(data))
    config.dump(str(path))


def runner(data, work, *flags, **changes):
    """A runner, not started; each has a logger and a visualizer of its own."""
    from mmseg.registry import RUNNERS

    from volo_seg.commands.train import build_parser, prepare

    warnings.filterwarnings('ignore', category=UserWarning)
    config = prepare(build_parser().parse_args(words(data, work, '--no-check', *flags, **changes)))
    return RUNNERS.build(named(config))


def named(config):
    """Give ``config`` a logger and a visualizer of its own."""
    config.experiment_name = config.visualizer.name = f'tiny{next(_numbers)}'
    return config


class Losses(Hook):
    """The loss of each iteration, averaged over the processes."""

    def __init__(self):
        self.seen = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        loss = outputs['loss'].detach().clone()
        all_reduce(loss, op='mean')
        self.seen.append(loss.item())


def train(data, work, *flags, hooks=(), **changes):
    """Train; return the losses."""
    started, losses = runner(data, work, *flags, **changes), Losses()
    for hook in (losses, *hooks):
        started.register_hook(hook)
    started.train()
    return losses.seen


def train_even(data, work, *flags, **changes):
    """Train for four iterations without anything that depends on how a batch is split."""
    settings = dict(model__backbone__drop_path_rate=0.0, train_cfg__max_iters=4, train_cfg__val_interval=4)
    return train(data, work, *flags, config='even.py', **{**settings, **changes})


def test(data, work, checkpoint, *flags, config='tiny.py'):
    """Evaluate ``checkpoint``; return the confusion matrix."""
    from mmseg.registry import RUNNERS

    from volo_seg.commands.test import build_parser, prepare

    pairs = pairs_of({key: value for key, value in OPTIONS.items() if not key.startswith('train')})
    arguments = [str(data / config), str(checkpoint), '--work-dir', str(work), '--data-root', str(data), *flags]
    RUNNERS.build(named(prepare(build_parser().parse_args([*arguments, '--cfg-options', *pairs])))).test()
    return confusion(work)


def confusion(work):
    """The confusion matrix of the last evaluation in a work dir."""
    newest = max(work.rglob('metrics.json'), key=lambda path: path.stat().st_mtime)
    return json.loads(newest.read_text())['confusion_matrix']


def differences(one, other, place=''):
    """Places where two nested contents differ in the last bit or in kind."""
    if isinstance(one, torch.Tensor):
        return [] if one.dtype == other.dtype and torch.equal(one, other) else [place]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [f'{place}: {sorted(one.keys() ^ other.keys())}']
        return [found for key in one for found in differences(one[key], other[key], f'{place}.{key}')]
    if isinstance(one, (list, tuple)):
        if len(one) != len(other):
            return [f'{place}: {len(one)} and {len(other)}']
        return [
            found for i, pair in enumerate(zip(one, other, strict=True)) for found in differences(*pair, f'{place}.{i}')
        ]
    return [] if one == other else [f'{place}: {one} and {other}']

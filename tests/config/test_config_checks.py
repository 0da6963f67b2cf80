"""What a config says is checked before anything is built: one test a mistake, and no alarm where there is none."""

import os
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import mmseg
import pytest
import torch
from mmengine.config import Config
from mmseg.registry import MODELS

from volo_seg.checkpoints import VARIANTS
from volo_seg.config.agreement import check_class_count
from volo_seg.config.checks import check_config, check_run, fill_class_count
from volo_seg.config.load import config_root, load_config, shipped_configs
from volo_seg.config.validation import accepted_keys, find_type
from volo_seg.errors import UserError

TRAIN = 'train_dataloader.dataset.dataset'
ALL = ('train', 'val', 'test')
NANO = 'volo-nano_upernet_1xb4-1200_toyscapes-256x256'
SLIDING = 'volo-d1_upernet_8xb1-160k_cityscapes-1024x1024'
PYRAMID = 'volo-d1-pyramid_upernet_8xb2-160k_ade20k-512x512'
FOLDERS = 'volo-nano_upernet_1xb4-20k_folders-256x256'
# a config of mmseg, and how many classes its data set has
FOREIGN = {
    'swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py': 150,
    'segformer/segformer_mit-b0_8xb1-160k_cityscapes-1024x1024.py': 19,
    'pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py': 19,
    'unet/unet-s5-d16_fcn_4xb4-40k_chase-db1-128x128.py': 2,
    'stdc/stdc1_4xb12-80k_cityscapes-512x1024.py': 19,
    'knet/knet-s3_r50-d8_upernet_8xb2-adamw-80k_ade20k-512x512.py': 150,
    'san/san-vit-b16_coco-stuff164k-640x640.py': 171,
    'point_rend/pointrend_r50_4xb2-80k_cityscapes-512x1024.py': 19,
    'swin/swin-tiny-patch4-window7_upernet_1xb8-20k_levir-256x256.py': 2,
    'vpd/vpd_sd_4xb8-25k_nyu-512x512.py': 27,
}


def refusal(config, splits=ALL):
    """The one sentence with which ``config`` is refused."""
    with pytest.raises(UserError) as caught:
        check_config(config, splits)
    sentence = str(caught.value)
    assert '\n' not in sentence
    return sentence


@pytest.mark.parametrize('name', sorted(shipped_configs()))
def test_shipped_configs_pass(name):
    check_config(load_config(name), ALL)


@pytest.mark.parametrize('name', FOREIGN)
def test_configs_of_mmseg_pass(name):
    config = Config.fromfile(Path(mmseg.__file__).parent / '.mim' / 'configs' / name)
    check_config(config, ALL)
    before = config.model.to_dict()
    fill_class_count(config, [str(i) for i in range(FOREIGN[name])])
    assert config.model.to_dict() == before
    check_class_count(config, 'train_dataloader.dataset', 'someone', FOREIGN[name])


MISTAKES = {
    'key of the backbone': (
        (PYRAMID, 'model.backbone.drop_path=0.2'),
        "model.backbone: unknown key 'drop_path'; did you mean 'drop_path_rate'?",
    ),
    'key of the segmentor': (
        (NANO, 'model.decode_heads.num_classes=3'),
        "model: unknown key 'decode_heads'; did you mean 'decode_head'?",
    ),
    'key that a base class takes': (
        (NANO, 'model.decode_head.droput_ratio=0.2'),
        "model.decode_head: unknown key 'droput_ratio'; did you mean 'dropout_ratio'?",
    ),
    'key of the neck': ((PYRAMID, 'model.neck.norm=3'), "model.neck: unknown key 'norm'; did you mean 'norm_cfg'?"),
    'key of the data set': (
        (FOLDERS, 'train_dataloader.dataset.dataset.clases=[a,b]'),
        "train_dataloader.dataset.dataset: unknown key 'clases'; did you mean 'classes'?",
    ),
    'key of the metric': (
        (NANO, 'test_evaluator.metrics.boundry=True'),
        "test_evaluator.metrics: unknown key 'boundry'; did you mean 'boundary'?",
    ),
    'key unlike any other': ((NANO, 'model.neck.type=VOLOPyramid', 'model.neck.zzz=1'), "'zzz'; it takes in_channels"),
    'key of test_cfg': (
        (SLIDING, 'model.test_cfg.strides=(512,512)'),
        "model.test_cfg: unknown key 'strides'; did you mean 'stride'?",
    ),
    'type': (
        (NANO, 'model.decode_head.type=UPerHed'),
        "model.decode_head.type='UPerHed' is not registered (did you mean 'UPerHead'",
    ),
    'type of a step': (
        (NANO, 'train_dataloader.dataset.dataset.pipeline.3.type=RandomCorp'),
        "train_dataloader.dataset.dataset.pipeline.3.type='RandomCorp' is not registered (did you mean 'RandomCrop'",
    ),
    'type like no other': (
        (NANO, 'default_hooks.timer.type=Zyxwvutsrqp'),
        "'Zyxwvutsrqp' is not registered; a class of your own needs its module in custom_imports",
    ),
    'type of the runner': (
        (NANO, 'runner_type=SaveRunner'),
        "runner_type='SaveRunner' is not registered (did you mean",
    ),
    'package': (
        (NANO, 'model.decode_head.type=mmnothing.Head'),
        "model.decode_head.type='mmnothing.Head': package 'mmnothing' is not installed",
    ),
    'name in a package': (
        (NANO, 'model.decode_head.type=mmseg.UPerHed'),
        "model.decode_head.type='mmseg.UPerHed' is not registered (did you mean 'UPerHead'",
    ),
    'scope': ((NANO, 'default_scope=mmengine'), "is not in scope 'mmengine'; set default_scope = 'mmseg'"),
    'variant': ((PYRAMID, 'model.backbone.arch=d9'), "model.backbone: arch='d9' is not one of nano, d1"),
    'channels of the head': (
        (SLIDING, 'model.backbone.arch=d2'),
        'model.decode_head.in_channels=[192, 384, 384, 384], but model.backbone gives [256, 512, 512, 512] channels; '
        'set model.decode_head.in_channels=[256, 512, 512, 512]',
    ),
    'channels of the auxiliary head': (
        (NANO, 'model.auxiliary_head.in_channels=48'),
        'model.auxiliary_head.in_channels=48, but model.backbone gives [64, 64, 128] channels; '
        'set model.auxiliary_head.in_channels=64',
    ),
    'channels of the neck': (
        (PYRAMID, 'model.neck.in_channels=[192,384,384,512]'),
        'model.neck.in_channels=[192, 384, 384, 512], but model.backbone gives [192, 384, 384, 384]',
    ),
    'channels behind the neck': (
        (PYRAMID, 'model.decode_head.in_channels=[192,384,384,512]'),
        'model.decode_head.in_channels=[192, 384, 384, 512], but model.neck gives [192, 384, 384, 384]',
    ),
    'index of a map': (
        (NANO, 'model.backbone.out_indices=(0,1,2)', 'model.decode_head.in_index=(0,1,2,3)'),
        'model.decode_head.in_index=(0, 1, 2, 3), but model.backbone gives 3 maps; use 0..2',
    ),
    'crop of the preprocessor': (
        (NANO, 'train_dataloader.dataset.dataset.pipeline.3.crop_size=(128,128)', 'crop_size=(128,128)'),
        'train_dataloader.dataset.dataset.pipeline.3.crop_size=(128, 128), but model.data_preprocessor.size=(256, 256)',
    ),
    'crop that reaches no pipeline': (
        (NANO, 'crop_size=(128,128)'),
        'train_dataloader.dataset.dataset.pipeline.3.crop_size=(256, 256), but crop_size=(128, 128)',
    ),
    'crop of sliding windows': (
        (SLIDING, 'model.test_cfg.crop_size=(768,768)'),
        'train_dataloader.dataset.dataset.pipeline.3.crop_size=(1024, 1024), but model.test_cfg.crop_size=(768, 768)',
    ),
    'stride': (
        (SLIDING, 'model.test_cfg.stride=(768,1025)'),
        'model.test_cfg.stride=(768, 1025) exceeds model.test_cfg.crop_size=(1024, 1024)',
    ),
    'weights of windows': (
        (NANO, 'model.test_cfg.window_weights=hamming'),
        "model.test_cfg.window_weights='hamming' is not one of uniform, hann, gaussian",
    ),
    'no window': (
        (NANO, 'model.test_cfg.mode=slide', 'model.test_cfg.crop_size=(256,256)'),
        "model.test_cfg.stride=None, but mode='slide' needs (height, width)",
    ),
    'ignored label of a head': (
        (NANO, 'model.decode_head.ignore_index=0'),
        'model.decode_head.ignore_index is 0, but train_dataloader.dataset.dataset.ignore_index (by default) is 255',
    ),
    'ignored label of padding': (
        (NANO, 'model.data_preprocessor.seg_pad_val=0'),
        f'model.data_preprocessor.seg_pad_val is 0, but {TRAIN}.ignore_index (by default) is 255',
    ),
    'ignored label of a loss': (
        (NANO, 'model.auxiliary_head.loss_decode.type=DiceLoss', 'model.auxiliary_head.loss_decode.ignore_index=19'),
        'model.auxiliary_head.loss_decode.ignore_index is 19, but',
    ),
    'ignored label of the crop': (
        (NANO, 'train_dataloader.dataset.dataset.pipeline.3.ignore_index=0'),
        'train_dataloader.dataset.dataset.pipeline.3.ignore_index is 0, but',
    ),
    'ignored label of the metric': (
        (NANO, 'val_evaluator.metrics.ignore_index=0'),
        'val_evaluator.metrics.ignore_index is 0, but val_dataloader.dataset.ignore_index (by default) is 255',
    ),
    'ignored label 0': (
        (FOLDERS, f'{TRAIN}.reduce_zero_label=True', f'{TRAIN}.ignore_index=0'),
        f'{TRAIN}.ignore_index=0, but reduce_zero_label=True turns label 0 into 255',
    ),
    'key of a hook': (
        (NANO, 'default_hooks.checkpoint.intervall=5'),
        "default_hooks.checkpoint: unknown key 'intervall'; did you mean 'interval'?",
    ),
    'key of a hook of MMEngine': (
        (NANO, 'default_hooks.logger.intervall=5'),
        "default_hooks.logger: unknown key 'intervall'; did you mean 'interval'?",
    ),
    'key of a hook that takes any': (
        (NANO, 'default_hooks.checkpoint.type=CheckpointHook', 'default_hooks.checkpoint.max_keep_ckpt=5'),
        "default_hooks.checkpoint: unknown key 'max_keep_ckpt'; did you mean 'max_keep_ckpts'?",
    ),
    'key of a hook without arguments': (
        (NANO, 'default_hooks.timer.interval=5'),
        "default_hooks.timer: unknown key 'interval'; it takes no arguments",
    ),
    'name of a hook': (
        (NANO, 'default_hooks.chekpoint.interval=5'),
        "default_hooks.chekpoint has no type; did you mean 'checkpoint'?",
    ),
    'key of a metric of MMSegmentation': (
        (NANO, 'val_evaluator.metrics.type=IoUMetric', 'val_evaluator.metrics.iou_metric=mDice'),
        "val_evaluator.metrics: unknown key 'iou_metric'; did you mean 'iou_metrics'?",
    ),
    'score that is not computed': (
        (NANO, 'default_hooks.checkpoint.save_best=mDice'),
        "default_hooks.checkpoint.save_best='mDice' is not a score of val_evaluator, which gives aAcc, mAcc, mIoU; "
        "set val_evaluator.iou_metrics to ['mIoU', 'mDice']",
    ),
    'score that does not exist': (
        (NANO, 'default_hooks.checkpoint.save_best=[mIoU,miou]'),
        "save_best='miou' is not a score of val_evaluator, which gives aAcc, mAcc, mIoU; did you mean 'mIoU'?",
    ),
    'no loader': ((NANO, 'val_dataloader=None'), 'the config has no val_dataloader'),
    'no model': ((NANO, 'model=None'), 'the config has no model'),
}


@pytest.mark.parametrize('name', MISTAKES)
def test_mistake_gets_one_sentence(name):
    (config, *options), expected = MISTAKES[name]
    assert expected in refusal(load_config(config, options))


def test_options_replace_a_value_that_is_none(tmp_path):
    options = ['model.backbone.init_cfg.type=Pretrained', f'model.backbone.init_cfg.checkpoint={tmp_path}']
    config = load_config(NANO, options)
    assert config.model.backbone.init_cfg == dict(type='Pretrained', checkpoint=str(tmp_path))


@pytest.mark.parametrize(
    'option, message',
    [
        ('model.backbone.type.depths.x=3', "x=3: 'type' is 'VOLONano' in the config and has no keys"),
        ('train_dataloader.dataset.dataset.pipeline.99.type=Resize', 'pipeline.99.type: Index 99 exceeds the length'),
    ],
)
def test_options_that_do_not_fit_the_config(option, message):
    with pytest.raises(UserError, match=f'--cfg-options .*{message}'):
        load_config(NANO, [option])


@pytest.mark.parametrize(
    'options',
    [
        ['default_hooks.checkpoint.save_best=[mDice,mAcc]', 'val_evaluator.metrics.iou_metrics=[mDice]'],
        ['default_hooks.checkpoint.save_best=IoU/road'],
        ['default_hooks.checkpoint.save_best=auto'],
        ['default_hooks.checkpoint.save_best=ECE', 'val_evaluator.metrics.calibration=True'],
        ['default_hooks.checkpoint.save_best=val/mIoU', 'val_evaluator.metrics.prefix=val'],
    ],
)
def test_scores_that_validation_gives(options):
    check_config(load_config(NANO, options), ALL)


def test_other_windows_are_free_at_test_time():
    config = load_config(SLIDING, ['model.test_cfg.crop_size=(512,512)', 'model.test_cfg.stride=(512,512)'])
    check_config(config, ('test',))
    assert 'model.test_cfg.crop_size=(512, 512)' in refusal(config)


def test_agreeing_changes_pass():
    step = 'train_dataloader.dataset.dataset.pipeline.3'
    crop = ['crop_size=128', 'model.data_preprocessor.size=(128,128)', f'{step}.crop_size=128']
    places = [step, 'val_evaluator.metrics', 'test_evaluator.metrics', 'model.decode_head', 'model.auxiliary_head']
    places += [TRAIN, 'val_dataloader.dataset', 'test_dataloader.dataset']
    ignored = [f'{place}.ignore_index=0' for place in places] + ['model.data_preprocessor.seg_pad_val=0']
    maps = ['model.backbone.out_indices=(1,3)', 'model.auxiliary_head.in_index=-1']
    maps += ['model.decode_head.in_index=(0,1)', 'model.decode_head.in_channels=[64,128]']
    maps += ['model.auxiliary_head.in_channels=128']
    check_config(load_config(NANO, crop + ignored + maps), ALL)


def test_scoped_and_path_types_pass_and_keep_their_checks():
    config = load_config(PYRAMID, ['model.type=mmseg.VOLOSegmentor', 'model.backbone.type=volo_seg.models.VOLO'])
    check_config(config, ALL)
    config.model.backbone.drop_path = 0.2
    assert "model.backbone: unknown key 'drop_path'; did you mean 'drop_path_rate'?" in refusal(config)
    config.model.backbone.pop('drop_path')
    config.model.test_cfg.strid = 3
    assert "model.test_cfg: unknown key 'strid'; did you mean 'stride'?" in refusal(config)


def test_steps_behind_the_crop_set_the_size():
    config = load_config(NANO, ['train_dataloader.dataset.dataset.pipeline.3.crop_size=(128,128)'])
    config.train_dataloader.dataset.dataset.pipeline.insert(4, dict(type='Resize', scale=(256, 256)))
    check_config(config, ALL)


@pytest.mark.parametrize('source', ["imports=['mine']", "imports=['mine'], allow_failed_imports=False"])
def test_own_types_are_registered_whatever_a_config_imports(source, tmp_path):
    """In a process of its own, where torchvision is broken; the user's module imports mmseg and torchvision's rest."""
    (tmp_path / 'mine.py').write_text(
        'import mmseg.models\nfrom mmseg.registry import HOOKS\nfrom mmengine.hooks import Hook\n'
        '@HOOKS.register_module()\nclass Mine(Hook):\n    pass\n'
    )
    (tmp_path / 'torchvision.py').write_text('raise RuntimeError("operator torchvision::nms does not exist")')
    (tmp_path / 'config.py').write_text(
        f"_base_ = '{shipped_configs()[NANO]}'\ncustom_imports = dict({source})\n"
        "custom_hooks = [*_base_.custom_hooks, dict(type='Mine')]\n"
    )
    program = "from volo_seg.commands import run_tool; run_tool('print_config', ['config.py'])"
    path = os.pathsep.join([str(tmp_path), *sys.path])
    environment = {**os.environ, 'PYTHONPATH': path}
    command = [sys.executable, '-c', program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert "type='Mine'" in done.stdout and "type='OverlappedEvaluator'" in done.stdout
    assert 'torchvision' not in done.stderr


@pytest.fixture
def folders(tmp_path):
    """The folder config on three classes, with files that nobody reads."""
    for part in ('images/train', 'images/val', 'annotations/train', 'annotations/val'):
        (tmp_path / part).mkdir(parents=True)
        (tmp_path / part / 'a.png').touch()
    (tmp_path / 'classes.txt').write_text('sky\nroad\ntree\n')
    return [f'{place}.data_root={tmp_path}' for place in (TRAIN, 'val_dataloader.dataset', 'test_dataloader.dataset')]


def test_class_count_is_filled_into_every_head(folders):
    config = load_config(FOLDERS, folders)
    config.model.auxiliary_head = [config.model.auxiliary_head, dict(config.model.auxiliary_head)]
    check_run(config, ('train', 'val'))
    assert [head.num_classes for head in (config.model.decode_head, *config.model.auxiliary_head)] == [3, 3, 3]


@pytest.mark.parametrize('head', ['decode_head', 'auxiliary_head'])
def test_class_count_of_each_head(head, folders):
    config = load_config(FOLDERS, [*folders, f'model.{head}.num_classes=7'])
    with pytest.raises(UserError, match=rf'model.{head}.num_classes=7, but {TRAIN} .* has 3 classes'):
        check_run(config, ('train', 'val'))


@pytest.mark.parametrize('classes', [['road', 'sky', 'tree'], ['sky', 'road'], ['sky', 'road', 'car', 'tree']])
def test_class_lists_of_the_splits_agree(classes, folders):
    config = load_config(FOLDERS, folders)
    config.val_dataloader.dataset.classes = classes
    with pytest.raises(UserError) as caught:
        check_run(config, ('train', 'val'))
    theirs = ', '.join(f'{label} {name!r}' for label, name in enumerate(classes))
    assert str(caught.value).startswith(
        f"{TRAIN} has the classes 0 'sky', 1 'road', 2 'tree', but val_dataloader.dataset has {theirs}; give both"
    )
    check_run(load_config(FOLDERS, folders), ('train', 'val'))


def test_class_lists_of_joined_data_sets_agree(folders):
    config = load_config(FOLDERS, folders)
    part = config.train_dataloader.dataset.dataset
    parts = [part, {**part, 'classes': ['tree', 'road', 'sky']}]
    config.train_dataloader.dataset = dict(type='ConcatDataset', datasets=parts)
    with pytest.raises(UserError, match='datasets.0 has the classes .*, but train_dataloader.dataset.datasets.1 has'):
        check_run(config, ('train',))


def test_another_name_of_a_class_is_logged(folders):
    config = load_config(FOLDERS, folders)
    config.val_dataloader.dataset.classes = ['sky', 'street', 'tree']
    with patch('volo_seg.config.agreement.print_log') as log:
        check_run(config, ('train', 'val'))
    assert "0 'sky', 1 'street', 2 'tree'; they are taken for the same classes" in log.call_args.args[0]


def test_the_end_of_other_files_is_named(folders, tmp_path):
    (tmp_path / 'annotations/train/a.png').rename(tmp_path / 'annotations/train/a.tif')
    sentence = (
        f"annotations/train' ({TRAIN}) holds no file *.png; its files end in .tif: set {TRAIN}.seg_map_suffix=.tif"
    )
    with pytest.raises(UserError, match=re.escape(sentence)):
        check_run(load_config(FOLDERS, folders), ('train',))
    check_run(load_config(FOLDERS, [*folders, f'{TRAIN}.seg_map_suffix=.tif']), ('train',))


def test_wrapped_data_sets_are_checked_too(folders):
    config = load_config(FOLDERS, [*folders, 'model.decode_head.num_classes=7'])
    config.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=config.train_dataloader.dataset)
    with pytest.raises(UserError, match='but train_dataloader.dataset.dataset.dataset .FolderDataset. has 3 classes'):
        check_run(config, ('train',))


def test_missing_list_and_foreign_argument(folders):
    config = load_config(FOLDERS, folders)
    dataset = config.train_dataloader.dataset.dataset
    dataset.type = 'ADE20KDataset'
    with pytest.raises(UserError, match="train_dataloader.dataset.dataset .ADE20KDataset. does not take .*'clases'"):
        check_run(load_like(config, clases=['a']), ('train',))
    with pytest.raises(UserError, match=r"none.txt' \(train_dataloader.dataset.dataset.ann_file\) does not exist"):
        check_run(load_like(config, ann_file='none.txt'), ('train',))


def load_like(config, **changes):
    changed = config.copy()
    changed.train_dataloader.dataset.dataset.update(changes)
    return changed


def test_keys_of_base_classes_are_known():
    keys = set(accepted_keys(find_type('VOLOUPerHead')))
    assert {'in_channels', 'num_classes', 'ignore_index', 'pool_scales'} <= keys
    assert not keys & {'self', 'kwargs'}


@pytest.mark.parametrize('name', ['mmseg.UPerHead', 'mmseg.VOLO', 'volo_seg.VOLO', 'mmengine.AdamW', 'torch.nn.GELU'])
def test_types_with_a_scope_or_a_path_are_found(name):
    assert find_type(name).__name__ == name.split('.')[-1]
    assert find_type(f'{name}Nothing') is None


@pytest.mark.parametrize('arch', VARIANTS)
def test_declared_channels_are_the_real_ones(arch):
    shallow = VARIANTS[arch]._replace(depths=(1, 1, 1, 1))._asdict()
    with torch.device('meta'):
        maps = MODELS.build(dict(type='VOLO', arch=shallow, out_indices=(0, 3)))(torch.zeros(1, 3, 32, 32))
    declared = find_type('VOLO').out_channels_of(dict(arch=arch, out_indices=(0, 3)))
    assert declared == tuple(m.shape[1] for m in maps)


def test_register_imports_all_types_of_this_package():
    """Every module with a registration is imported, but the backends that a config names by their path."""
    program = 'import sys, volo_seg.register; print("\\n".join(sys.modules))'
    loaded = subprocess.run([sys.executable, '-W', 'ignore', '-c', program], capture_output=True, text=True, check=True)
    package = config_root() / 'volo_seg'
    registering = {
        '.'.join(path.relative_to(package.parent).with_suffix('').parts)
        for path in package.rglob('*.py')
        if '.register_module(' in path.read_text()
    }
    assert len(registering) > 20
    assert registering - set(loaded.stdout.split()) == {'volo_seg.engine.logging.vis_backends'}

"""Every shipped config: its name says what it holds, it builds, and it takes a training step."""

import re

import pytest
import torch
import yaml
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import DATASETS, MODELS
from mmseg.structures import SegDataSample

from volo_seg.checkpoints import VARIANTS
from volo_seg.config.checks import fill_class_count
from volo_seg.config.load import config_root, datasets, load_config, shipped_configs

NAMES = sorted(shipped_configs())
PATTERN = re.compile(
    r'volo-(?P<arch>[a-z0-9]+)(?P<pyramid>-pyramid)?_upernet_(?P<gpus>\d+)xb(?P<batch>\d+)-(?P<iters>\d+)(?P<k>k?)'
    r'_(?P<data>[a-z0-9-]+)-(?P<h>\d+)x(?P<w>\d+)'
)


def test_population():
    """d1..d5 on two data sets, d1 at 512x1024 and on nine others, two pyramids, two on Toyscapes, two on folders."""
    assert len(NAMES) == 26
    for data in ('ade20k', 'cityscapes'):
        assert {PATTERN.fullmatch(n)['arch'] for n in NAMES if f'_{data}-' in n} == {'d1', 'd2', 'd3', 'd4', 'd5'}
        assert sum('pyramid' in n for n in NAMES if f'_{data}-' in n) == 1


@pytest.fixture(scope='module')
def configs():
    """Every config as the tools see it; the folders ones with three classes, as their data would say."""
    loaded = {name: load_config(name) for name in NAMES}
    for name, config in loaded.items():
        config.setdefault('num_classes', 3)
        fill_class_count(config, ['a', 'b', 'c'])
        if 'folders' in name:
            for split in ('train', 'val', 'test'):
                for _, dataset in datasets(config[f'{split}_dataloader'].dataset, split):
                    dataset['classes'] = ['a', 'b', 'c']
    return loaded


def parts(name):
    match = PATTERN.fullmatch(name)
    assert match, f'{name} does not follow the naming rule'
    return match


def arch_of(model):
    """The variant of the backbone: nano is a class of its own."""
    return 'nano' if model.backbone.type == 'VOLONano' else model.backbone.arch


@pytest.mark.parametrize('name', NAMES)
def test_name_agrees_with_content(name, configs):
    said, config = parts(name), configs[name]
    crop = (int(said['h']), int(said['w']))
    model, loader = config.model, config.train_dataloader
    dataset = loader.dataset.dataset
    assert arch_of(model) == said['arch']
    assert (model.get('neck') is not None) is bool(said['pyramid'])
    assert tuple(model.data_preprocessor.size) == crop
    assert said['arch'] == 'nano' or tuple(model.backbone.img_size) == crop
    assert [tuple(t.crop_size) for t in dataset.pipeline if t.type == 'RandomCrop'] == [crop]
    assert loader.batch_size == int(said['batch'])
    assert config.auto_scale_lr == dict(enable=False, base_batch_size=int(said['gpus']) * int(said['batch']))
    iters = int(said['iters']) * (1000 if said['k'] else 1)
    assert config.train_cfg.max_iters == config.param_scheduler[-1].end == iters
    root = {'ade20k': 'ade', 'voc12': 'voc2012', 'pascal-context-59': 'voc2010'}.get(said['data'], said['data'])
    assert root.partition('-')[0] in dataset.data_root.lower()
    if model.test_cfg.mode == 'slide':
        assert tuple(model.test_cfg.crop_size) == crop
        assert [4 * s for s in model.test_cfg.stride] == [3 * c for c in crop]


@pytest.mark.parametrize('name', NAMES)
def test_widths_and_classes_agree(name, configs):
    model = configs[name].model
    arch = arch_of(model)
    dims = VARIANTS[arch].embed_dims if arch != 'nano' else MODELS.get('VOLONano').out_channels_of(model.backbone)
    dims = list(dims)
    assert model.decode_head.in_channels == dims
    assert model.auxiliary_head.in_channels == dims[model.auxiliary_head.in_index]
    dataset = configs[name].train_dataloader.dataset.dataset
    # those of MMSegmentation need their files to be built
    classes = dataset.get('classes') or DATASETS.get(dataset.type).METAINFO['classes']
    assert model.decode_head.num_classes == model.auxiliary_head.num_classes == len(classes)


@pytest.mark.parametrize('name', NAMES)
def test_top_level_data_preprocessor(name, configs):
    """MMSegmentation's visualization_cam.py reads it there."""
    assert configs[name].data_preprocessor == configs[name].model.data_preprocessor
    assert len(configs[name].data_preprocessor['mean']) == len(configs[name].data_preprocessor['std']) == 3
    assert configs[name].data_preprocessor['size'] == configs[name].crop_size


@pytest.mark.parametrize('name', NAMES)
def test_recipe(name, configs):
    config = configs[name]
    optimizer = config.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.weight_decay) == ('AdamW', 0.01)
    warm_up, decay = config.param_scheduler
    assert (warm_up.type, decay.type, decay.begin) == ('LinearLR', 'PolyLR', warm_up.end)
    if arch_of(config.model) != 'nano':
        assert (optimizer.lr, warm_up.end, warm_up.start_factor) == (6e-5, 1500, 1e-6)
        pretrained = config.model.backbone.init_cfg.checkpoint
        assert pretrained.startswith(f'volo_{config.model.backbone.arch}_')
    scales, flips = config.tta_pipeline[1].transforms[:2]
    assert [t.scale_factor for t in scales] == [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
    assert [t.prob for t in flips] == [0.0, 1.0]


def batch(num_classes, size=(64, 64), count=2):
    samples = []
    for _ in range(count):
        labels = torch.randint(0, num_classes, (1, *size))
        samples.append(SegDataSample(gt_sem_seg=PixelData(data=labels), metainfo=dict(img_shape=size, ori_shape=size)))
    return {
        'inputs': [torch.randint(0, 255, (3, *size), dtype=torch.uint8) for _ in range(count)],
        'data_samples': samples,
    }


@pytest.mark.parametrize('name', NAMES)
def test_builds(name, configs):
    init_default_scope('mmseg')
    with torch.device('meta'):
        model = MODELS.build(configs[name].model)
    assert sum(p.numel() for p in model.backbone.parameters()) > 5e5


@pytest.mark.parametrize('name', NAMES)
def test_one_training_step(name, configs):
    """Two random 64x64 images, one optimizer step: finite losses, and every trained weight moves."""
    init_default_scope('mmseg')
    config = configs[name].copy()
    config.model.data_preprocessor.size = (64, 64)
    arch = arch_of(config.model)
    config.model.backbone.update(init_cfg=None, **(dict(img_size=64, drop_path_rate=0.0) if arch != 'nano' else {}))
    if arch not in ('nano', 'd1'):
        # the same widths at the least depth: what a larger variant adds is more of the same blocks
        config.model.backbone.arch = VARIANTS[arch]._replace(depths=(1, 1, 1, 1))._asdict()
    config.optim_wrapper.optimizer.lr = 1e-3
    model = MODELS.build(config.model).train()
    optim = build_optim_wrapper(model, config.optim_wrapper)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    data = model.data_preprocessor(batch(config.num_classes), training=True)
    losses = model(**data, mode='loss')
    assert {'decode.loss_ce', 'aux.loss_ce'} <= set(losses)
    total, _ = model.parse_losses(losses)
    assert torch.isfinite(total)
    optim.update_params(total)
    still = [n for n, p in model.named_parameters() if p.grad is not None and torch.equal(p, before[n])]
    assert not still


@pytest.mark.parametrize(
    'name', ['volo-nano_upernet_1xb4-1200_toyscapes-256x256', 'volo-d1_upernet_1xb4-20k_folders-512x512']
)
def test_weight_decay_groups(name, configs):
    """None on norms, biases and the position grid; 0.01 on every other parameter."""
    init_default_scope('mmseg')
    config = configs[name]
    model = MODELS.build(config.model)
    optim = build_optim_wrapper(model, config.optim_wrapper)
    decays = {id(p): g['weight_decay'] for g in optim.optimizer.param_groups for p in g['params']}
    names = dict(model.named_parameters())
    assert len(decays) == len(names)
    for key, parameter in names.items():
        expected = 0.01 if parameter.dim() > 1 and 'pos_embed' not in key else 0.0
        assert decays[id(parameter)] == expected, key


def test_model_index():
    root = config_root()
    index = yaml.safe_load((root / 'model-index.yml').read_text())
    models = [m for f in index['Import'] for m in yaml.safe_load((root / f).read_text())['Models']]
    assert sorted(m['Name'] for m in models) == NAMES
    for model in models:
        assert (root / model['Config']).is_file()
        said = parts(model['Name'])
        assert model['Metadata']['Batch Size'] == int(said['gpus']) * int(said['batch'])

"""One and two classes: which heads and losses learn class 1 where the labels hold it, and which are refused."""

import json

import pytest
import tiny
import torch
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.models.decode_heads import FCNHead
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

import volo_seg.models  # noqa: F401
from volo_seg.commands import run
from volo_seg.config.load import load_config
from volo_seg.config.losses import CHOICES, ONE_CHANNEL, check_channels_of_losses, choose_loss, set_class_weights
from volo_seg.errors import UserError

FOLDERS = 'volo-nano_upernet_1xb4-20k_folders-256x256'
LABELS = torch.tensor([[[0, 0, 1, 1], [0, 1, 1, 255], [1, 0, 0, 1], [0, 1, 0, 1]]])
SIGMOID = {kind: dict(type=kind, **settings) for kind, settings in ONE_CHANNEL.items()}
SIGMOID['LovaszLoss']['per_image'] = True
SOFTMAX = {
    'CrossEntropyLoss': {},
    'sigmoid': dict(type='CrossEntropyLoss', use_sigmoid=True),
    'WeightedCrossEntropyLoss': dict(class_weight=[1.0, 2.0]),
    'DiceLoss': {},
    'LovaszLoss': dict(loss_type='multi_class', reduction='none'),
    'TverskyLoss': {},
    **{kind: {} for kind in ONE_CHANNEL if kind not in ('CrossEntropyLoss', 'LovaszLoss')},
}


def config_of(**head):
    config = load_config(FOLDERS)
    for part in (config.model.decode_head, config.model.auxiliary_head):
        part.update(num_classes=2, **head)
    return config


def learns(loss, channels):
    """Whether a step against the gradient of ``loss`` moves labelled pixels to their class on average."""
    torch.manual_seed(0)
    head = FCNHead(in_channels=4, channels=4, num_classes=2, out_channels=channels, loss_decode=loss)
    logits = (torch.randn(1, channels, *LABELS.shape[1:]) / 10).requires_grad_()
    sample = SegDataSample(gt_sem_seg=PixelData(data=LABELS))
    losses = head.loss_by_feat(logits, [sample])
    sum(value for name, value in losses.items() if 'loss' in name).backward()
    toward_one = -(logits.grad[:, -1] - (logits.grad[:, 0] if channels == 2 else 0))
    return toward_one[LABELS == 1].mean() > 0 > toward_one[LABELS == 0].mean()


@pytest.mark.parametrize('kind', SIGMOID)
def test_one_channel_learns_class_1(kind):
    check_channels_of_losses(config_of(out_channels=1, loss_decode=SIGMOID[kind]))
    assert learns(SIGMOID[kind], 1)


@pytest.mark.parametrize('kind', SOFTMAX)
def test_two_channels_learn_with_every_loss(kind):
    loss = {'type': kind, **SOFTMAX[kind]}
    check_channels_of_losses(config_of(loss_decode=loss))
    assert learns(loss, 2)


@pytest.mark.parametrize(
    ('loss', 'words'),
    [
        (dict(type='CrossEntropyLoss'), 'CrossEntropyLoss cannot learn two classes from out_channels=1'),
        (dict(type='DiceLoss'), 'DiceLoss cannot learn'),
        (dict(type='FocalLoss'), 'FocalLoss cannot learn'),
        (dict(type='LovaszLoss', loss_type='multi_class'), 'LovaszLoss cannot learn'),
    ],
)
def test_one_channel_and_a_loss_that_cannot_learn(loss, words):
    for losses in (loss, [SIGMOID['CrossEntropyLoss'], loss]):
        with pytest.raises(UserError, match=words):
            check_channels_of_losses(config_of(out_channels=1, loss_decode=losses))


@pytest.mark.skipif(torch.cuda.is_available(), reason='focal loss works on a GPU')
def test_focal_loss_without_a_gpu():
    with pytest.raises(
        UserError,
        match='loss_decode: FocalLoss of MMSegmentation fails on a CPU with two or more channels; use SoftmaxFocalLoss',
    ):
        check_channels_of_losses(config_of(loss_decode=dict(type='FocalLoss')))


def test_other_refusals():
    with pytest.raises(UserError, match=r'decode_head.num_classes=1: .* list two classes, .background. \(label 0\)'):
        check_channels_of_losses(one_class())
    with pytest.raises(UserError, match=r"loss_type='binary' needs out_channels=1 in model.decode_head"):
        check_channels_of_losses(config_of(loss_decode=SIGMOID['LovaszLoss']))
    sampler = dict(type='OHEMPixelSampler', thresh=0.7, min_kept=10)
    with pytest.raises(UserError, match='OHEMPixelSampler with thresh needs a channel per class'):
        check_channels_of_losses(config_of(out_channels=1, loss_decode=SIGMOID['CrossEntropyLoss'], sampler=sampler))


def one_class():
    config = config_of()
    config.model.decode_head.num_classes = 1
    return config


@pytest.mark.parametrize('channels', [None, 1])
@pytest.mark.parametrize('choice', CHOICES)
def test_every_choice_learns_two_classes_in_our_heads(choice, channels):
    """Also with class weights, and with the right class the more likely one after one step."""
    config = config_of(out_channels=channels)
    choose_loss(config, choice)
    set_class_weights(config, [1.0, 2.0])
    check_channels_of_losses(config)
    settings = config.model.auxiliary_head.to_dict() | dict(norm_cfg=dict(type='BN'), sampler=None)
    sampler = config.model.decode_head.get('sampler')
    if choice == 'ohem':
        settings['sampler'] = dict(sampler, min_kept=2)
    init_default_scope('mmseg')
    head = MODELS.build(settings)
    torch.manual_seed(0)
    logits = (torch.randn(1, channels or 2, *LABELS.shape[1:]) / 10).requires_grad_()
    losses = head.loss_by_feat(logits, [SegDataSample(gt_sem_seg=PixelData(data=LABELS))])
    assert len([name for name in losses if 'loss' in name]) == len(CHOICES[choice])
    sum(value for name, value in losses.items() if 'loss' in name).backward()
    toward_one = -(logits.grad[:, -1] - (logits.grad[:, 0] if channels is None else 0))
    assert toward_one[LABELS == 1].mean() > 0 > toward_one[LABELS == 0].mean()
    assert not toward_one[LABELS == 255].any()
    shown = logits[:, 1] - logits[:, 0] if channels is None else logits[:, 0]
    right = ((shown > 0) == LABELS)[LABELS != 255].float().mean()
    assert losses['acc_seg'].item() == pytest.approx(100 * right.item(), abs=1e-3)


@pytest.mark.parametrize('channels', [None, 1])
def test_two_classes_from_training_to_output(channels, data, tmp_path, capsys, monkeypatch):
    """Losses of several kinds, sampling and pasting of the rare class, scores of both classes, predictions."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    (tmp_path / 'classes.txt').write_text('background\nthing\n')
    (tmp_path / 'binary.py').write_text(
        f"_base_ = '{data / 'tiny.py'}'\n"
        f'model = dict(decode_head=dict(out_channels={channels}), auxiliary_head=dict(out_channels={channels}))\n'
        f"binary = dict(classes='{tmp_path / 'classes.txt'}', label_map={{2: 0}})\n"
        'train_dataloader = dict(dataset=dict(dataset=binary))\n'
        'val_dataloader = dict(dataset=binary)\n'
        'test_dataloader = val_dataloader\n'
    )
    flags = ('--loss', 'ce+lovasz', '--class-weights', '--sampling', 'rare', '--copy-paste')
    words = tiny.words(data, tmp_path / 'run', *flags, config=str(tmp_path / 'binary.py'), train_cfg__max_iters=3)
    assert run('train', words) == 0, capsys.readouterr().err
    assert 'decode.loss_lovasz' in capsys.readouterr().out
    scores = json.loads(next((tmp_path / 'run').rglob('metrics.json')).read_text())
    assert [row['class'] for row in scores['classes']] == ['background', 'thing']
    assert sum(map(sum, scores['confusion_matrix'])) == 3 * 32 * 64
    (config,) = (tmp_path / 'run').glob('binary.py')
    image = str(data / 'images' / 'val' / '0.png')
    words = [str(config), str(tmp_path / 'run' / 'iter_3.pth'), image, '--out', str(tmp_path / 'out')]
    assert run('infer', words) == 0, capsys.readouterr().err

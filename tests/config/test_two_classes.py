"""One and two classes: which heads and losses learn class 1 where the labels hold it, and which are refused."""

import pytest
import torch
from mmengine.structures import PixelData
from mmseg.models.decode_heads import FCNHead
from mmseg.structures import SegDataSample

from volo_seg.config.load import load_config
from volo_seg.config.losses import ONE_CHANNEL, check_channels_of_losses
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
    with pytest.raises(UserError, match='loss_decode: FocalLoss of MMSegmentation fails on a CPU'):
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

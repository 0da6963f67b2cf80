"""Training steps (forward, losses, backward, clipping, optimizer) against MMSegmentation's parts.

First the losses alone: logits resized to the labels, cross entropy, `acc_seg`, and their backward pass. Then whole
steps of shipped configs against the same VOLO with MMSegmentation's EncoderDecoder, UPerHead, FCNHead and losses and
an AdamW that is not fused, and against its Swin-T + UPerNet.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import _peers  # noqa: F401
import torch
from _measure import Report, largest_difference, parser, settings
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from torch import Tensor, nn

from volo_seg.config.load import load_config
from volo_seg.models import VOLOFCNHead

from mmseg.models.decode_heads import FCNHead  # isort: skip
from mmseg.registry import MODELS  # isort: skip
from mmseg.structures import SegDataSample  # isort: skip

STOCK = {'VOLOUPerHead': 'UPerHead', 'VOLOFCNHead': 'FCNHead', 'VOLOSegmentor': 'EncoderDecoder'}
LOSSES = ((4, 19, 32, 256), (2, 150, 64, 512), (1, 19, 128, 1024))
"""Images, classes, side of the logits, side of the labels."""
STEPS = (
    ('volo-nano_upernet_1xb4-20k_folders-256x256', 19, 4, 256),
    ('volo-d1_upernet_8xb2-160k_ade20k-512x512', 150, 2, 512),
)
"""Config, classes, images, side."""


def samples(images: int, classes: int, side: int, device: str) -> list[SegDataSample]:
    """Random labels of blocks of 16 x 16 pixels, a tenth of them ignored."""
    labels = torch.randint(0, classes, (images, 1, side // 16, side // 16), device=device)
    labels[torch.rand(labels.shape, device=device) < 0.1] = 255
    labels = labels.repeat_interleave(16, 2).repeat_interleave(16, 3)
    return [SegDataSample(gt_sem_seg=PixelData(data=label), metainfo={'img_shape': (side, side)}) for label in labels]


def compare_losses(report: Report, images: int, classes: int, small: int, large: int) -> None:
    """The losses of FCNHead and of VOLOFCNHead, which those of VOLOUPerHead are too."""
    device = report.settings.device
    options = {'in_channels': 8, 'channels': 8, 'in_index': 0, 'num_classes': classes, 'dropout_ratio': 0.0}
    heads = {'mmseg': FCNHead(**options).to(device), 'ours': VOLOFCNHead(**options).to(device)}
    logits = (2 * torch.randn(images, classes, small, small, device=device)).requires_grad_()
    batch = samples(images, classes, large, device)

    def step(head: nn.Module) -> Callable[[], Tensor]:
        def run() -> Tensor:
            logits.grad = None
            head.loss_by_feat(logits, batch)['loss_ce'].backward()
            return logits.grad

        return run

    peers = {name: step(head) for name, head in heads.items()}
    error = largest_difference(peers['ours'](), peers['mmseg']())
    report.compare(f'losses, {images} x {classes} classes, {small} -> {large}', peers, errors={'ours': error})


def build(model: dict[str, Any], device: str) -> nn.Module:
    """A network without pretrained weights, in training mode."""
    model = copy.deepcopy(model)
    model['backbone']['init_cfg'] = None
    model['data_preprocessor'] = {'type': 'SegDataPreProcessor', 'size': model['data_preprocessor']['size']}
    text = _replaced(model, {'SyncBN': 'BN'})
    return MODELS.build(text).to(device).train()


def swin(classes: int, side: int) -> dict[str, Any]:
    """Swin-T + UPerNet of MMSegmentation (arXiv 2103.14030)."""
    head = {'num_classes': classes, 'align_corners': False, 'norm_cfg': {'type': 'BN'}, 'dropout_ratio': 0.1}
    channels = [96, 192, 384, 768]
    return {
        'type': 'EncoderDecoder',
        'data_preprocessor': {'type': 'SegDataPreProcessor', 'size': (side, side)},
        'backbone': {
            'type': 'SwinTransformer',
            'depths': [2, 2, 6, 2],
            'num_heads': [3, 6, 12, 24],
            'drop_path_rate': 0.1,
        },
        'decode_head': {'type': 'UPerHead', 'in_channels': channels, 'in_index': [0, 1, 2, 3], 'channels': 512, **head},
        'auxiliary_head': {
            'type': 'FCNHead',
            'in_channels': 384,
            'in_index': 2,
            'channels': 256,
            'num_convs': 1,
            'concat_input': False,
            'loss_decode': {'type': 'CrossEntropyLoss', 'loss_weight': 0.4},
            **head,
        },
        'train_cfg': {},
        'test_cfg': {'mode': 'whole'},
    }


def step_of(model: nn.Module, *, fused: bool, images: int, classes: int, side: int, device: str) -> Callable[[], None]:
    """A training step of ``model`` on one random batch."""
    inputs, batch = torch.randn(images, 3, side, side, device=device), samples(images, classes, side, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=fused)

    def run() -> None:
        optimizer.zero_grad()
        losses = model(inputs, batch, mode='loss')
        model.parse_losses(losses)[0].backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return run


def compare_steps(report: Report, name: str, classes: int, images: int, side: int, *, with_swin: bool) -> None:
    """Whole steps of the config ``name``, the same network of MMSegmentation's parts, and Swin-T + UPerNet."""
    device = report.settings.device
    model = load_config(name).model.to_dict()
    for head in (model['decode_head'], model['auxiliary_head']):
        head['num_classes'] = classes
    model['data_preprocessor']['size'] = (side, side)
    if model['backbone']['type'] == 'VOLO':
        model['backbone']['img_size'] = side
    networks = {'mmseg': _replaced(model, STOCK), 'ours': model} | (
        {'Swin-T': swin(classes, side)} if with_swin else {}
    )
    size = {'images': images, 'classes': classes, 'side': side, 'device': device}
    peers = {key: step_of(build(m, device), fused=key == 'ours', **size) for key, m in networks.items()}
    report.compare(f'step of {name.split("_")[0]}, {images} x {side} x {side}, {classes} classes', peers)


def _replaced(value: Any, names: dict[str, str]) -> Any:
    """``value`` with type names replaced."""
    if isinstance(value, dict):
        return {key: _replaced(item, names) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_replaced(item, names) for item in value)
    return names.get(value, value) if isinstance(value, str) else value


def main(argv: Sequence[str] | None = None) -> None:
    """Losses, then whole steps."""
    report = Report('Training step', settings(parser(__doc__).parse_args(argv)))
    init_default_scope('mmseg')
    quick = report.settings.quick
    for images, classes, small, large in LOSSES[: 1 if quick else None]:
        compare_losses(report, images, classes, small // 4 if quick else small, large // 4 if quick else large)
    for name, classes, images, side in STEPS[: 1 if quick else None]:
        compare_steps(report, name, classes, images, 64 if quick else side, with_swin=classes == 150)
    report.remark("error: of the gradient of the logits, relative to mmseg's largest value, in float32")
    report.finish()


if __name__ == '__main__':
    main()

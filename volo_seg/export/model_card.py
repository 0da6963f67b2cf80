"""The README of a published model, in the form that model hubs read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config
from torch import nn

from volo_seg import __version__


def write_card(
    name: str,
    config: Config,
    classes: Sequence[str],
    model: nn.Module,
    *,
    meta: Mapping[str, Any],
    scores: Mapping[str, Any] | None,
) -> str:
    """Markdown with front matter: what the model is, its scores if there are any, how to use it, how it was trained."""
    parts = [
        _front_matter(name, scores),
        f'# {name}\n\n{_what(config, classes, model)}',
        f'## Scores\n\n{_scores(scores)}',
        f'## Use\n\n{_use(name)}',
        f'## Training\n\n{_training(config, meta)}',
        f'## Classes\n\n{_classes(classes, scores)}',
    ]
    return '\n\n'.join(parts) + '\n'


def _front_matter(name: str, scores: Mapping[str, Any] | None) -> str:
    lines = ['---', 'library_name: volo-seg', 'pipeline_tag: image-segmentation', 'tags:', '- volo', '- upernet']
    if scores is not None:
        lines += [
            'model-index:',
            f'- name: {name}',
            '  results:',
            '  - task: {type: image-segmentation}',
            f'    dataset: {{type: custom, name: {scores["images"]} images}}',
            f'    metrics: [{{type: mean_iou, value: {scores["mIoU"]:.2f}}}]',
        ]
    return '\n'.join([*lines, '---'])


def _what(config: Config, classes: Sequence[str], model: nn.Module) -> str:
    backbone, head = config.model.backbone, config.model.decode_head
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    arch = f' ({backbone.arch})' if isinstance(backbone.get('arch'), str) else ''
    return (
        f'Semantic segmentation into {len(classes)} classes: {backbone.type}{arch} with {head.type}, '
        f'{parameters:.1f} million parameters. Written by volo-seg {__version__}.'
    )


def _scores(scores: Mapping[str, Any] | None) -> str:
    if scores is None:
        return 'Not evaluated.'
    rows = [(key, scores[key]) for key in ('mIoU', 'mAcc', 'aAcc') if scores.get(key) is not None]
    table = '\n'.join(f'| {key} | {value:.2f} |' for key, value in rows)
    return f'| | % |\n|---|---|\n{table}\n\nOn {scores["images"]} images. mIoU: {scores["definition_text"]}.'


def _use(name: str) -> str:
    return (
        '```python\nfrom volo_seg.inference import Predictor\n\n'
        f"predictor = Predictor.from_pretrained('{name}')    # this folder, or OWNER/NAME on the hub\n"
        "result = predictor('street.jpg')\nresult.overlay()\n```\n\n"
        'Loading runs no code of this folder: weights are safetensors, `config.json` is plain values.'
    )


def _training(config: Config, meta: Mapping[str, Any]) -> str:
    optimizer = (config.get('optim_wrapper') or {}).get('optimizer') or {}
    loader = config.get('train_dataloader') or {}
    told = {
        'iterations': meta.get('iter'),
        'batch size of a process': loader.get('batch_size'),
        'crop (height, width)': config.get('crop_size'),
        'optimizer': ', '.join(f'{k} {v}' for k, v in optimizer.items() if k in ('type', 'lr', 'weight_decay')),
        'seed': meta.get('seed'),
        'finished': meta.get('time'),
        'config': config.filename and str(config.filename).replace('\\', '/').rsplit('/', 1)[-1],
    }
    lines = [f'- {key}: {value}' for key, value in told.items() if value not in (None, '')]
    return '\n'.join(lines) or 'Not recorded.'


def _classes(classes: Sequence[str], scores: Mapping[str, Any] | None) -> str:
    if scores is None:
        return ', '.join(classes)
    rows = [(entry['class'], '-' if entry['IoU'] is None else f'{entry["IoU"]:.1f}') for entry in scores['classes']]
    return '| class | IoU, % |\n|---|---|\n' + '\n'.join(f'| {name} | {iou} |' for name, iou in rows)

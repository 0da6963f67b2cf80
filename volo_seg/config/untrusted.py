"""Configs that came along with weights: only what describes a network is taken over, and only from known classes.

MMEngine builds whatever a config names: ``type='subprocess.Popen'`` runs a program, ``custom_imports`` imports any
module, ``init_cfg`` opens any file. So a config that the user did not choose goes through here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config

from volo_seg.config.validation import find_type
from volo_seg.errors import UserError

TRUSTED = (
    'volo_seg',
    'torch.nn',
    'mmcv.cnn',
    'mmcv.transforms',
    'mmseg.datasets.transforms',
    'mmseg.models.backbones',
    'mmseg.models.data_preprocessor',
    'mmseg.models.decode_heads',
    'mmseg.models.losses',
    'mmseg.models.necks',
    'mmseg.models.segmentors.encoder_decoder',
    'mmseg.structures.sampler',
    'mmengine.utils.dl_utils.parrots_wrapper',
)
"""Modules whose registered classes compute and do nothing else."""
DISTRUSTED = ('mmseg.models.backbones.vpd',)
"""The exception: it instantiates what its own arguments name."""
READING = ('init_cfg', 'pretrained')
"""Keys that make a network read a file; weights come with the config, so they are left out."""

Node = Mapping[str, Any]


def described_network(content: Node, *, name: str) -> Config:
    """The model and the test pipeline of ``content``, a config of the file ``name`` as a dict of plain values.

    Every ``type`` must be a registered name of a known class; files to read, hooks and imports are left out.

    Raises:
        UserError: A part is missing, or a type is none of those.
    """
    model = _part(content, 'model', name=name)
    loader = _part(content, 'test_dataloader', name=name)
    dataset = _part(loader, 'dataset', name=name)
    pipeline = dataset.get('pipeline')
    if not isinstance(pipeline, Sequence) or isinstance(pipeline, str):
        raise UserError(f'the config in {name} has no test_dataloader.dataset.pipeline: give the config file as well')
    model, pipeline = _without_files(model), list(_without_files(pipeline))
    for place, kind in [*_types(model, 'model'), *_types(pipeline, 'pipeline')]:
        _check(place, kind, name=name)
    network = {
        'default_scope': 'mmseg',
        'model': model,
        'test_dataloader': {'dataset': {'type': 'BaseSegDataset', 'pipeline': pipeline}},
    }
    return Config(network)


def _part(content: Any, key: str, *, name: str) -> Node:
    part = content.get(key) if isinstance(content, Mapping) else None
    if not isinstance(part, Mapping):
        raise UserError(f'the config in {name} has no {key}: give the config file as well')
    return part


def _without_files(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _without_files(value) for key, value in node.items() if key not in READING}
    if isinstance(node, (list, tuple)):
        return type(node)(_without_files(value) for value in node)
    return node


def _types(node: Any, place: str) -> Iterator[tuple[str, Any]]:
    """(dotted place, type) at and below ``node``; another scope counts as a type of its own, to be refused."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key in ('type', '_scope_'):
                yield f'{place}.{key}', value
            yield from _types(value, f'{place}.{key}')
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from _types(value, f'{place}.{index}')


def _check(place: str, kind: Any, *, name: str) -> None:
    known = isinstance(kind, str) and '.' not in kind and not place.endswith('._scope_') and find_type(kind)
    module = getattr(known, '__module__', '') if known else ''
    if not _below(module, TRUSTED) or _below(module, DISTRUSTED):
        raise UserError(
            f'the config in {name} asks for {place}={kind!r}, which is no network part that is known here, and is '
            'refused: if you trust it, give its config file yourself'
        )


def _below(module: str, roots: Sequence[str]) -> bool:
    return any(module == root or module.startswith(f'{root}.') for root in roots)

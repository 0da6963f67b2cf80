"""The weights files that a config names, read before a run is built."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.config import Config

from volo_seg.checkpoints.mmengine_loaders import load_from_config
from volo_seg.config.validation import walk
from volo_seg.errors import prefixed

INITIALIZERS = ('Pretrained', 'PretrainedInit', 'mmengine.Pretrained', 'mmengine.PretrainedInit')


def check_weights(config: Config) -> None:
    """Read each weights file that training with ``config`` starts from, and forget it again.

    Raises:
        UserError: One is missing, damaged or refused; with its key in the config.
    """
    for key, source in named_weights(config):
        with prefixed(f'{key}={source!r}'):
            load_from_config(source)


def named_weights(config: Config) -> Iterator[tuple[str, str]]:
    """(dotted key, path, address or zoo name) of each weights file that training with ``config`` starts from.

    The checkpoint that a run resumes from is left out: it was named by a flag, and may hold the optimizer's state.
    """
    for place, node in walk(config.model, 'model'):
        keys = ('checkpoint',) if node['type'] in INITIALIZERS else ('pretrained', 'checkpoint_path')
        yield from ((f'{place}.{key}', node[key]) for key in keys if _is_weights(node.get(key)))
    if not config.get('resume') and _is_weights(config.get('load_from')):
        yield 'load_from', config.load_from


def _is_weights(value: Any) -> bool:
    return isinstance(value, str) and value != '' and not value.endswith('.npz')  # timm's, which holds arrays alone

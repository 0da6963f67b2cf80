"""The table of weights with a name: the models that ship with the package, and the authors' ImageNet classifiers.

A shipped model is three files of this folder, which ``tools/train_weights.sh`` writes: ``NAME.safetensors`` (the
weights, with config and classes inside), ``NAME.json`` (its row of the table) and ``NAME.md`` (its model card).
Standard library only.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parent
DEFAULT = 'volo-nano_toyscapes'
"""The shipped model that commands and ``Predictor()`` use where none is named."""


class Weights(NamedTuple):
    """A row of the table.

    Attributes:
        file: Name of the file; a shipped one is in ``FOLDER``, another one in the cache once it is downloaded.
        content: What it is, in a few words.
        licence: Licence, as its authors state it.
        page: Where its authors publish it; for a shipped model its card in ``FOLDER``.
        url: Address of the file, None for a shipped one.
        sha256: Hash of the file, None where its authors publish none.
        timm: Name of the same weights on timm's hub.
        config: Shipped config of a segmentor; None for a classifier.
        classes: Class names of a segmentor.
        palette: Its colours, (R, G, B) of 0 to 255 each.
        figures: What was measured with it, for a shipped model.
    """

    file: str
    content: str
    licence: str
    page: str
    url: str | None = None
    sha256: str | None = None
    timm: str | None = None
    config: str | None = None
    classes: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()
    figures: dict[str, Any] = {}


def _shipped(path: Path) -> Weights:
    row = json.loads(path.read_text(encoding='utf-8'))
    row['classes'], row['palette'] = tuple(row['classes']), tuple(map(tuple, row['palette']))
    return Weights(**row)


def _official(file: str) -> Weights:
    """The row of an official file, whose name is VARIANT_RESOLUTION_ACCURACY."""
    variant, side, accuracy = file.split('_')
    return Weights(
        file=f'{file}.pth.tar',
        content=f'ImageNet-1K classifier {variant} at {side}x{side}, top-1 {accuracy}',
        licence='Apache-2.0; the authors ask to be contacted about commercial use',
        page='https://github.com/sail-sg/volo',
        url=f'https://github.com/sail-sg/volo/releases/download/volo_1/{file}.pth.tar',
        timm=f'timm/volo_{variant}_{side}.sail_in1k',
    )


# Source: github.com/sail-sg/volo, README.md and release volo_1, which state no hashes.
_OFFICIAL_FILES = (
    'd1_224_84.2',
    'd1_384_85.2',
    'd2_224_85.2',
    'd2_384_86.0',
    'd3_224_85.4',
    'd3_448_86.3',
    'd4_224_85.7',
    'd4_448_86.79',
    'd5_224_86.10',
    'd5_448_87.0',
    'd5_512_87.07',
)
WEIGHTS: dict[str, Weights] = {
    **{path.stem: _shipped(path) for path in sorted(FOLDER.glob('*.json'))},
    **{f'volo_{file.rpartition("_")[0]}': _official(file) for file in _OFFICIAL_FILES},
}
"""The table, by name (``volo-nano_toyscapes``, ``volo_d1_224``)."""


def named(source: object) -> Weights | None:
    """The row that ``source`` names; None if it is no name, or if a file or folder of that name exists."""
    return WEIGHTS.get(source) if isinstance(source, str) and not Path(source).exists() else None


def did_you_mean(name: str) -> str:
    """`` (did you mean X?)`` with the name of the table that is closest to ``name``; empty if none is close."""
    close = difflib.get_close_matches(name, WEIGHTS, n=1, cutoff=0.7)
    return f' (did you mean {close[0]}?)' if close else ''

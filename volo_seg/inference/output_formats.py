"""What can be written of a result, and where each kind goes below the output folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from volo_seg.errors import UserError


@dataclass(frozen=True)
class Kind:
    """One kind of result: ``<folder>/<name><suffix>``; without a suffix it is a row of the table ``folder``."""

    folder: str
    suffix: str
    what: str
    needs: str = ''


KINDS = {
    'labels': Kind('labels', '.png', 'class number of each pixel, 8 bit (16 bit above 256 classes)'),
    'overlay': Kind('overlays', '.jpg', 'colours over the image'),
    'colour': Kind('colours', '.png', 'colour of the class of each pixel'),
    'confidence': Kind('confidence', '.png', 'largest probability of each pixel, 255 means 1', 'confidence'),
    'probabilities': Kind('probabilities', '.npz', 'float16 (classes, height, width), and the names', 'probabilities'),
    'geojson': Kind('geojson', '.geojson', 'polygons with holes, along the edges of the pixels'),
    'labelme': Kind('labelme', '.json', 'the same for labelme: outlines, the largest first'),
    'shares': Kind('shares.csv', '', 'share of each class, one row an image'),
}
DEFAULT = ('labels', 'overlay')


def check_kinds(kinds: Sequence[str]) -> tuple[str, ...]:
    """``kinds`` in the order of the table, each once.

    Raises:
        UserError: None, or one that is not in the table.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise UserError(f'{unknown[0] if unknown else ""!r} is no kind of result; choose from {", ".join(KINDS)}')
    return tuple(kind for kind in KINDS if kind in kinds)

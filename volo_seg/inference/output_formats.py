"""The formats in which results are written, and their places below the output folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from volo_seg.errors import UserError


@dataclass(frozen=True)
class OutputFormat:
    """One kind of output, written to ``<folder>/<name><suffix>``, or to one file for all images.

    Attributes:
        folder: Subfolder of the output folder, or the name of the one file.
        suffix: Suffix of the files; empty for one file.
        description: Content, for ``--help``.
        needs: Attribute of :class:`Result` that has to be computed, beside the labels.
    """

    folder: str
    suffix: str
    description: str
    needs: str = ''


OUTPUT_FORMATS = {
    'labels': OutputFormat('labels', '.png', 'class number of each pixel, 8 bits (16 bits above 256 classes)'),
    'overlay': OutputFormat('overlays', '.jpg', 'class colours over the image'),
    'colour': OutputFormat('colours', '.png', 'class colour of each pixel'),
    'confidence': OutputFormat('confidence', '.png', 'largest probability of each pixel, 255 means 1', 'confidence'),
    'confidence16': OutputFormat('confidence16', '.png', 'the same in 16 bits, 65535 means 1', 'confidence'),
    'probabilities': OutputFormat(
        'probabilities', '.npz', 'float16 (classes, height, width), and class names', 'probabilities'
    ),
    'geojson': OutputFormat('geojson', '.geojson', 'polygons with holes, along the edges of the pixels'),
    'labelme': OutputFormat('labelme', '.json', 'polygons for labelme, the largest first; labels.txt has the classes'),
    'coco': OutputFormat('coco.json', '', 'a mask per class and image for COCO tools; with labels'),
    'cvat': OutputFormat('cvat.xml', '', 'the same for CVAT ("CVAT for images 1.1"); with labels'),
    'parquet': OutputFormat('parquet', '', 'table in parts: path, size, shares, RLE masks, model, error'),
    'shares': OutputFormat('shares.csv', '', 'share of each class, one row per image'),
}
"""By kind, as given to ``--kinds`` and :meth:`Result.save`."""
DEFAULT = ('labels', 'overlay')


def check_kinds(kinds: Sequence[str]) -> tuple[str, ...]:
    """Return ``kinds`` without repetitions, in the order of ``OUTPUT_FORMATS``.

    Raises:
        UserError: ``kinds`` is empty, or one of them is unknown.
    """
    unknown = [kind for kind in kinds if kind not in OUTPUT_FORMATS]
    if unknown or not kinds:
        name = unknown[0] if unknown else ''
        raise UserError(f'{name!r} is not a kind of output; choose from {", ".join(OUTPUT_FORMATS)}')
    return tuple(kind for kind in OUTPUT_FORMATS if kind in kinds)

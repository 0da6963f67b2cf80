"""Write what was found in an image: one file a kind, each whole or not at all, and none outside its folder."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from volo_seg.errors import UserError
from volo_seg.inference.batch.shares import ShareTable, share_row
from volo_seg.inference.files import inside
from volo_seg.inference.output_formats import DEFAULT, KINDS, check_kinds
from volo_seg.inference.polygons import geojson, labelme
from volo_seg.io import atomic_write
from volo_seg.label_png import encode_labels

if TYPE_CHECKING:
    from volo_seg.inference.result import Result


class OutputError(UserError):
    """Nothing can be written there (full disk, no permission, a link that leads away), whatever the image."""


@dataclass(frozen=True)
class Place:
    """Where one file goes, and what its content has to know besides the result."""

    path: Path
    source: Path | None = None
    opacity: float = 0.5


def save_result(
    result: Result,
    out_dir: str | Path,
    *,
    name: str,
    kinds: Sequence[str] = DEFAULT,
    source: Path | None = None,
    opacity: float = 0.5,
) -> list[Path]:
    """Write ``result`` as ``out_dir/<folder of the kind>/<name><suffix>``; return the paths, the table of shares last.

    Args:
        result: What was found.
        out_dir: Folder that is made if need be; nothing is written outside it.
        name: Name without suffix, subfolders allowed.
        kinds: Of :data:`volo_seg.inference.output_formats.KINDS`.
        source: The image file, which labelme documents and the table refer to.
        opacity: Of the colours of an overlay, in [0, 1].

    Raises:
        UserError: An unknown kind, or a result that does not fit into the format.
        OutputError: A file cannot be written, or ``name`` leads out of the folder.
    """
    chosen = check_kinds(kinds)
    written = write_files(result, out_dir, name=name, kinds=chosen, source=source, opacity=opacity)
    if 'shares' in chosen:
        table = ShareTable(Path(out_dir), result.classes)
        table.merge({name: share_row(result, source)})
        written.append(table.path)
    return written


def write_files(
    result: Result,
    out_dir: str | Path,
    *,
    name: str,
    kinds: Sequence[str],
    source: Path | None = None,
    opacity: float = 0.5,
) -> list[Path]:
    """:func:`save_result` without the table of shares."""
    written = []
    for kind in kinds:
        if KINDS[kind].suffix:
            path = place(out_dir, kind, name)
            _write(path, ENCODERS[kind](result, Place(path, source, opacity)))
            written.append(path)
    return written


def place(out_dir: str | Path, kind: str, name: str) -> Path:
    """The file of ``kind`` for the image ``name``, links resolved.

    Raises:
        OutputError: It would lie outside ``out_dir``.
    """
    try:
        # the name first by itself: `../x` may not climb into the folder of another kind either
        inside(Path(out_dir) / KINDS[kind].folder, name)
        return inside(out_dir, Path(KINDS[kind].folder, name + KINDS[kind].suffix))
    except UserError as error:
        raise OutputError(str(error)) from error


def _write(path: Path, content: bytes) -> None:
    try:
        atomic_write(path, content)
    except UserError as error:
        raise OutputError(str(error)) from error


def _encode(image: np.ndarray, place: Place) -> bytes:
    try:
        done, data = cv2.imencode(place.path.suffix, image)
    except cv2.error:
        done = False
    if not done:
        height, width = image.shape[:2]
        raise UserError(f'{str(place.path)!r} cannot hold {width} x {height} pixels; choose other --kinds')
    return data.tobytes()


def _labels(result: Result, _: Place) -> bytes:
    return encode_labels(result.labels.astype(np.uint8 if len(result.classes) <= 256 else np.uint16))


def _colour(result: Result, place: Place) -> bytes:
    return _encode(result.colour(), place)


def _overlay(result: Result, place: Place) -> bytes:
    return _encode(result.overlay(opacity=place.opacity), place)


def _confidence(result: Result, place: Place) -> bytes:
    if result.confidence is None:
        raise UserError(f'{str(place.path)!r} needs the confidence; ask the predictor for it')
    return _encode(np.rint(255 * np.clip(result.confidence, 0, 1)).astype(np.uint8), place)


def _probabilities(result: Result, place: Place) -> bytes:
    if result.probabilities is None:
        raise UserError(f'{str(place.path)!r} needs the probabilities; ask the predictor for them')
    stream = io.BytesIO()
    halves = result.probabilities.astype(np.float16)
    np.savez_compressed(stream, probabilities=halves, classes=np.array(result.classes))
    return stream.getvalue()


def _geojson(result: Result, place: Place) -> bytes:
    return _compact(geojson(result.labels, result.classes, result.palette))


def _labelme(result: Result, place: Place) -> bytes:
    if place.source is None:
        image_path = f'{place.path.stem}.jpg'
    else:
        # labelme looks for the image from the folder of the document
        image_path = Path(os.path.relpath(place.source.resolve(), place.path.parent)).as_posix()
    return _compact(labelme(result.labels, result.classes, image_path=image_path))


def _compact(document: Mapping[str, object]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(',', ':')).encode()


ENCODERS: dict[str, Callable[[Result, Place], bytes]] = {
    'labels': _labels,
    'overlay': _overlay,
    'colour': _colour,
    'confidence': _confidence,
    'probabilities': _probabilities,
    'geojson': _geojson,
    'labelme': _labelme,
}

"""From a result to the content of an answer: JSON, label PNG, overlay PNG, npz."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection
from typing import Literal

import cv2
import numpy as np
from fastapi import HTTPException
from pydantic import BaseModel

from volo_seg.inference.polygons import regions
from volo_seg.inference.result import Result
from volo_seg.label_png import encode_labels

Output = Literal['json', 'labels', 'overlay', 'npz']
Masks = Literal['none', 'rle', 'polygons']
Include = Literal['labels', 'confidence', 'image']

MEDIA_TYPES: dict[Output, str] = {
    'json': 'application/json',
    'labels': 'image/png',
    'overlay': 'image/png; kind=overlay',
    'npz': 'application/x-npz',
}
_RANGES: dict[str, Output] = {
    '*/*': 'json',
    'application/*': 'json',
    'application/json': 'json',
    'image/*': 'labels',
    'image/png': 'labels',
    'image/png;kind=labels': 'labels',
    'image/png;kind=overlay': 'overlay',
    'application/x-npz': 'npz',
}
VIEW = 2048
"""Longest side in pixels of the JPEG in a JSON answer."""


class Rle(BaseModel):
    """COCO's uncompressed run lengths: columns first; zeros and ones in turn, zeros first."""

    size: tuple[int, int]
    counts: list[int]


class ClassShare(BaseModel):
    """A class that occurs: index, name, colour (RGB, 0 to 255), share of the pixels in [0, 1], mask.

    Each polygon is a list of rings of corners (x, y) in pixels: the outer ring, then its holes.
    """

    id: int
    name: str
    colour: list[int]
    share: float
    rle: Rle | None = None
    polygons: list[list[list[list[int]]]] | None = None


class Answer(BaseModel):
    """What a model finds in an image; the PNG and JPEG files are in base64.

    ``classes`` has the largest share first. ``seconds`` is the duration of the network run. ``labels`` is the label
    PNG, ``confidence`` a grey PNG (255 means 1), ``image`` the decoded image as JPEG of at most 2048 pixels a side.
    """

    model: str
    width: int
    height: int
    seconds: float
    classes: list[ClassShare]
    mean_confidence: float | None = None
    labels: str | None = None
    confidence: str | None = None
    image: str | None = None


def choose_output(accept: str | None, output: Output | None) -> Output:
    """The output that ``output`` names, else the first of highest quality in the ``Accept`` header.

    Raises:
        HTTPException: 406, there is none.
    """
    if output is not None or not accept:
        return output or 'json'
    ranked = []
    for part in accept.lower().split(','):
        kind, *parameters = (word.strip() for word in part.split(';'))
        quality = next((word[2:] for word in parameters if word.startswith('q=')), '1')
        kind = ';'.join([kind, *(word for word in parameters if word.startswith('kind='))])
        if kind in _RANGES and quality.replace('.', '', 1).isdecimal() and float(quality) > 0:
            ranked.append((float(quality), _RANGES[kind]))
    if ranked:
        return max(ranked, key=lambda item: item[0])[1]
    raise HTTPException(406, f'Accept names no output; choose from {", ".join(MEDIA_TYPES.values())}')


def encode(
    output: Output,
    result: Result,
    *,
    model: str,
    seconds: float,
    masks: Masks = 'none',
    include: Collection[Include] = (),
    opacity: float = 0.5,
) -> bytes:
    """The content of the answer ``output``."""
    if output == 'labels':
        return label_png(result)
    if output == 'overlay':
        return result.encode('overlay', suffix='.png', opacity=opacity)
    if output == 'npz':
        stream = io.BytesIO()
        arrays = {'labels': result.labels, 'classes': np.array(result.classes), 'palette': result.palette}
        if result.confidence is not None:
            arrays['confidence'] = result.confidence
        np.savez(stream, **arrays)  # type: ignore[arg-type]
        return stream.getvalue()
    height, width = result.labels.shape
    answer = Answer(model=model, width=width, height=height, seconds=seconds, classes=class_shares(result, masks=masks))
    if result.confidence is not None:
        answer.mean_confidence = float(result.confidence.mean())
    if 'labels' in include:
        answer.labels = _text(label_png(result))
    if 'confidence' in include:
        answer.confidence = _text(result.encode('confidence'))
    if 'image' in include:
        answer.image = _text(jpeg(result.image, longest=VIEW))
    return answer.model_dump_json(exclude_none=True).encode()


def label_png(result: Result) -> bytes:
    """The labels as a PNG of palette indices, or of 16 bits above 256 classes."""
    wide = len(result.classes) > 256
    return encode_labels(result.labels.astype(np.uint16 if wide else np.uint8), None if wide else result.palette)


def class_shares(result: Result, *, masks: Masks = 'none') -> list[ClassShare]:
    """The classes that occur, largest share first."""
    counts = np.bincount(result.labels.ravel(), minlength=len(result.classes))
    rows = {
        int(i): ClassShare(
            id=i, name=result.classes[i], colour=result.palette[i].tolist(), share=counts[i] / result.labels.size
        )
        for i in np.argsort(-counts, kind='stable')
        if counts[i]
    }
    if masks == 'rle':
        for label, runs in run_lengths(result.labels).items():
            rows[label].rle = Rle(size=result.labels.shape, counts=runs)
    if masks == 'polygons':
        for row in rows.values():
            row.polygons = []
        for region in regions(result.labels):
            rows[region.label].polygons.append([ring.tolist() for ring in region.rings])  # type: ignore[union-attr]
    return list(rows.values())


def run_lengths(labels: np.ndarray) -> dict[int, list[int]]:
    """COCO's uncompressed run lengths of each class of a label map (H, W)."""
    flat = labels.T.ravel()
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    values, ends = flat[starts], np.append(starts[1:], flat.size)
    found = {}
    for label in np.unique(values):
        own = values == label
        bounds = np.stack([starts[own], ends[own]], axis=1).ravel()
        runs = np.diff(bounds, prepend=0, append=flat.size)
        found[int(label)] = (runs if runs[-1] else runs[:-1]).tolist()
    return found


def jpeg(image: np.ndarray, *, longest: int) -> bytes:
    """An image (H, W, 3), BGR, as JPEG, made smaller until no side is above ``longest``."""
    height, width = image.shape[:2]
    scale = longest / max(height, width)
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    done, data = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 92])
    assert done
    return data.tobytes()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode('ascii')

"""From an image that somebody sent to all that the page shows of it, as plain values for JSON."""

from __future__ import annotations

import base64
import binascii
import io
import re
import time
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

import cv2
import numpy as np

from volo_seg.app.models import Model
from volo_seg.errors import UserError
from volo_seg.imageio import decode_image, open_image
from volo_seg.inference.result import Result
from volo_seg.label_png import encode_labels

VIEW = 2048
"""Longest side of the picture on the page, in pixels; the label file has the image's own size."""


def answer_image(image: np.ndarray, models: Sequence[Model], *, name: str) -> dict[str, Any]:
    """Segment ``image``, (H, W, 3) uint8, BGR, with every model; ``name`` is the file's, for downloads."""
    described = []
    for model in models:
        start = time.perf_counter()
        (result,) = model.predictor.stream([image], confidence=model.confidence)
        seconds = time.perf_counter() - start
        assert isinstance(result, Result)
        described.append(describe_result(result, name=model.name, seconds=seconds))
    height, width = image.shape[:2]
    rows, columns = view_grid(height, width)
    small = cv2.resize(image, (len(columns), len(rows)), interpolation=cv2.INTER_AREA)
    source = 'data:image/jpeg;base64,' + _text(_encode('.jpg', small, [cv2.IMWRITE_JPEG_QUALITY, 92]))
    picture = {'source': source, 'size': [width, height], 'view': [len(columns), len(rows)]}
    return {'stem': slug(PurePath(name).stem), 'picture': picture, 'models': described}


def describe_result(result: Result, *, name: str, seconds: float) -> dict[str, Any]:
    """Legend, label file (PNG, base64), and the labels and confidences that the page draws (zlib, base64).

    ``labels`` are ``bytes`` each, little-endian, row by row; ``confidence`` is one byte a pixel, 255 for certain.
    """
    grid = np.ix_(*view_grid(*result.labels.shape))
    wide = len(result.classes) > 256
    labels = result.labels.astype('<u2' if wide else np.uint8)
    sure = result.confidence
    return {
        'name': name,
        'slug': slug(name),
        'seconds': seconds,
        'legend': legend(result),
        'bytes': labels.itemsize,
        'labels': _text(zlib.compress(labels[grid].tobytes(), 3)),
        'confidence': None if sure is None else _text(zlib.compress(_as_bytes(sure[grid]), 3)),
        'mean_confidence': None if sure is None else float(sure.mean()),
        'file': _text(encode_labels(labels)),
    }


def legend(result: Result) -> list[dict[str, Any]]:
    """The classes that occur, largest share first: id, name, colour (RGB, 0 to 255), share in [0, 1]."""
    counts = np.bincount(result.labels.ravel(), minlength=len(result.classes)) / result.labels.size
    return [
        {
            'id': int(i),
            'name': str(result.classes[i]),
            'colour': [int(v) for v in result.palette[i]],
            'share': float(counts[i]),
        }
        for i in np.argsort(-counts, kind='stable')
        if counts[i] > 0
    ]


def view_grid(height: int, width: int, *, longest: int = VIEW) -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns) of the pixels that are shown: all of an image whose sides are at most ``longest``."""
    scale = min(1.0, longest / max(height, width))
    sizes = [max(1, round(side * scale)) for side in (height, width)]
    rows, columns = (
        ((np.arange(size) + 0.5) * (side / size)).astype(np.int64)
        for size, side in zip(sizes, (height, width), strict=True)
    )
    return rows, columns


def read_upload(text: Any, *, name: str, max_pixels: int, max_bytes: int) -> np.ndarray:
    """Decode what the browser sent: the bytes of an image file, in base64.

    Raises:
        UserError: It is no such text, or too large, or no image that can be read.
    """
    if not isinstance(text, str):
        raise UserError('no image arrived; choose one again')
    if len(text) > max_bytes * 4 / 3 + 4:
        raise UserError(f'{name} is larger than the {round(max_bytes / 2**20, 2):g} MB that this page takes')
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f'{name} did not arrive whole; send it again') from error
    return decode_limited(data, name=name, max_pixels=max_pixels)


def decode_limited(data: bytes, *, name: str, max_pixels: int) -> np.ndarray:
    """Decode an image file's content, (H, W, 3) uint8, BGR; its pixels are counted before.

    Raises:
        UserError: It has more than ``max_pixels``, or is no image that can be read.
    """
    if data:
        width, height = open_image(io.BytesIO(data), name=f'image {name!r}', max_pixels=2**62).size
        if width * height > max_pixels:
            raise UserError(
                f'{name} has {width} x {height} pixels, and this page takes up to '
                f'{max_pixels / 1e6:.1f} megapixels; make it smaller'
            )
    return decode_image(data, name=name, max_pixels=max_pixels)


def file_name(text: Any) -> str:
    """A name for messages and downloads out of whatever the browser sent: one line, without folders, not long."""
    words = PurePath(str(text).replace('\\', '/')).name if isinstance(text, str) else ''
    return ''.join(c for c in words if c.isprintable())[:80] or 'image'


def slug(text: str) -> str:
    """``text`` as part of a file name."""
    return re.sub(r'[^\w.-]+', '-', text).strip('-.')[:80] or 'image'


def make_example(path: Path, *, max_pixels: int, height: int = 120) -> dict[str, str]:
    """Name and small picture (a data URL) of an image file that the page offers.

    Raises:
        UserError: It is no image that can be read, or has more pixels than the page takes.
    """
    image = decode_limited(path.read_bytes(), name=str(path), max_pixels=max_pixels)
    width = max(1, min(4 * height, round(image.shape[1] * height / image.shape[0])))
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    source = 'data:image/jpeg;base64,' + _text(_encode('.jpg', small, [cv2.IMWRITE_JPEG_QUALITY, 85]))
    return {'name': path.name, 'source': source}


def _as_bytes(confidence: np.ndarray) -> bytes:
    return np.rint(255 * np.clip(confidence, 0, 1)).astype(np.uint8).tobytes()


def _encode(suffix: str, image: np.ndarray, options: Sequence[int] = ()) -> bytes:
    done, data = cv2.imencode(suffix, image, list(options))
    assert done, suffix
    return data.tobytes()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode('ascii')

"""Masks of annotated shapes, pixel by pixel as the formats' own programs make them."""

from __future__ import annotations

import base64
import io
import math
import zlib
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from volo_seg.datasets.importers.records import Mask, is_number
from volo_seg.errors import UserError
from volo_seg.image_files import load_image, open_image


def coco_polygons(parts: Sequence[Sequence[float]], height: int, width: int) -> Mask:
    """The union of ``parts``, flat lists x, y, … of at least three points, by pycocotools."""
    masks = coco_mask()
    return masks.decode(masks.merge(masks.frPyObjects([list(part) for part in parts], height, width))).astype(bool)


def coco_mask() -> Any:
    """The module ``pycocotools.mask``.

    Raises:
        UserError: It is not installed.
    """
    try:
        from pycocotools import mask
    except ImportError as error:
        raise UserError('polygons of this format need pycocotools: pip install "volo-seg[import]"') from error
    return mask


def coco_rle(counts: Any, where: str, height: int, width: int) -> Mask:
    """The mask of a COCO RLE, compressed (a string) or not (a list): runs of 0 and 1, column by column.

    Raises:
        UserError: The runs do not add up to ``height`` x ``width``.
    """
    runs: list[int] = []
    value = shift = 0
    if isinstance(counts, str):
        for byte in counts.encode('utf-8'):
            bits = byte - 48
            value |= (bits & 31) << shift
            shift += 5
            if bits & 32 and shift < 60:
                continue
            value -= (1 << shift) if bits & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    elif isinstance(counts, list) and all(isinstance(run, int) for run in counts):
        runs = counts
    if shift or sum(runs) != height * width or min(runs, default=-1) < 0:
        raise UserError(f'{where} has a run-length code that does not fit {width} x {height} pixels; export it again')
    return runs_to_mask(runs, width, height).T


def runs_to_mask(counts: Sequence[int], height: int, width: int) -> Mask:
    """The mask of alternating run lengths of 0 and 1, row by row."""
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(height, width)


def fill(
    rings: Sequence[npt.NDArray[np.int32]], holes: Sequence[npt.NDArray[np.int32]], height: int, width: int
) -> Mask:
    """OpenCV's fill of ``rings``, borders included, without ``holes``, borders included."""
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, list(rings), 1)
    if len(holes):
        cv2.fillPoly(mask, list(holes), 0)
    return mask.astype(bool)


def png_mask(text: str, where: str) -> Mask:
    """The mask in a PNG file in base64, deflated once more or not: its alpha if it has one, else what is not 0.

    Raises:
        UserError: It is not such a text.
    """
    name = f'the mask of {where}'
    try:
        content = base64.b64decode(text)
        if not content.startswith(b'\x89PNG'):
            content = zlib.decompressobj().decompress(content, 2**28)
    except (ValueError, zlib.error) as error:
        raise UserError(f'{name} is not a PNG in base64 ({error}); export it again') from error
    image = open_image(io.BytesIO(content), name=name)
    load_image(image, name=name)
    alpha = image.mode in ('RGBA', 'LA') or 'transparency' in image.info
    values = np.asarray(image.convert('RGBA' if alpha else 'RGB'))
    return (values[..., 3:] if alpha else values).max(axis=2) > 0


def paste(mask: Mask, left: int, top: int, height: int, width: int) -> Mask:
    """A mask with its upper left corner at ``left``, ``top``; what is outside the image is cut off."""
    whole = np.zeros((height, width), bool)
    part = mask[max(0, -top) :, max(0, -left) :]
    top, left = max(0, top), max(0, left)
    place = whole[top : top + part.shape[0], left : left + part.shape[1]]
    place[:] = part[: place.shape[0], : place.shape[1]]
    return whole


def ellipse(centre: tuple[float, float], radii: tuple[float, float], angle: float, height: int, width: int) -> Mask:
    """A filled ellipse as CVAT and OpenCV draw it: rounded to whole pixels, ``angle`` in degrees."""
    mask = np.zeros((height, width), np.uint8)
    (x, y), (across, down) = centre, radii
    cv2.ellipse(mask, (round(x), round(y)), (round(across), round(down)), angle, 0, 360, 255, thickness=-1)
    return mask.astype(bool)


def labelme_shape(kind: str, points: Sequence[tuple[float, float]], height: int, width: int) -> Mask:
    """A shape as labelme draws it: Pillow, outlines included; lines are 10 pixels wide, points have a radius of 5."""
    image = Image.new('L', (width, height))
    draw = ImageDraw.Draw(image)
    xy = [(float(x), float(y)) for x, y in points]
    if kind in ('circle', 'point'):
        (x, y), radius = xy[0], math.dist(*xy) if kind == 'circle' else 5
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], outline=1, fill=1)
    elif kind == 'rectangle':
        (x0, y0), (x1, y1) = xy
        draw.rectangle([min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)], outline=1, fill=1)
    elif kind in ('line', 'linestrip'):
        draw.line(xy, fill=1, width=10)
    else:
        draw.polygon(xy, outline=1, fill=1)
    return np.array(image, bool)


def brush(code: Any, where: str, height: int, width: int) -> Mask:
    """The mask of Label Studio's brush code: bytes of RGBA values, of which alpha is the mask.

    A head gives the number of values (32 bits), bits a value - 1 (5), and four bit widths - 1 (4 each). Each block is
    a bit (a repeated value, or values), which of the widths its count has (2), the count - 1, and the value or values.

    Raises:
        UserError: It is damaged, or not of ``height`` x ``width`` pixels.
    """
    wrong = UserError(f'{where} has a brush code that does not fit {width} x {height} pixels; export it again')
    if not isinstance(code, list) or not all(is_number(byte) and 0 <= byte <= 255 for byte in code):
        raise wrong
    bits = ''.join(f'{int(byte):08b}' for byte in code)
    place = 0

    def read(count: int) -> int:
        nonlocal place
        place += count
        if place > len(bits):
            raise wrong
        return int(bits[place - count : place], 2)

    total, word = read(32), read(5) + 1
    widths = [read(4) + 1 for _ in range(4)]
    if total != width * height * 4 or word > 8:
        raise wrong
    values, done = np.zeros(total, np.uint8), 0
    while done < total:
        repeated = read(1)
        count = 1 + read(widths[read(2)])
        if done + count > total:
            raise wrong
        values[done : done + count] = read(word) if repeated else [read(word) for _ in range(count)]
        done += count
    return values.reshape(height, width, 4)[:, :, 3] > 0

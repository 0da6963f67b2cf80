"""Rows of image, prediction and truth with a legend, as one JPEG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

WIDTH = 320
"""Width of one picture of a row, in pixels."""
_TALLEST = 480
_GAP, _BAND, _LINE = 4, 20, 18
_MOST_IN_LEGEND = 40
_COLUMNS = ('image', 'prediction', 'truth')

Pixels = npt.NDArray[np.uint8]
Palette = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Row:
    """One image, small: (h, w, 3) RGB, and its labels (h, w); labels beyond the classes are drawn black."""

    name: str
    image: Pixels
    prediction: npt.NDArray[Any]
    truth: npt.NDArray[Any]
    note: str = ''


def make_row(name: str, image: Any, prediction: Any, truth: Any, *, note: str = '') -> Row:
    """A small copy of one result.

    ``image`` is what the data pipeline gave, (C, H, W), BGR if it has three channels of uint8, or None (drawn grey);
    the labels are arrays or tensors (H, W) of one size, on any device.
    """
    rows, columns = _places(prediction.shape[-2:])
    size = (len(columns), len(rows))
    picture = np.full((*size[::-1], 3), 128, np.uint8) if image is None else _picture(image, size)
    return Row(name, picture, _sampled(prediction, rows, columns), _sampled(truth, rows, columns), note)


def image_of(data_batch: Any, index: int) -> Any:
    """(C, H, W): image ``index`` of a batch as the data pipeline gave it, of several views (TTA) the first, or None."""
    inputs = data_batch.get('inputs') if isinstance(data_batch, Mapping) else None
    if inputs is None or not len(inputs):
        return None
    several = isinstance(inputs[0], (list, tuple))
    if index >= len(inputs[0] if several else inputs):
        return None
    image = inputs[0][index] if several else inputs[index]
    return image if getattr(image, 'ndim', 0) == 3 else None


def draw_sheet(rows: Sequence[Row], *, title: str, classes: Sequence[str], palette: Palette | None) -> bytes:
    """JPEG bytes: the rows below each other, the classes that occur (most frequent first) named below.

    Raises:
        ValueError: there is no row.
    """
    if not rows:
        raise ValueError('a sheet needs a row')
    colours = colours_of(palette, len(classes))
    legend = _legend(rows, classes, colours)
    font = _font()
    width = len(_COLUMNS) * WIDTH + (len(_COLUMNS) + 1) * _GAP
    lines = _layout([name for name, _ in legend], font, width)
    heights = [_BAND + row.image.shape[0] + _GAP for row in rows]
    sheet = Image.new('RGB', (width, 2 * _BAND + sum(heights) + _LINE * len(lines) + 2 * _GAP), 'white')
    draw = ImageDraw.Draw(sheet)
    draw.text((2 * _GAP, 4), title, 'black', font)
    for index, word in enumerate(_COLUMNS):
        draw.text((2 * _GAP + index * (WIDTH + _GAP), _BAND + 3), word, '#666', font)
    top = 2 * _BAND
    for row, height in zip(rows, heights, strict=True):
        draw.text((2 * _GAP, top + 3), _cut(f'{row.name}   {row.note}'.rstrip(), font, width), 'black', font)
        for index, picture in enumerate(_triple(row, colours)):
            sheet.paste(Image.fromarray(picture), (_GAP + index * (WIDTH + _GAP), top + _BAND))
        top += height
    _draw_legend(draw, lines, legend, font, top + _GAP)
    stream = io.BytesIO()
    sheet.save(stream, format='JPEG', quality=82)
    return stream.getvalue()


def colours_of(palette: Palette | None, count: int) -> npt.NDArray[np.uint8]:
    """(count, 3) RGB: ``palette``, or hues spread evenly where there is none or it is too short."""
    if palette is not None and len(palette) >= count:
        return np.asarray(palette, np.uint8)[:count]
    hues = np.arange(count) * 0.61803398875 % 1 * 180
    values = 255 - 60 * (np.arange(count) % 3)
    hsv = np.stack([hues, np.full(count, 200), values], axis=1).astype(np.uint8)
    return np.asarray(cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0], np.uint8).reshape(count, 3)


def _places(shape: Sequence[int]) -> tuple[list[int], list[int]]:
    """Rows and columns of a map that a picture of it shows: at most 320 wide and 480 high."""
    height, width = shape
    scale = min(WIDTH / width, _TALLEST / height)
    small = (max(1, round(height * scale)), max(1, round(width * scale)))
    rows, columns = (
        ((np.arange(n) + 0.5) * full / n).astype(int).tolist() for n, full in zip(small, (height, width), strict=True)
    )
    return rows, columns


def _sampled(labels: Any, rows: list[int], columns: list[int]) -> npt.NDArray[Any]:
    small = labels[rows][:, columns]
    return np.asarray(small.cpu() if hasattr(small, 'cpu') else small).astype(np.int64)


def _picture(image: Any, size: tuple[int, int]) -> Pixels:
    step = max(1, image.shape[2] // (2 * size[0]))  # twice the size is enough to shrink smoothly
    pixels = image[:, ::step, ::step]
    pixels = np.asarray(pixels.cpu() if hasattr(pixels, 'cpu') else pixels).transpose(1, 2, 0)
    if pixels.shape[2] == 3 and pixels.dtype == np.uint8:
        pixels = pixels[..., ::-1]
    else:
        pixels = _stretched(np.repeat(pixels, 3, axis=2) if pixels.shape[2] < 3 else pixels[..., :3])
    return np.asarray(cv2.resize(np.ascontiguousarray(pixels), size, interpolation=cv2.INTER_AREA), np.uint8)


def _stretched(pixels: npt.NDArray[Any]) -> Pixels:
    """The first channels of an image of any type, from its darkest to its brightest percent."""
    values = np.nan_to_num(pixels[..., :3].astype(np.float32))
    low, high = np.percentile(values, (1, 99))
    return np.clip((values - low) * (255 / max(float(high - low), 1e-6)), 0, 255).astype(np.uint8)


def _triple(row: Row, palette: npt.NDArray[np.uint8]) -> list[Pixels]:
    return [
        _centred(row.image),
        *(_centred(tint(row.image, labels, palette)) for labels in (row.prediction, row.truth)),
    ]


def tint(image: Pixels, labels: npt.NDArray[Any], palette: npt.NDArray[np.uint8]) -> Pixels:
    """The image under the colours of its labels; labels without a colour are black."""
    known = (labels >= 0) & (labels < len(palette))
    colours = palette[np.where(known, labels, 0)]
    mixed = (0.3 * image + 0.7 * colours).astype(np.uint8)
    mixed[~known] = 0
    return mixed


def _centred(picture: Pixels) -> Pixels:
    space = WIDTH - picture.shape[1]
    return np.pad(picture, ((0, 0), (space // 2, space - space // 2), (0, 0)), constant_values=255)


def _legend(
    rows: Sequence[Row], classes: Sequence[str], palette: npt.NDArray[np.uint8]
) -> list[tuple[str, tuple[int, ...]]]:
    counts = np.zeros(len(classes), np.int64)
    ignored = False
    for labels in (part for row in rows for part in (row.prediction, row.truth)):
        known = labels[(labels >= 0) & (labels < len(classes))]
        counts += np.bincount(known.reshape(-1), minlength=len(classes))
        ignored = ignored or known.size < labels.size
    occurring = [index for index in np.argsort(-counts, kind='stable') if counts[index]]
    entries = [(classes[i], tuple(palette[i].tolist())) for i in occurring[:_MOST_IN_LEGEND]]
    if len(occurring) > _MOST_IN_LEGEND:
        entries.append((f'and {len(occurring) - _MOST_IN_LEGEND} more', (255, 255, 255)))
    return entries + ([('ignored', (0, 0, 0))] if ignored else [])


def _layout(names: Sequence[str], font: Any, width: int) -> list[list[tuple[int, int]]]:
    """Lines of (index, left edge) of the legend's entries."""
    lines: list[list[tuple[int, int]]] = [[]]
    left = _GAP
    for index, name in enumerate(names):
        need = round(font.getlength(_cut(name, font, 240))) + 34
        if left + need > width and lines[-1]:
            lines.append([])
            left = _GAP
        lines[-1].append((index, left))
        left += need
    return lines


def _draw_legend(draw: Any, lines: Any, legend: Any, font: Any, top: int) -> None:
    for number, line in enumerate(lines):
        y = top + number * _LINE
        for index, left in line:
            name, colour = legend[index]
            draw.rectangle((left + 4, y + 2, left + 16, y + 14), fill=colour, outline='#888')
            draw.text((left + 21, y + 1), _cut(name, font, 240), 'black', font)


def _cut(text: str, font: Any, width: int) -> str:
    """``text`` on one line of at most ``width`` pixels, its end replaced by an ellipsis where it must be."""
    text = ' '.join(text.split())
    while len(text) > 1 and font.getlength(text) > width - 4 * _GAP:
        text = text[: -2 - len(text) // 20] + '…'
    return text


def _font() -> Any:
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), 'fonts', 'ttf', 'DejaVuSans.ttf')), 12)

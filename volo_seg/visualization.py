"""Palettes, label overlays, and contact sheets with a legend. Imports no torch: every package may import it."""

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

ROW_SIZE = (320, 480)
"""Default largest width and height of one picture of a contact sheet, in pixels."""
SHEET_OPACITY = 0.7
_GAP, _BAND, _LINE = 4, 20, 18
_MAX_LEGEND_ENTRIES = 40
_MAX_ENTRY_WIDTH = 240

Pixels = npt.NDArray[np.uint8]
Palette = Sequence[Sequence[int]]


def default_palette(count: int, *, first: int = 0) -> Pixels:
    """The PASCAL VOC colours ``first`` to ``first + count - 1``: (count, 3) uint8, RGB. Colour 0 is black.

    The bits of each number are spread over the three channels, from the highest bit down.
    """
    number = np.arange(first, first + count)
    bits = number[:, None, None] >> (np.arange(8)[:, None] * 3 + np.arange(3)) & 1
    return np.asarray((bits << (7 - np.arange(8)[:, None])).sum(1), np.uint8)


def palette_array(palette: Any, count: int, *, first: int = 0) -> Pixels:
    """The first ``count`` colours of ``palette`` as (count, 3) uint8, RGB.

    :func:`default_palette` (from colour ``first``) if ``palette`` is not a list of RGB colours or is too short.
    """
    try:
        colours = np.asarray(palette, dtype=np.uint8)
    except (TypeError, ValueError, OverflowError):
        return default_palette(count, first=first)
    if colours.ndim != 2 or colours.shape[1] != 3 or len(colours) < count:
        return default_palette(count, first=first)
    return colours[:count]


def colourize(labels: npt.NDArray[Any], palette: Pixels) -> Pixels:
    """The colour of each label: (H, W) integers and a (C, 3) uint8 palette give (H, W, 3) uint8.

    Labels outside of [0, C) are black.
    """
    if labels.size == 0 or (labels.min() >= 0 and labels.max() < len(palette)):
        return palette.take(labels, axis=0)  # three times as fast as indexing
    known = (labels >= 0) & (labels < len(palette))
    colours = palette.take(np.where(known, labels, 0), axis=0)
    colours[~known] = 0
    return colours


def overlay(image: Pixels, labels: npt.NDArray[Any], palette: Pixels, *, opacity: float) -> Pixels:
    """The colours of the labels over the image, (H, W, 3) uint8.

    Args:
        image: (H, W, 3) uint8.
        labels: (H, W) integers. Pixels whose label is outside of [0, C) are black.
        palette: (C, 3) uint8, in the channel order of ``image``.
        opacity: Share of the colour in each pixel, in [0, 1].

    Raises:
        ValueError: ``opacity`` is outside of [0, 1].
    """
    if not 0.0 <= opacity <= 1.0:
        raise ValueError(f'opacity={opacity} is not in [0, 1]')
    mixed = np.asarray(cv2.addWeighted(colourize(labels, palette), opacity, image, 1.0 - opacity, 0.0), np.uint8)
    if labels.size and (labels.min() < 0 or labels.max() >= len(palette)):
        mixed[(labels < 0) | (labels >= len(palette))] = 0
    return mixed


@dataclass(frozen=True)
class SheetRow:
    """One image of a contact sheet, reduced in size, with one or more label maps.

    Attributes:
        name: Text above the pictures.
        image: (h, w, 3) uint8, RGB.
        labels: Label maps of shape (h, w).
        note: Text after the name.
    """

    name: str
    image: Pixels
    labels: tuple[npt.NDArray[Any], ...]
    note: str = ''


def make_row(
    name: str, *, image: Any, labels: Sequence[Any], note: str = '', size: tuple[int, int] = ROW_SIZE
) -> SheetRow:
    """Reduce an image and its label maps to at most ``size`` = (width, height); smaller ones are enlarged to fit.

    Args:
        name: Text above the pictures.
        image: (C, H, W), as the data pipeline gives it: BGR if it has three channels of uint8, else the first channels
            between their 1st and 99th percentile; None is drawn grey. It is resized to the size of the label maps.
        labels: Arrays or tensors (H, W) of one size, on any device.
        note: Text after the name.
        size: Largest width and height in pixels.
    """
    height, width = labels[0].shape[-2:]
    scale = min(size[0] / width, size[1] / height)
    rows, columns = (
        ((np.arange(n) + 0.5) * full / n).astype(int).tolist()
        for full in (height, width)
        for n in [max(1, round(full * scale))]
    )
    small = (len(columns), len(rows))
    picture = np.full((len(rows), len(columns), 3), 128, np.uint8) if image is None else _to_rgb(image, small)
    return SheetRow(name, picture, tuple(_to_numpy(part[rows][:, columns]).astype(np.int64) for part in labels), note)


def image_of_batch(data_batch: Any, index: int) -> Any:
    """Image ``index`` (C, H, W) of a batch as the data pipeline gave it, with TTA its first view, or None."""
    inputs = data_batch.get('inputs') if isinstance(data_batch, Mapping) else None
    if inputs is None or not len(inputs):
        return None
    views = isinstance(inputs[0], (list, tuple))
    if index >= len(inputs[0] if views else inputs):
        return None
    image = inputs[0][index] if views else inputs[index]
    return image if getattr(image, 'ndim', 0) == 3 else None


def draw_sheet(
    rows: Sequence[SheetRow],
    *,
    title: str,
    classes: Sequence[str],
    palette: Palette | None,
    columns: Sequence[str] = ('image', 'prediction', 'truth'),
    across: int = 1,
    format: str = 'JPEG',
) -> bytes:
    """Draw a contact sheet: each row as its image and one overlay per label map, and a legend below.

    Args:
        rows: What to draw, at least one row.
        title: Text at the top; may be empty.
        classes: Class names; the legend lists those that occur, most frequent first.
        palette: RGB colours of the classes; None gives the default palette. Other labels are black ("ignored").
        columns: Headings of the image and of each label map.
        across: How many rows stand side by side.
        format: Of the returned file: JPEG or PNG.

    Raises:
        ValueError: ``rows`` is empty.
    """
    if not rows:
        raise ValueError('a contact sheet needs at least one row')
    colours = palette_array(palette, len(classes), first=1)
    legend = _legend(rows, classes, colours)
    font = _font()
    cell = max(ROW_SIZE[0], *(row.image.shape[1] for row in rows))
    block = len(columns) * (cell + _GAP)
    width = across * block + _GAP
    lines = _layout_legend([name for name, _ in legend], font, width)
    groups = [rows[start : start + across] for start in range(0, len(rows), across)]
    heights = [_BAND + max(row.image.shape[0] for row in group) + _GAP for group in groups]
    top = 2 * _BAND if title else _BAND
    sheet = Image.new('RGB', (width, top + sum(heights) + _LINE * len(lines) + 2 * _GAP), 'white')
    draw = ImageDraw.Draw(sheet)
    draw.text((2 * _GAP, 4), _cut(title, font, width), 'black', font)
    for index, heading in enumerate([*columns] * min(across, len(rows))):
        draw.text((2 * _GAP + index * (cell + _GAP), top - _BAND + 3), heading, '#666', font)
    for group, height in zip(groups, heights, strict=True):
        for number, row in enumerate(group):
            left = number * block
            draw.text((left + 2 * _GAP, top + 3), _cut(f'{row.name}   {row.note}'.rstrip(), font, block), 'black', font)
            pictures = [row.image, *(overlay(row.image, part, colours, opacity=SHEET_OPACITY) for part in row.labels)]
            for index, picture in enumerate(pictures):
                x = left + _GAP + index * (cell + _GAP) + (cell - picture.shape[1]) // 2
                sheet.paste(Image.fromarray(picture), (x, top + _BAND))
        top += height
    for number, line in enumerate(lines):
        y = top + _GAP + number * _LINE
        for index, left in line:
            name, colour = legend[index]
            draw.rectangle((left + 4, y + 2, left + 16, y + 14), fill=colour, outline='#888')
            draw.text((left + 21, y + 1), _cut(name, font, _MAX_ENTRY_WIDTH), 'black', font)
    stream = io.BytesIO()
    sheet.save(stream, format=format, quality=82)
    return stream.getvalue()


def _to_numpy(values: Any) -> npt.NDArray[Any]:
    return np.asarray(values.cpu() if hasattr(values, 'cpu') else values)


def _to_rgb(image: Any, size: tuple[int, int]) -> Pixels:
    step = max(1, image.shape[2] // (2 * size[0]))  # twice the target size is enough to shrink smoothly
    pixels = _to_numpy(image[:, ::step, ::step]).transpose(1, 2, 0)
    if pixels.shape[2] == 3 and pixels.dtype == np.uint8:
        pixels = pixels[..., ::-1]
    else:
        pixels = np.repeat(pixels, 3, axis=2) if pixels.shape[2] < 3 else pixels
        values = np.nan_to_num(pixels[..., :3].astype(np.float32))
        low, high = np.percentile(values, (1, 99))
        pixels = np.clip((values - low) * (255 / max(float(high - low), 1e-6)), 0, 255).astype(np.uint8)
    return np.asarray(cv2.resize(np.ascontiguousarray(pixels), size, interpolation=cv2.INTER_AREA), np.uint8)


def _legend(rows: Sequence[SheetRow], classes: Sequence[str], palette: Pixels) -> list[tuple[str, tuple[int, ...]]]:
    """Name and colour of each class that occurs, most frequent first."""
    counts = np.zeros(len(classes), np.int64)
    ignored = False
    for labels in (part for row in rows for part in row.labels):
        known = labels[(labels >= 0) & (labels < len(classes))]
        counts += np.bincount(known.reshape(-1), minlength=len(classes))
        ignored = ignored or known.size < labels.size
    occurring = [index for index in np.argsort(-counts, kind='stable') if counts[index]]
    entries = [(classes[i], tuple(palette[i].tolist())) for i in occurring[:_MAX_LEGEND_ENTRIES]]
    if len(occurring) > _MAX_LEGEND_ENTRIES:
        entries.append((f'and {len(occurring) - _MAX_LEGEND_ENTRIES} more', (255, 255, 255)))
    return entries + ([('ignored', (0, 0, 0))] if ignored else [])


def _layout_legend(names: Sequence[str], font: Any, width: int) -> list[list[tuple[int, int]]]:
    """Lines of (index of the entry, its left edge in pixels)."""
    lines: list[list[tuple[int, int]]] = [[]]
    left = _GAP
    for index, name in enumerate(names):
        need = round(font.getlength(_cut(name, font, _MAX_ENTRY_WIDTH))) + 34
        if left + need > width and lines[-1]:
            lines.append([])
            left = _GAP
        lines[-1].append((index, left))
        left += need
    return lines


def _cut(text: str, font: Any, width: int) -> str:
    """``text`` in one line of at most ``width`` pixels, with an ellipsis where it is shortened."""
    text = ' '.join(text.split())
    while len(text) > 1 and font.getlength(text) > width - 4 * _GAP:
        text = text[: -2 - len(text) // 20] + '…'
    return text


def _font() -> Any:
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), 'fonts', 'ttf', 'DejaVuSans.ttf')), 12)

"""Pictures of a data set: augmented samples with their labels, and how often each class occurs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt

from volo_seg.datasets.frequencies import Frequencies
from volo_seg.datasets.splits import Split

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pixels = npt.NDArray[np.uint8]
DPI = 120
_SAMPLE_WIDTH, _SAMPLES_A_ROW = 640, 2  # pixels of image and overlay together
_MOST_IN_LEGEND = 40


def contact_sheet(samples: Sequence[dict[str, Any]], classes: Sequence[str], palette: Sequence[Sequence[int]]) -> bytes:
    """PNG bytes: each packed sample of a pipeline beside itself with its labels on top; ignored pixels are black.

    The classes that occur, most frequent first, are named below with their colours.
    """
    cells, names = [], []
    counts = np.zeros(256, np.int64)
    for sample in samples:
        image, labels = unpack_sample(sample)
        counts += np.bincount(labels.reshape(-1), minlength=256)
        cells.append(_fit(np.hstack([image, overlay(image, labels, palette)])))
        names.append(Path(sample['data_samples'].img_path).name)
    rows = -(-len(cells) // _SAMPLES_A_ROW)
    tallest = max(cell.shape[0] for cell in cells)
    width, height = 0.1 + _SAMPLES_A_ROW * _SAMPLE_WIDTH / DPI, 0.25 * rows + rows * tallest / DPI
    occurring = [label for label in np.argsort(-counts, kind='stable') if counts[label] and label < len(classes)]
    legend_rows = -(-(min(len(occurring), _MOST_IN_LEGEND) + 1) // 6)
    figure = _figure(width, height + 0.3 + 0.2 * legend_rows)
    for index, (cell, name) in enumerate(zip(cells, names, strict=True)):
        axes = figure.add_subplot(rows, _SAMPLES_A_ROW, index + 1)
        axes.imshow(cell)
        axes.set_title(name, fontsize=7, pad=2)
        axes.axis('off')
    _legend(figure, [(classes[label], palette[label]) for label in occurring])
    return _png(figure)


def frequency_plot(splits: Sequence[Split], counts: Sequence[Frequencies]) -> bytes:
    """PNG bytes: the share of pixels (logarithmic) and of images of each class, a bar a split; classes by frequency."""
    classes = splits[0].classes
    order = np.argsort(counts[0].pixels, kind='stable')
    figure = _figure(10, 1.4 + 0.24 * len(classes))
    left, right = figure.subplots(1, 2, sharey=True)
    positions, thickness = np.arange(len(order)), 0.8 / len(splits)
    for index, (split, count) in enumerate(zip(splits, counts, strict=True)):
        at = positions + 0.4 - thickness * (index + 0.5)
        left.barh(at, 100 * count.shares[order], thickness, label=split.name)
        total = max(1, len(split.pairing.pairs))
        right.barh(at, 100 * count.images[order] / total, thickness, label=split.name)
    left.set_xscale('log')
    left.xaxis.set_major_formatter('{x:g}')
    left.set_yticks(positions, [classes[label] for label in order], fontsize=8)
    left.set_ylim(-0.6, len(order) - 0.4)
    left.set_xlabel('percent of labelled pixels (logarithmic; no bar: never)')
    right.set_xlabel('percent of images')
    for axes in (left, right):
        axes.grid(axis='x', linewidth=0.4)
        axes.set_axisbelow(True)
    right.legend(loc='lower right', fontsize=8)
    return _png(figure)


def unpack_sample(sample: dict[str, Any]) -> tuple[Pixels, Pixels]:
    """Image (H, W, RGB) and labels (H, W) of a packed sample; labels of another size are fitted to the image."""
    image = np.ascontiguousarray(sample['inputs'].numpy().astype(np.uint8).transpose(1, 2, 0)[..., ::-1])
    packed = sample['data_samples']
    if 'gt_sem_seg' not in packed:
        return image, np.full(image.shape[:2], 255, np.uint8)
    labels = packed.gt_sem_seg.data[0].numpy().astype(np.uint8)
    return image, cv2.resize(labels, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)


def overlay(image: Pixels, labels: Pixels, palette: Sequence[Sequence[int]]) -> Pixels:
    """The image with each pixel tinted by the colour of its label; labels without colour are black."""
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(palette)] = palette
    mixed = (0.4 * image + 0.6 * colours[labels]).astype(np.uint8)
    mixed[labels >= len(palette)] = 0
    return mixed


def _fit(cell: Pixels) -> Pixels:
    scale = _SAMPLE_WIDTH / cell.shape[1]
    size = (_SAMPLE_WIDTH, max(1, round(cell.shape[0] * scale)))
    return cv2.resize(cell, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST).astype(np.uint8)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, min(height, 100)), dpi=DPI, layout='constrained')
    FigureCanvasAgg(figure)
    return figure


def _legend(figure: Figure, entries: Sequence[tuple[str, Sequence[int]]]) -> None:
    from matplotlib.patches import Patch

    patches = [
        Patch(facecolor='#{:02x}{:02x}{:02x}'.format(*colour), edgecolor='0.4', label=name)
        for name, colour in entries[:_MOST_IN_LEGEND]
    ]
    left = len(entries) - len(patches)
    patches.append(Patch(facecolor='black', label='ignored' + (f' ({left} more classes unnamed)' if left else '')))
    figure.legend(handles=patches, loc='outside lower center', ncols=6, fontsize=7, frameon=False)


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format='png')
    return stream.getvalue()

"""Draw a data set: augmented samples with their labels, and the frequencies of its classes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from volo_seg.datasets.inspection.frequencies import Frequencies
from volo_seg.datasets.inspection.splits import Split
from volo_seg.visualization import Palette, draw_sheet, make_row


def sample_sheet(samples: Sequence[dict[str, Any]], classes: Sequence[str], palette: Palette | None) -> bytes:
    """Draw a contact sheet (PNG) of the outputs of a pipeline: image and labels, two samples per row.

    Labels of another size are resized to the image. Ignored pixels and samples without labels are black.
    """
    rows = []
    for sample in samples:
        packed, image = sample['data_samples'], sample['inputs']
        image = image.byte() if len(image) == 3 else image
        labels = packed.gt_sem_seg.data[0] if 'gt_sem_seg' in packed else np.full(image.shape[1:], 255)
        rows.append(make_row(Path(packed.img_path).name, image=image, labels=(labels,)))
    columns = ('image', 'labels')
    return draw_sheet(rows, title='', classes=classes, palette=palette, columns=columns, across=2, format='PNG')


def frequency_plot(splits: Sequence[Split], counts: Sequence[Frequencies]) -> bytes:
    """Plot (PNG) the shares of pixels (logarithmic) and of images of each class, with a bar per split."""
    from matplotlib.figure import Figure

    classes = splits[0].classes
    order = np.argsort(counts[0].pixels, kind='stable')
    figure = Figure(figsize=(10, min(1.4 + 0.24 * len(classes), 100)), dpi=120, layout='constrained')
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
    left.set_xlabel('percent of labelled pixels (logarithmic; no bar: none)')
    right.set_xlabel('percent of images')
    for axes in (left, right):
        axes.grid(axis='x', linewidth=0.4)
        axes.set_axisbelow(True)
    right.legend(loc='lower right', fontsize=8)
    stream = io.BytesIO()
    figure.savefig(stream, format='png')
    return stream.getvalue()

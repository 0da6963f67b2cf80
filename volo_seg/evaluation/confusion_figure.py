"""Draw a confusion matrix of any number of classes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DPI = 150
_CLASS_INCHES, _MIN_INCHES, _MAX_INCHES = 0.42, 5.0, 20.0
_MAX_NUMBERED, _MAX_NAMED = 32, 180
_MAX_NAME_LENGTH = 28


def confusion_figure(matrix: npt.NDArray[Any], names: Sequence[str]) -> bytes:
    """Draw ``matrix`` as PNG, each row in percent of the pixels of its true class.

    Cells show numbers for up to 32 classes. Every row has a label for up to 180 classes, beyond that every second or
    third. The figure has at most 20 x 20 inches at 150 dpi.

    Args:
        matrix: Pixel counts (C, C), or (C, C + 1) with missed pixels in the last column.
        names: The classes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    matrix = matrix if matrix[:, len(names) :].any() else matrix[:, : len(names)]
    side = min(_MAX_INCHES, max(_MIN_INCHES, 2 + _CLASS_INCHES * len(names)))
    figure = Figure(figsize=(side, side), dpi=DPI, layout='constrained')
    FigureCanvasAgg(figure)
    _draw(figure.add_subplot(), row_percent(matrix), names, side)
    stream = io.BytesIO()
    figure.savefig(stream, format='png')
    return stream.getvalue()


def row_percent(matrix: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Each row in percent of its sum; NaN for a class that does not occur in the ground truth."""
    total = matrix.sum(1, keepdims=True).astype(np.float64)
    share = np.full(matrix.shape, np.nan)
    return np.divide(100.0 * matrix, total, out=share, where=total > 0)


def _draw(axes: Axes, percent: npt.NDArray[np.float64], names: Sequence[str], side: float) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import PowerNorm

    colors = colormaps['Blues'].with_extremes(bad='0.8')
    image = axes.imshow(percent, cmap=colors, norm=PowerNorm(0.5, vmin=0, vmax=100), interpolation='nearest')
    size, step = max(4.5, min(10.0, 50 * (side - 2) / len(names))), -(-len(names) // _MAX_NAMED)
    crowded = len(names) > _MAX_NUMBERED
    names = [name if len(name) <= _MAX_NAME_LENGTH else name[: _MAX_NAME_LENGTH - 1] + '…' for name in names]
    columns = [*names, 'missed'][: percent.shape[1]]
    axes.set_xticks(range(0, len(columns), step), columns[::step], rotation=90, fontsize=size)
    axes.set_yticks(range(0, len(names), step), names[::step], fontsize=size)
    axes.tick_params(
        length=1 if crowded else 3, pad=1, top=crowded, labeltop=crowded, right=crowded, labelright=crowded
    )
    axes.set_xlabel('prediction')
    axes.set_ylabel('ground truth')
    axes.figure.suptitle('percent of each true class (grey: absent)', fontsize=9)
    axes.figure.colorbar(image, ax=axes, shrink=0.6, pad=0.01, ticks=[0, 1, 5, 10, 25, 50, 75, 100])
    if crowded:
        axes.grid(color='0.85', linewidth=0.2)
    else:
        for (row, column), value in np.ndenumerate(percent):
            if value >= 0.5:
                color = 'white' if value > 35 else 'black'
                axes.text(column, row, f'{value:.0f}', ha='center', va='center', color=color, fontsize=size * 0.8)

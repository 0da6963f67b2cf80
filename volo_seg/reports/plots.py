"""Plots by matplotlib: curves of one or several runs as a file, curves and histograms as inline SVG."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np

from volo_seg.errors import UserError
from volo_seg.reports.runs import Run, run_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ('png', 'svg', 'pdf')
_COLOURS = ('#4269d0', '#efb118', '#ff725c', '#6cc5b0', '#3ca951', '#ff8ab7', '#a463f2', '#9c6b4e', '#9498a0')
_MAX_POINTS = 1000
# in an SVG for the page, these colours stand for the variables of its style sheet, which has a light and a dark set
_VARIABLES = {'#a0b0c1': '--soft', '#a0b0c2': '--rule', '#a0b0c3': '--series', '#a0b0c4': '--card'}
_SOFT, _RULE, _SERIES, _CARD = _VARIABLES
_STYLE = {
    'text.parse_math': False,  # a name may hold a dollar sign
    'svg.hashsalt': 'volo-seg',
    'axes.titlelocation': 'left',
    'axes.titlesize': 10,
    **dict.fromkeys(('axes.labelsize', 'xtick.labelsize', 'ytick.labelsize'), 8),
    **dict.fromkeys(('axes.spines.top', 'axes.spines.right'), False),
    'grid.linewidth': 0.5,
    'grid.alpha': 0.6,
    'lines.linewidth': 1.6,
}
_PAGE_STYLE = {
    'svg.fonttype': 'none',
    'figure.facecolor': 'none',
    **dict.fromkeys(('axes.spines.left', 'axes.spines.bottom', 'xtick.bottom', 'ytick.left'), False),
    **dict.fromkeys(('text.color', 'xtick.labelcolor', 'ytick.labelcolor'), _SOFT),
    **dict.fromkeys(('xtick.labelsize', 'ytick.labelsize'), 11),
    'grid.color': _RULE,
    'grid.linewidth': 1,
    'grid.alpha': 1,
    'lines.linewidth': 2,
}


def check_keys(runs: Sequence[Run], keys: Sequence[str]) -> None:
    """Check that each key was logged by at least one run.

    Raises:
        UserError: A key was not logged; the message lists those that were.
    """
    known = dict.fromkeys(key for run in runs for key in run.keys())  # noqa: SIM118
    for key in keys:
        if key not in known:
            raise UserError(f'--keys {key!r} was not logged; these were: {", ".join(known)}')


def draw_curves(runs: Sequence[Run], keys: Sequence[str], *, format: str = 'png') -> bytes:
    """A picture with one plot per key and all runs in each; noisy values are pale, their running mean is strong.

    Raises:
        UserError: No run has logged one of the keys.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    check_keys(runs, keys)
    columns = 1 if len(keys) == 1 else 2 if len(keys) in (2, 4) else 3
    lines = -(-len(keys) // columns)
    with _style({}, _COLOURS):
        figure = Figure(figsize=(max(7, 4.6 * columns), 0.5 + 3.4 * lines), dpi=130, layout='constrained')
        fields = figure.subplots(lines, columns, squeeze=False).reshape(-1)
        for axes, key in zip(fields, keys, strict=False):
            plot_curves(axes, runs, key)
            axes.set_title(key)
            axes.grid()
            axes.set_xlabel('iteration')
        for axes in fields[len(keys) :]:
            axes.set_axis_off()
        labels = run_labels(runs)
        if len(runs) > 1:
            handles = [Line2D([], [], color=f'C{index}') for index in range(len(runs))]
            columns = min(len(runs), 3)
            figure.legend(handles, labels, loc='outside lower center', ncols=columns, fontsize=8, frameon=False)
        else:
            figure.suptitle(labels[0], fontsize=10)
        return _save(figure, format)


def curve_svg(run: Run, key: str) -> str:
    """The curve of ``key`` as an SVG element."""
    return _page_svg(key, lambda axes: plot_curves(axes, [run], key))


def histogram_svg(values: Sequence[float], *, name: str) -> str:
    """A histogram of percentages, in 20 bins, as an SVG element."""

    def draw(axes: Axes) -> None:
        axes.hist(values, bins=20, range=(0, 100), rwidth=0.9, clip_on=False)
        axes.set_xlim(0, 100)
        _set_y_ticks(axes, 0, axes.get_ylim()[1] / 1.05, integer=True)

    return _page_svg(name, draw)


def plot_curves(axes: Axes, runs: Sequence[Run], key: str) -> None:
    """Plot ``key`` of each run over the iterations. Few points of a score are marked, many points are smoothed.

    A dashed line is the same score of training images.
    """
    from matplotlib.ticker import EngFormatter, MaxNLocator

    finite: list[float] = []
    last = 1.0
    for index, run in enumerate(runs):
        steps, values = run.curve(key)
        known = [value for value in values if math.isfinite(value)]
        if not known:  # the layout takes the extent of an empty line for the whole figure
            continue
        finite += known
        last = max([last, *steps])
        smoothed = smooth(values)
        shown = sorted({*range(0, len(values), -(-len(values) // _MAX_POINTS) or 1), *range(len(values))[-1:]})
        line: dict[str, Any] = dict(color=f'C{index}', clip_on=False)
        if smoothed != values:
            axes.plot([steps[i] for i in shown], [values[i] for i in shown], linewidth=0.7, alpha=0.35, **line)
        if len(steps) <= 30 and key not in ('lr', 'base_lr', 'loss'):
            line |= dict(marker='o', markersize=6, markeredgewidth=1.6, markerfacecolor=axes.get_facecolor())
        axes.plot([steps[i] for i in shown], [smoothed[i] for i in shown], **line)
        steps, values = run.curve(f'train_{key}')
        if any(map(math.isfinite, values)):
            finite += filter(math.isfinite, values)
            axes.plot(steps, values, color=f'C{index}', clip_on=False, linestyle='--')
    axes.set_xlim(0, last)
    _set_y_ticks(axes, min([0.0, *finite]), max([0.0, *finite]))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=''))


def _set_y_ticks(axes: Axes, low: float, high: float, *, integer: bool = False) -> None:
    """Round ticks from at or below ``low`` to at or above ``high``, which are the limits of the axis, too."""
    from matplotlib.ticker import MaxNLocator

    locator = MaxNLocator(4, integer=integer, min_n_ticks=1, steps=(1, 2, 2.5, 5, 10))
    ticks = locator.tick_values(low, high if high > low else low + 1)
    axes.set_yticks(ticks)
    axes.set_ylim(ticks[0], ticks[-1])
    axes.yaxis.set_major_formatter('{x:.4g}')


def smooth(values: Sequence[float]) -> list[float]:
    """Running means over a fiftieth of the values; values that are not finite are left out of the means."""
    half = len(values) // 100
    if half == 0:
        return list(values)
    array = np.asarray(values, float)
    known = np.isfinite(array)
    window = np.ones(2 * half + 1)
    counts = np.convolve(known, window, 'same')
    sums = np.convolve(np.where(known, array, 0), window, 'same')
    return np.where(counts > 0, sums / np.maximum(counts, 1), math.nan).tolist()


def _page_svg(name: str, draw: Any) -> str:
    from matplotlib.figure import Figure

    with _style(_PAGE_STYLE, (_SERIES,)):
        figure = Figure(figsize=(380 / 72, 220 / 72), layout='constrained')
        axes = figure.subplots()
        axes.set_facecolor(_CARD)
        axes.grid(axis='y', clip_on=False)
        axes.set_axisbelow(True)
        draw(axes)
        axes.patch.set_visible(False)
        svg = _save(figure, 'svg').decode()
    # the head and a style element that would apply to the whole page end with the first definitions
    svg = svg[svg.index('</defs>') + len('</defs>') : svg.rindex('</svg>')]
    svg = re.sub(r'<g id="[^"]*"', '<g', svg)
    svg = re.sub(r'<g/>|font-family: [^;"]*; | transform="rotate\(-0[^"]*"', '', svg)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf'\g<1>{name}-', svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f'var({variable})')
    return f'<svg viewBox="0 0 380 220" role="img" aria-label="{name}">{svg}</svg>'


def _style(style: dict[str, Any], colours: Sequence[str]) -> AbstractContextManager[None]:
    """Matplotlib's defaults, whatever the user's matplotlibrc says, with ``style`` on top."""
    import matplotlib.style
    from cycler import cycler

    context: Any = matplotlib.style.context(['default', _STYLE, style, {'axes.prop_cycle': cycler(color=colours)}])
    return context


def _save(figure: Figure, format: str) -> bytes:
    """The figure as a file that is the same each time."""
    empty = {'png': {}, 'svg': dict.fromkeys(('Date', 'Creator', 'Format', 'Type')), 'pdf': {'CreationDate': None}}
    stream = io.BytesIO()
    figure.savefig(stream, format=format, metadata=empty[format])
    return stream.getvalue()

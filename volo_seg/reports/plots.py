"""Curves of one or several runs, by matplotlib."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from volo_seg.errors import UserError
from volo_seg.reports.runs import Run, labels_of, smooth

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = ('png', 'svg', 'pdf')
COLOURS = ('#4269d0', '#efb118', '#ff725c', '#6cc5b0', '#3ca951', '#ff8ab7', '#a463f2', '#97bbf5', '#9c6b4e', '#9498a0')
DPI = 130


def draw_curves(runs: Sequence[Run], keys: Sequence[str], *, format: str = 'png') -> bytes:
    """A picture with one field a key, all runs in it; raw values faint, their running mean strong.

    Raises:
        UserError: no run has logged one of the keys; those that there are are named.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    check_keys(runs, keys)
    columns = 1 if len(keys) == 1 else 2 if len(keys) in (2, 4) else 3
    lines = -(-len(keys) // columns)
    figure = Figure(figsize=(max(7, 4.6 * columns), 0.5 + 3.4 * lines), dpi=DPI, layout='constrained')
    FigureCanvasAgg(figure)
    fields = figure.subplots(lines, columns, squeeze=False).reshape(-1)
    labels = labels_of(runs)
    for axes, key in zip(fields, keys, strict=False):
        _draw(axes, runs, key)
    for axes in fields[len(keys) :]:
        axes.set_axis_off()
    handles = [axes_line for axes_line in fields[0].get_lines() if not axes_line.get_label().startswith('_')]
    if len(runs) > 1 and handles:
        figure.legend(handles, labels, loc='outside lower center', ncols=min(len(runs), 3), fontsize=8, frameon=False)
    else:
        figure.suptitle(labels[0].replace('$', r'\$'), fontsize=10)
    stream = io.BytesIO()
    figure.savefig(stream, format=format)
    return stream.getvalue()


def check_keys(runs: Sequence[Run], keys: Sequence[str]) -> None:
    """Check that each key was logged by at least one run.

    Raises:
        UserError: one was not.
    """
    known = dict.fromkeys(key for run in runs for key in run.keys())  # noqa: SIM118
    for key in keys:
        if key not in known:
            raise UserError(f'--keys {key!r} was not logged; these were: {", ".join(known)}')


def _draw(axes: Axes, runs: Sequence[Run], key: str) -> None:
    for index, run in enumerate(runs):
        steps, values = run.curve(key)
        colour = COLOURS[index % len(COLOURS)]
        smoothed = smooth(values)
        if smoothed != values:
            axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.3, label='_raw')
        few = len(steps) <= 30 and key not in ('lr', 'base_lr', 'loss')
        label = f'run {index}'
        axes.plot(
            steps, smoothed, color=colour, linewidth=1.6, marker='o' if few else None, markersize=3.5, label=label
        )
    axes.set_title(key, fontsize=10, loc='left')
    axes.set_xlabel('iteration', fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(linewidth=0.4, alpha=0.6)
    axes.spines[['top', 'right']].set_visible(False)
    drawn = [value for run in runs for value in run.curve(key)[1] if math.isfinite(value)]
    if drawn and min(drawn) >= 0:
        axes.set_ylim(bottom=0)

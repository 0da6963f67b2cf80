"""Charts as inline SVG, coloured by the page's own variables, so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from volo_seg.reports.runs import smooth

_WIDTH, _HEIGHT = 380, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 14, 12, 26
_MOST_POINTS = 600


def line_chart(
    title: str, steps: Sequence[float], values: Sequence[float], *, told: str = '', dots: bool = False
) -> str:
    """A curve over iterations, ``told`` beside its title; with ``dots`` each point is marked and tells its value."""
    points = [(x, y) for x, y in zip(steps, values, strict=True) if math.isfinite(y)]
    if not points:
        return ''
    highest, lowest = max(y for _, y in points), min(0.0, min(y for _, y in points))
    ticks = nice_ticks(lowest, highest if highest > lowest else lowest + 1)
    last = max(max(steps), 1.0)
    frame = _Frame(last, ticks[0], max(ticks[-1], highest))
    parts = [_axes(frame, ticks, last)]
    smoothed = smooth(values)
    if smoothed != list(values):
        parts.append(f'<path class="raw" d="{_path(frame, steps, values)}"/>')
    parts.append(f'<path class="line" d="{_path(frame, steps, smoothed)}"/>')
    if dots:
        parts += [
            f'<circle class="dot" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3.5">'
            f'<title>{y:.2f} at iteration {x:.0f}</title></circle>'
            for x, y in points
        ]
    name = escape(title)
    return (
        f'<figure class="chart"><figcaption>{name}<b>{escape(told)}</b></figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{name} over iterations">'
        f'{"".join(parts)}</svg></figure>'
    )


def histogram(title: str, values: Sequence[float], *, bins: int = 20) -> str:
    """How many of ``values`` (percent) lie in each of ``bins`` equal parts of 0 to 100."""
    counts = [0] * bins
    for value in values:
        counts[min(bins - 1, max(0, int(value * bins / 100)))] += 1
    ticks = [tick for tick in nice_ticks(0, max(counts, default=1)) if tick == int(tick)]
    frame = _Frame(100, 0, max(ticks[-1], max(counts)))
    parts = [_axes(frame, ticks, 100)]
    for index, count in enumerate(counts):
        left, right = frame.x(100 * index / bins), frame.x(100 * (index + 1) / bins)
        top = frame.y(count)
        if count:
            parts.append(
                f'<rect class="column" x="{left + 1:.1f}" y="{top:.1f}" width="{right - left - 2:.1f}" '
                f'height="{frame.y(0) - top:.1f}"><title>{count} image(s) at {100 * index / bins:.0f} to '
                f'{100 * (index + 1) / bins:.0f}</title></rect>'
            )
    name = escape(title)
    return (
        f'<figure class="chart small"><figcaption>{name}<b>{len(values)} images</b></figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{name}">{"".join(parts)}</svg></figure>'
    )


def confusion_chart(names: Sequence[str], matrix: Sequence[Sequence[int]]) -> str:
    """Each true class's row in percent of its pixels, the stronger the more; numbers from half a percent on."""
    side, label = 26, 7 * max(min(len(name), 16) for name in names) + 8
    size = side * len(names)
    parts = []
    for row, counts in enumerate(matrix):
        total = sum(counts)
        y = label + row * side
        parts.append(f'<text x="{label - 6}" y="{y + 17}" text-anchor="end">{_name(names[row])}</text>')
        parts.append(
            f'<text transform="translate({label + row * side + 17} {label - 6}) rotate(-90)">{_name(names[row])}</text>'
        )
        for column, pixels in enumerate(counts):
            share = pixels / total if total else 0.0
            x = label + column * side
            told = f'{escape(names[row])} taken for {escape(names[column])}: {100 * share:.1f} % ({pixels} pixels)'
            kind = 'none' if not total else 'right' if row == column else 'wrong'
            parts.append(
                f'<rect class="{kind}" x="{x}" y="{y}" width="{side - 1}" height="{side - 1}" '
                f'fill-opacity="{math.sqrt(share) if total else 1:.2f}"><title>{told}</title></rect>'
            )
            if share >= 0.005:
                strong = ' class="on"' if share > 0.3 else ''
                parts.append(
                    f'<text{strong} x="{x + side / 2 - 0.5}" y="{y + 17}" text-anchor="middle">{100 * share:.0f}</text>'
                )
    whole = label + size
    return (
        f'<div class="scroll"><svg class="confusion" viewBox="0 0 {whole} {whole}" '
        f'style="min-width:{whole * 0.75:.0f}px;max-width:{whole}px" role="img" aria-label="confusion matrix">'
        f'{"".join(parts)}</svg></div>'
    )


def nice_ticks(low: float, high: float, *, about: int = 4) -> list[float]:
    """Round numbers from at or below ``low`` to at or above ``high``."""
    raw = max((high - low) / about, 1e-12)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def short(value: float) -> str:
    """A number in few signs: ``12.3``, ``0.0012``, ``1.2e-05``."""
    if value == 0 or 1e-4 <= abs(value) < 1e5:
        return f'{value:.4g}'
    return f'{value:.1e}'


class _Frame:
    """From values to places in the picture."""

    def __init__(self, last: float, low: float, high: float) -> None:
        self._last, self._low, self._span = last, low, max(high - low, 1e-12)

    def x(self, step: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * step / self._last

    def y(self, value: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (value - self._low) / self._span


def _axes(frame: _Frame, ticks: Sequence[float], last: float) -> str:
    parts = []
    for tick in ticks:
        y = frame.y(tick)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{short(tick)}</text>')
    for tick in nice_ticks(0, last):
        if tick <= last * 1.0001:
            x = frame.x(tick)
            parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - 8}" text-anchor="middle">{_thousands(tick)}</text>')
    return ''.join(parts)


def _path(frame: _Frame, steps: Sequence[float], values: Sequence[float]) -> str:
    stride = -(-len(steps) // _MOST_POINTS)
    words, pen = [], 'M'
    for index in [*range(0, len(steps), stride), *([len(steps) - 1] if (len(steps) - 1) % stride else [])]:
        if math.isfinite(values[index]):
            words.append(f'{pen}{frame.x(steps[index]):.1f} {frame.y(values[index]):.1f}')
            pen = 'L'
        else:
            pen = 'M'
    return ''.join(words)


def _thousands(value: float) -> str:
    return f'{value / 1000:g}k' if value >= 10000 else f'{value:g}'


def _name(name: str) -> str:
    return escape(name if len(name) <= 16 else name[:15] + '…')

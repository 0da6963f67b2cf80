"""What the console says about a run, as words: durations, rates, one line an interval."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

BLOCKS = '▁▂▃▄▅▆▇█'
_RECENT = 50


@dataclass
class Pace:
    """Steps done out of ``total``, and how fast the last ones were."""

    total: int
    done: int = 0
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))

    def step(self, seconds: float, *, count: int = 1) -> None:
        """Count ``count`` more steps that took ``seconds`` together."""
        self.done += count
        self.seconds.append(seconds / count)

    @property
    def step_time(self) -> float | None:
        """Mean seconds of a recent step; the first, which warms up, counts only while it is alone."""
        recent = list(self.seconds)
        recent = recent[1:] if 1 < len(recent) < _RECENT else recent
        return sum(recent) / len(recent) if recent else None

    @property
    def left(self) -> float | None:
        """Seconds to the end at the present pace."""
        return None if self.step_time is None else self.step_time * max(0, self.total - self.done)


@dataclass
class Score:
    """A score in percent, and the iteration that reached it (none: not known)."""

    name: str
    value: float
    iteration: int | None

    def __str__(self) -> str:
        return f'{self.value:.2f}' + ('' if self.iteration is None else f' at {self.iteration}')


@dataclass
class Status:
    """What the view shows: training, the validation under way (if any), the last and the best score."""

    train: Pace
    evaluation: Pace | None = None
    stage: str = 'training'
    values: dict[str, float] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    memory: str = ''
    last: Score | None = None
    best: Score | None = None
    extra_seconds: float = 0.0
    """Time that validations to come will take."""

    @property
    def left(self) -> str:
        """Time left, validations included."""
        seconds = self.train.left
        return '' if not seconds else f'{duration(seconds + self.extra_seconds)} left'

    def scores(self) -> str:
        """The last score and the best one, in brackets."""
        if self.last is None:
            return ''
        text = f'{self.last.name} {self.last.value:.2f}'
        return text if self.best is None else f'{text} (best {self.best})'


def duration(seconds: float) -> str:
    """Two units at most: ``42 s``, ``3 min 05 s``, ``2 h 10 min``, ``1 d 3 h``."""
    whole = max(0, round(seconds))
    for unit, size, smaller, part in (('d', 86400, 'h', 3600), ('h', 3600, 'min', 60), ('min', 60, 's', 1)):
        if whole >= size:
            return f'{whole // size} {unit} {whole % size // part:02d} {smaller}'
    return f'{whole} s'


def rate(step_time: float | None, unit: str) -> str:
    """``2.1 it/s``, or ``3.4 s/it`` where one takes longer than a second; nothing while it is unknown."""
    if step_time is None:
        return ''
    if step_time > 1:
        return f'{step_time:.1f} s/{unit}'
    return f'{1 / max(step_time, 1e-6):.1f} {unit if unit == "it" else unit + "s"}/s'


def number(value: float) -> str:
    """A loss in four digits, also where it is no number."""
    return f'{value:.4f}' if math.isfinite(value) and abs(value) < 1e4 else f'{value:.3g}'


def loss_words(values: dict[str, float], *, most: int = 4) -> list[str]:
    """The parts of the loss, named; the sum itself is not among them."""
    parts = [name for name in values if 'loss' in name and name != 'loss']
    return [f'{name} {number(values[name])}' for name in parts[:most]]


def plain_line(status: Status) -> str:
    """One line about training, for a pipe."""
    values, train = status.values, status.train
    words = [f'{train.done}/{train.total}']
    if 'loss' in values:
        parts = loss_words(values)
        words.append(f'loss {number(values["loss"])}' + (f' ({", ".join(parts)})' if len(parts) > 1 else ''))
    if 'lr' in values:
        words.append(f'lr {values["lr"]:.2e}')
    words += [rate(train.step_time, 'it'), status.left, status.memory, status.scores()]
    return '  '.join(word for word in words if word)


def evaluation_line(status: Status) -> str:
    """One line about a validation or test under way, for a pipe."""
    pace = status.evaluation or Pace(0)
    left = '' if pace.left is None else f'{duration(pace.left)} left'
    words = [f'{status.stage} {pace.done}/{pace.total} images', rate(pace.step_time, 'image'), left]
    return '  '.join(word for word in words if word)


def sparkline(values: Sequence[float], width: int) -> str:
    """The last values as blocks of eight heights, at most ``width``; what is no number is a blank."""
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2:
        return ''
    groups = _grouped(list(values), width)
    known = [group for group in groups if math.isfinite(group)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    step = (high - low) / (len(BLOCKS) - 1) or 1.0
    return ''.join(BLOCKS[round((group - low) / step)] if math.isfinite(group) else ' ' for group in groups)


def _grouped(values: list[float], width: int) -> list[float]:
    """Means of neighbours, so that at most ``width`` remain."""
    if len(values) <= width:
        return values
    edges = [round(index * len(values) / width) for index in range(width + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in zip(edges, edges[1:], strict=False)]

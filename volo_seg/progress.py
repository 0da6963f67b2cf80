"""Progress of a long run: a rich bar in a terminal, plain lines at intervals elsewhere; rates and durations as text."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

_RECENT = 50


@dataclass
class Pace:
    """Finished steps out of ``total``, and the durations in seconds of the last 50."""

    total: int
    done: int = 0
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))

    def step(self, seconds: float, *, count: int = 1) -> None:
        """Count ``count`` more steps that took ``seconds`` together."""
        self.done += count
        self.seconds.append(seconds / count)

    @property
    def step_time(self) -> float | None:
        """Mean seconds of a recent step; the first one, a warm-up, counts only while there is no other."""
        recent = list(self.seconds)
        recent = recent[1:] if 1 < len(recent) < _RECENT else recent
        return sum(recent) / len(recent) if recent else None

    @property
    def left(self) -> float | None:
        """Seconds until the last step at the recent rate."""
        return None if self.step_time is None else self.step_time * max(0, self.total - self.done)


def duration(seconds: float) -> str:
    """Format a duration in at most two units: ``42 s``, ``3 min 05 s``, ``2 h 10 min``, ``1 d 03 h``."""
    whole = max(0, round(seconds))
    for unit, size, smaller, part in (('d', 86400, 'h', 3600), ('h', 3600, 'min', 60), ('min', 60, 's', 1)):
        if whole >= size:
            return f'{whole // size} {unit} {whole % size // part:02d} {smaller}'
    return f'{whole} s'


def rate(step_time: float | None, unit: str) -> str:
    """Format seconds a step as ``2.1 images/s``, above one second as ``3.4 s/image``; empty for None."""
    if step_time is None:
        return ''
    if step_time > 1:
        return f'{step_time:.1f} s/{unit.removesuffix("s")}'
    return f'{1 / max(step_time, 1e-6):.1f} {unit}/s'


def rich_bar(console: Any, *, auto_refresh: bool = True) -> Any:
    """Return a ``rich.progress.Progress``: description, bar and the field ``text`` of a task in one row.

    The bar takes the width of the terminal that the texts leave.
    """
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Column

    text = Column(no_wrap=True, overflow='ellipsis')
    return Progress(
        TextColumn('{task.description}', style='bold', markup=False, table_column=text),
        BarColumn(None, table_column=Column(ratio=1)),
        TextColumn('{task.fields[text]}', markup=False, table_column=text),
        console=console,
        auto_refresh=auto_refresh,
        expand=True,
    )


class Progress:
    """Counts finished units, and shows the rate and the time left on stderr.

    Args:
        total: Number of units.
        unit: Name of the units, in the plural.
        every: Seconds between plain lines.
        shown: False counts without output.
        clock: Returns seconds.
    """

    def __init__(
        self,
        total: int,
        *,
        unit: str = 'images',
        every: float = 10.0,
        shown: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.unit, self.every, self.clock = total, unit, every, clock
        self.done = 0
        self.start = self.last = clock()
        self.shown = shown
        self.bar: Any = None
        if shown and sys.stderr.isatty():
            from rich.console import Console

            self.bar = rich_bar(Console(stderr=True))

    def advance(self, count: int = 1) -> None:
        """Count ``count`` more units."""
        self.update(self.done + count, self.total)

    def update(self, done: int, total: int) -> None:
        """Set the number of finished units and of all units."""
        self.done, self.total = done, total
        now = self.clock()
        due = self.shown and now - self.last >= self.every
        if self.bar is None and not due:
            return
        step_time = (now - self.start) / done if done else None
        left = '' if step_time is None else f'{duration(max(0, total - done) * step_time)} left'
        words = [word for word in (f'{done}/{total} {self.unit}', rate(step_time, self.unit), left) if word]
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=done, total=max(total, done), text='   '.join(words))
        else:
            self.last = now
            print(', '.join(words), file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        self.start = self.last = self.clock()
        if self.bar is not None:
            self.bar.start()
            self.bar.add_task('', total=self.total, text='')
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.stop()

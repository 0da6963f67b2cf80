"""Progress of a long run on stderr: a bar in a terminal, a plain line at intervals elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any


class Progress:
    """Counts finished units, and shows the rate and the time left.

    Args:
        total: Number of units.
        unit: Name of the units.
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
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            rate = TextColumn('{task.fields[rate]} ' + unit + '/s')
            columns = (BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn(), TextColumn('left'))
            self.bar = RichProgress(*columns, console=Console(stderr=True))

    def advance(self, count: int = 1) -> None:
        """Count ``count`` more units."""
        self.update(self.done + count, self.total)

    def update(self, done: int, total: int) -> None:
        """Set the number of finished units and of all units."""
        self.done, self.total = done, total
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=done, total=max(total, done), rate=f'{self.rate:.3g}')
        elif self.shown and self.clock() - self.last >= self.every:
            self.last = self.clock()
            seconds = round(max(0, total - done) / self.rate) if done else 0
            left = f'{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}'
            line = f'{done}/{total} {self.unit}, {self.rate:.3g} {self.unit}/s, {left} left'
            print(line, file=sys.stderr, flush=True)

    @property
    def rate(self) -> float:
        """Units per second."""
        return self.done / max(self.clock() - self.start, 1e-9)

    def __enter__(self) -> Progress:
        self.start = self.last = self.clock()
        if self.bar is not None:
            self.bar.start()
            self.bar.add_task('', total=self.total, rate='-')
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.stop()

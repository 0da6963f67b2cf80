"""How far a long run is: a bar in a terminal, a plain line now and then elsewhere; both on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any


class Progress:
    """Counts what is done, and shows the rate and the time left.

    Args:
        total: How much there is to do.
        unit: What is counted.
        every: Seconds between plain lines.
        shown: False counts in silence.
        clock: Seconds.
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
        self.bar: Any = _bar(unit) if shown and sys.stderr.isatty() else None

    def advance(self, count: int = 1) -> None:
        """``count`` more are done."""
        self.done += count
        if self.bar is not None:
            total = max(self.total, self.done)
            self.bar.update(self.bar.task_ids[0], completed=self.done, total=total, rate=f'{self.rate:.3g}')
        elif self.shown and self.clock() - self.last >= self.every:
            self.last = self.clock()
            print(self.line(), file=sys.stderr, flush=True)

    @property
    def rate(self) -> float:
        """Units a second."""
        return self.done / max(self.clock() - self.start, 1e-9)

    def line(self) -> str:
        """The state in one line."""
        seconds = round(max(0, self.total - self.done) / self.rate) if self.done else 0
        left = f'{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}'
        return f'{self.done}/{self.total} {self.unit}, {self.rate:.3g} {self.unit}/s, {left} left'

    def __enter__(self) -> Progress:
        self.start = self.last = self.clock()
        if self.bar is not None:
            self.bar.start()
            self.bar.add_task('', total=self.total, rate='-')
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.stop()


def _bar(unit: str) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    rate = TextColumn('{task.fields[rate]} ' + unit + '/s')
    columns = (BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn(), TextColumn('left'))
    return Progress(*columns, console=Console(stderr=True))

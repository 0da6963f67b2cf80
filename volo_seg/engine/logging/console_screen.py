"""Where the view goes: a region of a terminal that is drawn again and again, or plain lines."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from volo_seg.engine.logging.console_text import (
    Status,
    duration,
    evaluation_line,
    loss_words,
    number,
    plain_line,
    rate,
    sparkline,
)

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.live import Live

_LABEL = 12


class Screen(Protocol):
    """A place for a view and for lines of log beside it."""

    animated: bool

    def line(self, text: str, *, style: str = '') -> None:
        """Print one message, which stays."""

    def show(self, status: Status) -> None:
        """Show how far the run is."""

    def close(self) -> None:
        """Leave the terminal as it was; may be called twice."""


def open_screen(*, plain: bool) -> Screen:
    """A live view on a terminal that can show one, else (or with ``plain``) one line an interval."""
    if plain or not sys.stdout.isatty() or os.environ.get('TERM', '') in ('dumb', 'unknown'):
        return PlainScreen()
    return LiveScreen()


class PlainScreen:
    """Lines without escape codes."""

    animated = False

    def line(self, text: str, *, style: str = '') -> None:
        """Print ``text``; what the locale cannot write is replaced, and a reader that has gone is not missed."""
        encoding = getattr(sys.stdout, 'encoding', None) or 'utf-8'
        with suppress(OSError):
            print(text.encode(encoding, 'replace').decode(encoding), flush=True)

    def show(self, status: Status) -> None:
        """Print how far training or the evaluation is."""
        self.line(plain_line(status) if status.evaluation is None else evaluation_line(status))

    def close(self) -> None:
        """Nothing to undo."""


class LiveScreen:
    """A few lines at the bottom of the terminal; messages scroll by above them.

    There is no thread that redraws: processes are forked for data loading at any time, and one that inherits a held
    lock would hang. The cursor stays visible, so that a killed run leaves nothing behind.
    """

    animated = True

    def __init__(self, console: Console | None = None) -> None:
        from rich.console import Console

        self.console = console or Console(highlight=False)
        self._live: Live | None = None

    def line(self, text: str, *, style: str = '') -> None:
        """Print ``text`` above the view."""
        from rich.text import Text

        with suppress(OSError):
            self.console.print(Text.from_ansi(text, style=style), soft_wrap=True)

    def show(self, status: Status) -> None:
        """Draw the view again, at the width that the terminal has now."""
        from rich.live import Live

        with suppress(OSError):  # the terminal may be gone while the training goes on
            if self._live is None:
                self._live = Live(console=self.console, auto_refresh=False, vertical_overflow='crop')
                self._live.start()
                self.console.show_cursor(True)
            self._live.update(View(status), refresh=True)

    def close(self) -> None:
        """Let the last view stand and give the terminal back."""
        live, self._live = self._live, None
        if live is not None:
            with suppress(OSError):
                live.stop()


class View:
    """Three lines: progress, loss, score; laid out when drawn, each cut at the edge of a narrow terminal."""

    def __init__(self, status: Status) -> None:
        self.status = status

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Lay the lines out for the width that the terminal has now."""
        status, width = self.status, options.max_width
        yield _progress(status, width)
        if status.values:
            yield _words('loss', _loss_line(status, width))
        if status.last is not None:
            best = '' if status.best is None else f'best {status.best}'
            yield _words(status.last.name, [str(status.last), best])


def _progress(status: Status, width: int) -> RenderableType:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    pace = status.train if status.evaluation is None else status.evaluation
    if status.evaluation is None:
        words = [f'{pace.done}/{pace.total}', rate(pace.step_time, 'it'), status.left]
    else:
        left = '' if pace.left is None else f'{duration(pace.left)} left'
        words = [f'{pace.done}/{pace.total} images', rate(pace.step_time, 'image'), left]
    numbers = '   '.join(word for word in words if word)
    room = max(6, min(40, width - _LABEL - len(numbers) - 3))
    row = Table.grid(padding=(0, 1))
    for size in (_LABEL - 1, room, None):
        row.add_column(width=size, no_wrap=True, overflow='ellipsis')
    bar = ProgressBar(total=max(1, pace.total), completed=pace.done, width=room)
    row.add_row(Text(status.stage, style='bold'), bar, Text(numbers))
    return row


def _loss_line(status: Status, width: int) -> list[str]:
    values = status.values
    words = []
    if 'loss' in values:
        blocks = sparkline(status.losses, 16 if width < 100 else 30)
        words.append(f'{number(values["loss"])} {blocks}'.rstrip())
    if 'lr' in values:
        words.append(f'lr {values["lr"]:.2e}')
    parts = loss_words(values)
    return [*words, status.memory, *(parts if len(parts) > 1 else [])]


def _words(label: str, words: list[str]) -> RenderableType:
    from rich.text import Text

    row = Text(no_wrap=True, overflow='ellipsis')
    row.append(label[: _LABEL - 1].ljust(_LABEL), style='bold')
    row.append('   '.join(word for word in words if word))
    return row

"""The console of a run: progress, losses and scores, as a live view in a terminal and as plain lines elsewhere."""

from __future__ import annotations

import logging
import math
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

import torch
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import Hook, LoggerHook
from mmengine.runner import BaseLoop, IterBasedTrainLoop
from mmseg.registry import HOOKS
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from volo_seg.progress import Pace, duration, rate, rich_bar

STAGES = {'train': 'training', 'val': 'validation', 'test': 'test'}
REDRAW_SECONDS, LINE_SECONDS = 0.2, 30.0
"""Seconds between two updates of the live view, and between two plain lines about a validation or test."""
ROUTINE = re.compile(
    '"FileClient" will be deprecated|"HardDiskBackend" is the alias|Advance dataloader|Checkpoints will be saved to|'
    r'Config:|Distributed training is not used|Exp name:|Hooks will be executed|Iter\(|Epoch\(|Loads checkpoint by|'
    'Reach the end of the dataloader|Please make sure that the mlflow server|The previous best checkpoint|'
    'paramwise_options'
)
"""First words of MMEngine's routine messages, which go to the log file only."""


class Screen(logging.Handler):
    """Prints log messages on stdout, above a live view if ``console`` is given.

    It leaves out routine messages of MMEngine, and messages of several lines below WARNING unless ``tables``. A stdout
    that was closed is ignored. No thread redraws the view: a data-loading process that is forked while that thread
    holds a lock would hang. The cursor stays visible, so that a killed process leaves the terminal usable.
    """

    def __init__(self, console: Console | None = None, *, tables: bool = False) -> None:
        super().__init__()
        self.console, self.tables = console, tables
        self.live: Live | None = None

    @property
    def stream(self) -> TextIO:
        """The stream of the messages; MMEngine's MLflow backend reads it."""
        return sys.stdout

    def accepts(self, record: logging.LogRecord) -> bool:
        """Return whether ``record`` is printed."""
        message = record.getMessage().strip()
        short = bool(message) and (self.tables or '\n' not in message) and 'System environment:' not in message[:200]
        return not ROUTINE.match(message) and (record.levelno >= logging.WARNING or short)

    def emit(self, record: logging.LogRecord) -> None:
        """Print ``record`` without date and logger name; warnings and errors begin with their level."""
        try:
            level = f'{record.levelname.lower()}: ' if record.levelno >= logging.WARNING else ''
            if self.accepts(record):
                self.line(level + self.format(record), style='red' if level == 'error: ' else 'yellow' if level else '')
        except Exception:  # as in logging.StreamHandler: an error while logging does not end the run
            self.handleError(record)

    def line(self, text: str, *, style: str = '') -> None:
        """Print ``text``; characters that the locale cannot encode are replaced."""
        with suppress(OSError):
            if self.console is not None:
                self.console.print(Text.from_ansi(text, style=style), soft_wrap=True)
            else:
                encoding = getattr(sys.stdout, 'encoding', None) or 'utf-8'
                print(text.encode(encoding, 'replace').decode(encoding), flush=True)

    def update(self, view: Group) -> None:
        """Replace the live view by ``view``."""
        with suppress(OSError):
            if self.live is None:
                self.live = Live(console=self.console, auto_refresh=False, vertical_overflow='crop')
                self.live.start()
                self.live.console.show_cursor(True)
            self.live.update(view, refresh=True)

    def close(self) -> None:
        """Restore stdout; the last view stays. May be called more than once."""
        live, self.live = self.live, None
        if live is not None:
            with suppress(OSError):
                live.stop()
        super().close()


def log_to_screen(logger: logging.Logger, screen: Screen) -> None:
    """Replace the stdout handler of ``logger`` by ``screen``; file handlers stay as they are."""
    for index, handler in enumerate(logger.handlers):
        if type(handler) is logging.StreamHandler or isinstance(handler, Screen):
            screen.setLevel(handler.level)
            screen.filters = handler.filters
            logger.handlers[index] = screen


@HOOKS.register_module()
class ConsoleHook(Hook):
    """Shows iteration, losses, learning rate, speed, time left, memory, last and best score.

    The main process shows them; the log file and ``scalars.json`` are unchanged.

    Args:
        plain: Print plain lines in a terminal, too.
        interval: Iterations between two plain lines; None takes the interval of the ``LoggerHook``.
        tables: Also print log messages of several lines, such as tables of scores.
        metric: Name of the score; the first one of an evaluation that lacks it.
    """

    priority = 'LOW'

    def __init__(
        self, *, plain: bool = False, interval: int | None = None, tables: bool = False, metric: str = 'mIoU'
    ) -> None:
        self.plain, self.interval, self.tables, self.metric = plain, interval, tables, metric
        self.screen: Screen | None = None
        self.train, self.evaluation, self.stage = Pace(0), Pace(0), 'train'
        self.values: dict[str, float] = {}
        self.last: tuple[str, float] | None = None
        self.training_score: float | None = None  # of the training images that TrainingScoreHook scores
        self.best: tuple[str, float, str] | None = None  # name, value, ' at <iteration>' if known
        self.memory = ''
        self.validation_seconds, self.validations_left = 0.0, 0  # seconds of one validation
        self._live = False
        self._clock = self._shown = self._began = 0.0

    def before_run(self, runner: Any) -> None:
        """Open the screen and print the log's messages on it."""
        if is_main_process():
            capable = os.environ.get('TERM', '') not in ('dumb', 'unknown')
            self._live = capable and sys.stdout.isatty() and not self.plain
            self.screen = Screen(Console(highlight=False) if self._live else None, tables=self.tables)
            log_to_screen(runner.logger, self.screen)
            if self.interval is None:
                self.interval = next((hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)), 50)

    def after_run(self, runner: Any) -> None:
        """Restore the terminal; may be called more than once."""
        if self.screen is not None:
            self.screen.close()

    def before_train(self, runner: Any) -> None:
        """Start counting, in a resumed run at the iteration and best score of the checkpoint."""
        self.train = Pace(runner.max_iters, done=runner.iter)
        best = runner.message_hub.runtime_info.get('best_score')
        if isinstance(best, (int, float)) and math.isfinite(best):
            self.best = self.metric, float(best), ''
        self._clock = time.perf_counter()
        if self._live:
            self.show()

    def _before_epoch(self, runner: Any, mode: str = 'train') -> None:
        """Start counting the images of a validation or test."""
        if mode != 'train':
            loader = runner.val_dataloader if mode == 'val' else runner.test_dataloader
            self.stage, self.evaluation = mode, Pace(len(loader.dataset))
            self._began = self._clock = self._shown = time.perf_counter()
            if self._live:
                self.show()

    def _after_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None, mode: str = 'train'
    ) -> None:
        """Count an iteration, or the images of a batch; update the view or print a line if one is due."""
        now = time.perf_counter()
        pace = self.train if mode == 'train' else self.evaluation
        count = 1 if mode == 'train' else (1 if outputs is None else len(outputs)) * get_world_size()
        pace.step(now - self._clock, count=max(1, min(count, pace.total - pace.done)))
        self._clock = now
        if self._live or mode != 'train':
            due = now - self._shown >= (REDRAW_SECONDS if self._live else LINE_SECONDS)
        else:
            due = pace.done % (self.interval or 50) == 0
        if self.screen is not None and (due or (mode == 'train' and pace.done == pace.total)):
            if mode == 'train':
                self._read_values(runner)
            self.show()

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Print the duration and the scores of a validation in one line, of a test the duration."""
        metrics, iteration = metrics or {}, runner.iter if isinstance(runner._train_loop, BaseLoop) else None
        stage, total, self.stage = self.stage, self.evaluation.total, 'train'
        self._clock = time.perf_counter()
        self.validation_seconds = self._clock - self._began
        name = self.metric if self.metric in metrics else next(iter(metrics), None)
        if name is not None:
            self.last = name, float(metrics[name])
            trained = runner.message_hub.log_scalars.get(f'val/train_{name}')
            self.training_score = None if trained is None else float(trained.current())
            if self.best is None or self.best[0] != name or self.last[1] > self.best[1]:
                self.best = *self.last, '' if iteration is None else f' at {iteration}'
        if self.screen is None:
            return
        speed = rate(self.validation_seconds / max(1, total), 'images')
        words = ['' if iteration is None else f'{iteration}/{self.train.total}']
        words.append(f'{STAGES[stage]}: {total} images in {duration(self.validation_seconds)} ({speed})')
        if stage == 'test':
            self.screen.close()
        else:
            words += [self.score_text(), *(f'{key} {metrics[key]:.2f}' for key in ('mAcc', 'aAcc') if key in metrics)]
        self.screen.line('  '.join(filter(None, words)))
        if self._live and stage != 'test':
            self.show()

    after_test_epoch = after_val_epoch

    def _read_values(self, runner: Any) -> None:
        """Read learning rate, losses (means of up to 10 iterations), memory, and how many validations are left."""
        self.values = {}
        for key, buffer in runner.message_hub.log_scalars.items():
            name = key.removeprefix('train/')
            if name != key and ('loss' in name or name == 'lr'):
                self.values[name] = float(buffer.mean(1 if name == 'lr' else 10))
        self.memory = peak_memory()
        if isinstance(runner.train_loop, IterBasedTrainLoop):
            every = max(1, int(runner.train_loop.val_interval))
            self.validations_left = max(0, self.train.total // every - self.train.done // every)

    def show(self) -> None:
        """Update the live view, or print one plain line."""
        self._shown = time.perf_counter()
        if self.screen is not None and self.screen.console is not None:
            self.screen.update(self.view())
        elif self.screen is not None:
            self.screen.line(self.line())

    def view(self) -> Group:
        """Return the live view: a progress bar, the losses and the scores."""
        bar = rich_bar(None, auto_refresh=False)
        pace = self.train if self.stage == 'train' else self.evaluation
        bar.add_task(STAGES[self.stage], total=pace.total, completed=pace.done, text='   '.join(self.speed_words()))
        losses = '   '.join(filter(None, [*self.loss_words(), self.memory])) if self.values else ''
        return Group(bar, *(Text(text) for text in (losses, self.score_text()) if text))

    def line(self) -> str:
        """Return the current state as one line of text."""
        done, *speed = self.speed_words()
        if self.stage != 'train':
            return '  '.join([f'{STAGES[self.stage]} {done}', *speed])
        return '  '.join(filter(None, [done, *self.loss_words(), *speed, self.memory, self.score_text()]))

    def speed_words(self) -> list[str]:
        """Return steps done, speed and time left of the current stage; training includes the validations to come."""
        if self.stage != 'train':
            pace, done, unit, more = self.evaluation, ' images', 'images', 0.0
        else:
            pace, done, unit, more = self.train, '', 'it', self.validation_seconds * self.validations_left
        left = f'{duration(pace.left + more)} left' if pace.left else ''
        return [word for word in (f'{pace.done}/{pace.total}{done}', rate(pace.step_time, unit), left) if word]

    def loss_words(self) -> list[str]:
        """Return the loss with up to four of its parts, and the learning rate."""
        values, words = self.values, []
        parts = [f'{name} {number(values[name])}' for name in values if 'loss' in name and name != 'loss'][:4]
        if 'loss' in values:
            words.append(f'loss {number(values["loss"])}' + (f' ({", ".join(parts)})' if len(parts) > 1 else ''))
        if 'lr' in values:
            words.append(f'lr {values["lr"]:.2e}')
        return words

    def score_text(self) -> str:
        """Return the last score, and in brackets the best one and that of training images."""
        last, best = self.last, self.best
        if last is None or best is None:
            return ''
        trained = '' if self.training_score is None else f', {self.training_score:.2f} on training images'
        return f'{last[0]} {last[1]:.2f} (best {best[1]:.2f}{best[2]}{trained})'


def number(value: float) -> str:
    """Format a loss with four decimals; large, infinite and NaN values in short form."""
    return f'{value:.4f}' if math.isfinite(value) and abs(value) < 1e4 else f'{value:.3g}'


def peak_memory() -> str:
    """Format the peak memory so far in GiB: of the GPU if there is one, else of this process."""
    if torch.cuda.is_available():
        return f'GPU memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB'
    try:
        import resource
    except ImportError:  # Windows
        return ''
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f'memory {peak / (2**30 if sys.platform == "darwin" else 2**20):.1f} GiB'


@contextmanager
def console_of(runner: Any) -> Iterator[None]:
    """Restore the terminal at the end of the block, also after an error or an interrupt."""
    try:
        yield
    finally:
        for hook in runner.hooks:
            if isinstance(hook, ConsoleHook):
                hook.after_run(runner)

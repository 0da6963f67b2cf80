"""``ConsoleHook``: how far a run is, how fast, how well; live on a terminal, one line an interval in a pipe."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import Hook, LoggerHook
from mmengine.runner import IterBasedTrainLoop
from mmseg.registry import HOOKS

from volo_seg.engine.logging.console_log import HOOK, take_over, wants_console
from volo_seg.engine.logging.console_screen import PlainScreen, Screen, open_screen
from volo_seg.engine.logging.console_text import Pace, Score, Status, duration, rate
from volo_seg.errors import UserError

_REDRAW = 0.2
"""Seconds between two drawings of the live view."""
_LINES_APART = 30.0
"""Seconds between two lines about an evaluation in a pipe."""
_MOST_LOSSES = 2000


@HOOKS.register_module(name=HOOK)
class ConsoleHook(Hook):
    """Shows iteration, losses, learning rate, pace, time left, memory, last and best score, and evaluations.

    Only the main process shows anything. The text log and ``scalars.json`` are not touched.

    Args:
        plain: lines even on a terminal.
        interval: iterations between two plain lines; none: that of the LoggerHook.
        tables: let tables of scores through to the console (for a test).
        metric: the score that is shown; the first one where it is missing.
    """

    priority = 'LOW'

    def __init__(
        self, *, plain: bool = False, interval: int | None = None, tables: bool = False, metric: str = 'mIoU'
    ) -> None:
        self.plain, self.interval, self.tables, self.metric = plain, interval, tables, metric
        self.screen: Screen | None = None
        self.status = Status(Pace(0))
        self._clock = self._drawn = self._began = 0.0
        self._evaluation_seconds: float | None = None

    def before_run(self, runner: Any) -> None:
        """Open the screen and send the log's messages there."""
        if not is_main_process():
            return
        self.screen = open_screen(plain=self.plain)
        take_over(runner.logger, self.screen, tables=self.tables)
        if self.interval is None:
            found = [hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)]
            self.interval = found[0] if found else 50

    def after_run(self, runner: Any) -> None:
        """Give the terminal back."""
        self.close()

    def close(self) -> None:
        """Give the terminal back; may be called at any time, more than once."""
        if self.screen is not None:
            self.screen.close()

    def before_train(self, runner: Any) -> None:
        """Begin to count, after a resume from where the checkpoint stands."""
        self.status.train = Pace(runner.max_iters, done=runner.iter)
        self.status.best = _resumed_best(runner, self.metric)
        self._clock = time.perf_counter()
        if self.screen is not None and self.screen.animated:
            self._show()

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Count one iteration, and show it if it is time to."""
        now = time.perf_counter()
        self.status.train.step(now - self._clock)
        self._clock = now
        if self.screen is None:
            return
        self._remember(runner)
        done, last = self.status.train.done, self.status.train.done == self.status.train.total
        if self.screen.animated:
            if last or now - self._drawn >= _REDRAW:
                self._show()
        elif last or done % (self.interval or 50) == 0:
            self._refresh_values(runner)
            self._show()

    def before_val_epoch(self, runner: Any) -> None:
        """Begin a validation."""
        self._begin(runner.val_dataloader, 'validation')

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Count a batch of a validation."""
        self._advance(outputs)

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """End a validation: its scores stay on the console as one line."""
        self._end(metrics or {}, _iteration(runner))

    def before_test_epoch(self, runner: Any) -> None:
        """Begin a test."""
        self._begin(runner.test_dataloader, 'test')

    def after_test_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Count a batch of a test."""
        self._advance(outputs)

    def after_test_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """End a test."""
        self._end(metrics or {}, None)

    def _begin(self, loader: Any, stage: str) -> None:
        self.status.evaluation, self.status.stage = Pace(len(loader.dataset)), stage
        self._began = self._clock = self._drawn = time.perf_counter()
        if self.screen is not None and self.screen.animated:
            self._show()

    def _advance(self, outputs: Sequence[Any] | None) -> None:
        now, pace = time.perf_counter(), self.status.evaluation
        count = (len(outputs) if outputs is not None else 1) * get_world_size()
        if pace is None:
            return
        pace.step(now - self._clock, count=max(1, min(count, pace.total - pace.done)))
        self._clock = now
        apart = _REDRAW if self.screen is not None and self.screen.animated else _LINES_APART
        if self.screen is not None and now - self._drawn >= apart:
            self._show()

    def _end(self, metrics: dict[str, float], iteration: int | None) -> None:
        stage, pace, status = self.status.stage, self.status.evaluation, self.status
        spent = time.perf_counter() - self._began
        status.evaluation, status.stage, self._evaluation_seconds = None, 'training', spent
        self._clock = time.perf_counter()
        name = self.metric if self.metric in metrics else next(iter(metrics), None)
        if name is not None:
            status.last = Score(name, float(metrics[name]), iteration)
            if status.best is None or status.best.name != name or status.last.value > status.best.value:
                status.best = status.last
        if self.screen is None or pace is None:
            return
        if self.screen.animated and stage == 'test':
            self.screen.close()
        scores = [status.scores(), *(f'{key} {metrics[key]:.2f}' for key in ('mAcc', 'aAcc') if key in metrics)]
        speed = rate(spent / max(1, pace.total), 'image')
        begin = stage if iteration is None else f'{iteration}/{status.train.total}  {stage}'
        words = [f'{begin}: {pace.total} images in {duration(spent)} ({speed})', *(scores if stage != 'test' else [])]
        self.screen.line('  '.join(word for word in words if word))

    def _remember(self, runner: Any) -> None:
        """Keep the curve of the loss for the view; MMEngine has brought it to the CPU already."""
        loss = runner.message_hub.log_scalars.get('train/loss')
        if loss is not None:
            self.status.losses.append(float(loss.current()))
            del self.status.losses[: -_MOST_LOSSES or None]
        if self.screen is not None and self.screen.animated:
            self._refresh_values(runner)

    def _refresh_values(self, runner: Any) -> None:
        values = {}
        for key, buffer in runner.message_hub.log_scalars.items():
            name = key.removeprefix('train/')
            if name != key and ('loss' in name or name == 'lr'):
                values[name] = float(buffer.current() if name == 'lr' else buffer.mean(min(10, len(buffer.data[0]))))
        self.status.values = values
        self.status.memory = peak_memory()
        self.status.extra_seconds = self._to_come(runner)

    def _to_come(self, runner: Any) -> float:
        """Seconds that the validations to come will take, by the last one."""
        if not self._evaluation_seconds or not isinstance(runner.train_loop, IterBasedTrainLoop):
            return 0.0
        every, train = max(1, int(runner.train_loop.val_interval)), self.status.train
        return self._evaluation_seconds * max(0, train.total // every - train.done // every)

    def _show(self) -> None:
        self._drawn = time.perf_counter()
        if self.screen is not None:
            self.screen.show(self.status)


def show_on_console(config: Config, *, how: str | None, tables: bool = False) -> None:
    """Apply ``--console`` to ``config``: live or plain sets the hook, mmengine removes it, None keeps what is there.

    With ``tables``, a hook that is there or is set lets tables of scores through.

    Raises:
        UserError: ``custom_hooks`` is not a list.
    """
    present = config.get('custom_hooks') or []
    if not isinstance(present, (list, tuple)):
        raise UserError(f'custom_hooks={present!r} is not a list of hooks; write custom_hooks=[dict(type=…)]')
    hooks = [hook for hook in present if not (isinstance(hook, dict) and hook.get('type') == HOOK)]
    found = next((hook for hook in present if hook not in hooks), None)
    if how == 'mmengine' or (how is None and found is None):
        changed = hooks
    else:
        settings = {} if how is None else {'plain': how == 'plain'}
        changed = [*hooks, {**(found or {'type': HOOK}), **settings, **({'tables': True} if tables else {})}]
    if changed != present:
        config.custom_hooks = changed


def quiet(logger: Any, config: Config) -> None:
    """Where ``config`` has the hook, keep MMEngine's listings off the console from the first message on."""
    if wants_console(config) and is_main_process():
        take_over(logger, PlainScreen(), tables=True)


@contextmanager
def console_of(runner: Any) -> Iterator[None]:
    """Give the terminal back when ``runner`` is done, also after an error or an interrupt."""
    try:
        yield
    finally:
        for hook in runner.hooks:
            if isinstance(hook, ConsoleHook):
                hook.close()


def peak_memory() -> str:
    """Most memory that was in use so far: of the GPU, else of this process; empty where it cannot be told."""
    if torch.cuda.is_available():
        return f'GPU memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB'
    try:
        import resource
    except ImportError:  # Windows
        return ''
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f'memory {peak / (2**30 if sys.platform == "darwin" else 2**20):.1f} GiB'


def _iteration(runner: Any) -> int | None:
    """Iterations done so far; none where nothing is trained."""
    loop = runner._train_loop
    return None if loop is None or isinstance(loop, dict) else int(runner.iter)


def _resumed_best(runner: Any, metric: str) -> Score | None:
    value = runner.message_hub.runtime_info.get('best_score')
    known = isinstance(value, (int, float)) and math.isfinite(value)
    return Score(metric, float(value), None) if known else None

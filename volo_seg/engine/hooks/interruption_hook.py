"""Ctrl-C and SIGTERM save a checkpoint and end training after the current iteration."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import EMAHook, Hook
from mmengine.registry import FUNCTIONS
from mmseg.registry import HOOKS

from volo_seg.engine.sharding import scatter
from volo_seg.errors import Interrupted

_REPEATED_WITHIN = 2.0
"""Seconds within which another signal counts as the same one: launchers send signals repeatedly."""
_WORKER_SECONDS = 20
"""Seconds that data-loading processes live after a SIGTERM, so that the current iteration can finish."""


@HOOKS.register_module()
class InterruptionHook(Hook):
    """Ends training after the current iteration, with a checkpoint, on Ctrl-C or SIGTERM; at once on a second signal.

    All processes of a job stop after the same iteration: after each iteration they exchange the received signal.
    """

    priority = 'LOWEST'

    def __init__(self) -> None:
        self._process = os.getpid()
        self._received: int | None = None
        self._when = 0.0
        self._handlers: dict[int, Any] = {}
        self._group: Any = None
        self._equal_batches = True

    def before_train(self, runner: Any) -> None:
        """Install the signal handlers."""
        if get_world_size() > 1:
            backend = torch.distributed.get_backend()
            self._group = None if backend == 'gloo' else torch.distributed.new_group(backend='gloo')
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            self._handlers[number] = signal.signal(number, self._listen)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Stop if a process received a signal; ``runner.iter`` is the index of the finished iteration here."""
        number = self._exchange(max)
        if number:
            self._stop(runner, number, step=runner.iter + 1)

    def before_val(self, runner: Any) -> None:
        """Check whether all processes have the same number of batches; otherwise validation cannot exchange signals."""
        if self._handlers:
            length = len(runner.val_loop.dataloader)
            self._equal_batches = self._exchange(max, length) == self._exchange(min, length)

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Stop during a validation if a process received a signal; the resumed run validates again."""
        if not self._handlers or not self._equal_batches:
            return
        number = self._exchange(max)
        if number:
            scatter(runner.model)
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):  # validation runs on the averaged weights
                    hook._swap_ema_parameters()
            self._stop(runner, number, step=runner.iter)

    def close(self) -> None:
        """Restore the previous signal handlers."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _listen(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # in a data-loading process right after the fork
            return
        now = time.monotonic()
        if self._received is not None and now - self._when > _REPEATED_WITHIN:
            self.close()
            raise Interrupted('stopped immediately', number)
        if self._received is None:
            self._received, self._when = number, now
            if get_rank() == 0:
                print('\nstopping after this iteration, with a checkpoint (Ctrl-C again: immediately)', flush=True)

    def _exchange(self, reduce: Any, value: int | None = None) -> int:
        """Return the maximum or minimum of ``value`` over the processes; default value: the received signal, or 0."""
        mine = (self._received or 0) if value is None else value
        if get_world_size() == 1:
            return mine
        operator = torch.distributed.ReduceOp.MAX if reduce is max else torch.distributed.ReduceOp.MIN
        cell = torch.tensor([mine])
        torch.distributed.all_reduce(cell, operator, group=self._group)
        return int(cell)

    def _stop(self, runner: Any, number: int, *, step: int) -> None:
        name = signal.Signals(number).name
        stopped = f'{name}: training stopped after iteration {step}'
        if not runner.save_now(step):
            raise Interrupted(f'{stopped}; resume from the last checkpoint with --resume', number)
        raise Interrupted(f'{stopped}, which is saved; resume with --resume', number)


@FUNCTIONS.register_module()
def ignore_signals_in_worker(worker: int) -> None:
    """Make a data-loading process ignore Ctrl-C, and exit 20 seconds after a SIGTERM. For ``worker_init_fn``.

    Both signals reach all processes of a job, and the run needs its workers to finish the current iteration. The data
    loader ends them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(_WORKER_SECONDS))
    signal.signal(signal.SIGALRM, lambda number, frame: os._exit(0))


def end_data_loading(loops: Sequence[Any]) -> None:
    """End the data-loading processes of ``loops``, which :func:`ignore_signals_in_worker` keeps alive for a while."""
    for loop in loops:
        loader: Any = getattr(loop, 'dataloader', None)
        endless: Any = getattr(loop, 'dataloader_iterator', None)
        for holder in (loader, endless):
            iterator: Any = getattr(holder, '_iterator', None)
            if hasattr(iterator, '_shutdown_workers'):
                iterator._shutdown_workers()
        if getattr(loader, '_iterator', None) is not None:
            loader._iterator = None

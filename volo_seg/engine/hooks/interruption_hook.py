"""Ctrl-C and SIGTERM end training after the iteration in hand, with a checkpoint to go on from."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import EMAHook, Hook

from volo_seg.engine.sharding import scatter
from volo_seg.errors import Interrupted

_PATIENCE = 2.0
"""Seconds after which another signal is meant to stop at once; launchers repeat the first one."""
_RESPITE = 20
"""Seconds that data-loading processes live on after a SIGTERM, so that the iteration in hand ends."""


class InterruptionHook(Hook):
    """Save and stop when a signal asks for it; a second Ctrl-C stops at once.

    With several processes, all stop after the same iteration: whether one of them was asked is exchanged in each.
    """

    priority = 'LOWEST'

    def __init__(self) -> None:
        self._process = os.getpid()
        self._asked: int | None = None
        self._when = 0.0
        self._before: dict[int, Any] = {}
        self._group: Any = None
        self._even = True

    def before_train(self, runner: Any) -> None:
        """Listen from now on."""
        if get_world_size() > 1:
            backend = torch.distributed.get_backend()
            self._group = None if backend == 'gloo' else torch.distributed.new_group(backend='gloo')
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._listen)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Stop here if asked; runner.iter still is that of the iteration just done."""
        asked = self._exchange(max)
        if asked:
            self._stop(runner, asked, step=runner.iter + 1)

    def before_val(self, runner: Any) -> None:
        """See whether all processes have as many batches, so that they can ask each other during validation."""
        if self._before:
            length = len(runner.val_loop.dataloader)
            self._even = self._exchange(max, length) == self._exchange(min, length)

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Stop in the middle of a validation if asked; it is made up for when training goes on."""
        if not self._before or not self._even:
            return
        asked = self._exchange(max)
        if asked:
            scatter(runner.model)
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):  # validation runs on the averaged weights
                    hook._swap_ema_parameters()
            self._stop(runner, asked, step=runner.iter)

    def close(self) -> None:
        """Give the signals back to whom they belonged."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _listen(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a data-loading process that has only just begun
            return
        now = time.monotonic()
        if self._asked is not None and now - self._when > _PATIENCE:
            self.close()
            raise Interrupted('stopped at once', number)
        if self._asked is None:
            self._asked, self._when = number, now
            if get_rank() == 0:
                print('\nstopping after this iteration, with a checkpoint (Ctrl-C again: at once)', flush=True)

    def _exchange(self, reduce: Any, value: int | None = None) -> int:
        """The largest or smallest ``value`` of all processes; by default the signal that one was sent, or 0."""
        mine = (self._asked or 0) if value is None else value
        if get_world_size() == 1:
            return mine
        operator = torch.distributed.ReduceOp.MAX if reduce is max else torch.distributed.ReduceOp.MIN
        cell = torch.tensor([mine])
        torch.distributed.all_reduce(cell, operator, group=self._group)
        return int(cell)

    def _stop(self, runner: Any, number: int, *, step: int) -> None:
        name = signal.Signals(number).name
        place = f'{name}: training stopped after iteration {step}'
        if not runner.save_now(step):
            raise Interrupted(f'{place}; go on from the last checkpoint with --resume', number)
        raise Interrupted(f'{place}, which is saved; go on with --resume', number)


class OutliveSignals:
    """Start a data-loading process so that signals leave it alone: its loader ends it.

    Ctrl-C and a cluster's SIGTERM reach every process of a job; without its helpers a run could not save and stop.

    Args:
        inner: What is done first.
    """

    def __init__(self, inner: Callable[[int], None] | None) -> None:
        self.inner = inner

    def __call__(self, worker: int) -> None:
        """Begin as data-loading process number ``worker``."""
        if self.inner is not None:
            self.inner(worker)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(_RESPITE))
        signal.signal(signal.SIGALRM, lambda number, frame: os._exit(0))


def end_data_loading(loops: Sequence[Any]) -> None:
    """End the data-loading processes of ``loops``, which would outlive their :class:`DataLoader` by a respite."""
    for loop in loops:
        loader: Any = getattr(loop, 'dataloader', None)
        endless: Any = getattr(loop, 'dataloader_iterator', None)
        for holder in (loader, endless):
            iterator: Any = getattr(holder, '_iterator', None)
            if hasattr(iterator, '_shutdown_workers'):
                iterator._shutdown_workers()
        if getattr(loader, '_iterator', None) is not None:
            loader._iterator = None

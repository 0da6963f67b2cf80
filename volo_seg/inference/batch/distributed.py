"""Prediction in several processes: each segments every ``world_size``-th file; torchrun's report to each other."""

from __future__ import annotations

import contextlib
import datetime
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from volo_seg.errors import UserError


@dataclass(frozen=True)
class Report:
    """What one process did.

    Attributes:
        done: Files that it read.
        skipped: Files that were finished before.
        failures: Reasons by the files that could not be segmented.
        seconds: Duration.
    """

    done: int
    skipped: int
    failures: dict[str, str]
    seconds: float


def rank_and_world_size() -> tuple[int, int]:
    """``RANK`` and ``WORLD_SIZE`` from the environment; 0 and 1 if they are not set.

    Raises:
        UserError: They are not numbers, or the rank is not below the world size.
    """
    rank, world_size = os.environ.get('RANK', '0'), os.environ.get('WORLD_SIZE', '1')
    if not (rank.isdecimal() and world_size.isdecimal() and int(rank) < int(world_size)):
        raise UserError(f'RANK={rank} and WORLD_SIZE={world_size} in the environment do not fit; set RANK below it')
    return int(rank), int(world_size)


def is_torchrun() -> bool:
    """Whether torchrun started this process, together with others that it can reach."""
    return 'TORCHELASTIC_RUN_ID' in os.environ and rank_and_world_size()[1] > 1


def device_of_rank(device: str) -> str:
    """``device``; for ``'auto'`` the GPU with the local rank of this process, if there is a GPU."""
    local_rank = os.environ.get('LOCAL_RANK', '')
    if device != 'auto' or not local_rank.isdecimal():
        return device
    import torch

    return f'cuda:{int(local_rank) % torch.cuda.device_count()}' if torch.cuda.is_available() else device


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Connect the processes of torchrun; without torchrun, do nothing. Waits until all processes have come here."""
    if not is_torchrun():
        yield
        return
    dist = _distributed()
    dist.init_process_group('gloo', timeout=datetime.timedelta(days=7))
    try:
        yield
    finally:
        dist.destroy_process_group()


def gather_reports(report: Report) -> list[Report]:
    """The reports of all processes by rank, once all have finished; without torchrun only the own one."""
    if not is_torchrun():
        return [report]
    reports: list[Any] = [None] * rank_and_world_size()[1]
    wait_for_all()
    _distributed().all_gather_object(reports, report)
    return reports


def wait_for_all() -> None:
    """Wait for the other processes of torchrun, which ends all of them when one exits with an error status."""
    if is_torchrun():
        work = _distributed().barrier(async_op=True)
        while not work.is_completed():  # waiting inside torch would delay signals
            time.sleep(0.05)


def _distributed() -> Any:
    import torch.distributed

    return torch.distributed

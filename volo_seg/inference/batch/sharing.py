"""Work shared by processes that ``torchrun`` started, without a process group: each takes every n-th file."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from volo_seg.errors import UserError

T = TypeVar('T')


@dataclass(frozen=True)
class Share:
    """Number of this process, from 0, and how many there are."""

    rank: int = 0
    processes: int = 1

    def of(self, items: Sequence[T]) -> list[T]:
        """The items that this process takes."""
        return list(items[self.rank :: self.processes])


def this_share() -> Share:
    """What ``RANK`` and ``WORLD_SIZE`` of the environment say.

    Raises:
        UserError: They are no numbers that fit together.
    """
    rank, processes = os.environ.get('RANK', '0'), os.environ.get('WORLD_SIZE', '1')
    if not (rank.isdecimal() and processes.isdecimal() and int(rank) < int(processes)):
        raise UserError(f'RANK={rank} and WORLD_SIZE={processes} in the environment do not fit; RANK counts from 0')
    return Share(int(rank), int(processes))


def device_of_this_process(device: str) -> str:
    """``device``, but for ``'auto'`` the GPU of this process's own number on its machine."""
    local = os.environ.get('LOCAL_RANK', '')
    if device != 'auto' or not local.isdecimal():
        return device
    import torch

    return f'cuda:{int(local) % torch.cuda.device_count()}' if torch.cuda.is_available() else device


@dataclass(frozen=True)
class Report:
    """What a process did: files done, files skipped, reasons by the files that could not be segmented, and its time."""

    done: int
    skipped: int
    failures: dict[str, str]
    seconds: float


@contextlib.contextmanager
def gathered(share: Share, report: Report) -> Iterator[list[Report]]:
    """The reports of all processes by rank; under ``torchrun`` they wait for each other, else it is the own one.

    They wait before and after what is done with the reports: one process that ends with an error status has the
    others killed, which would be in the midst of their work, or of saying what came of it.
    """
    if share.processes == 1 or 'TORCHELASTIC_RUN_ID' not in os.environ:
        yield [report]
        return
    store = _store(share)
    place = f'volo_seg/infer/{os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")}'
    store.set(f'{place}/{share.rank}', json.dumps(asdict(report)))
    keys = [f'{place}/{rank}' for rank in range(share.processes)]
    # asked for again and again, because waiting inside the store would not notice Ctrl-C
    while not store.check(keys):
        time.sleep(0.2)
    yield [Report(**json.loads(store.get(key))) for key in keys]
    store.add(f'{place}/told', 1)
    while store.add(f'{place}/told', 0) < share.processes:
        time.sleep(0.05)


def _store(share: Share) -> Any:
    from torch.distributed import TCPStore

    return TCPStore(
        os.environ['MASTER_ADDR'],
        int(os.environ['MASTER_PORT']),
        is_master=share.rank == 0 and os.environ.get('TORCHELASTIC_USE_AGENT_STORE') != 'True',
        timeout=datetime.timedelta(days=7),
    )

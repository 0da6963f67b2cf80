"""torchrun that ends with one sentence: ``python -m volo_seg.engine.torchrun`` takes torchrun's flags.

It starts the processes of this machine and waits for them. When one of them fails, it stops the others, says which one
it was and why, and exits with that one's status. Ctrl-C and SIGTERM are handed on; training then saves and stops.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

MARK = 'VOLO_SEG_LAUNCHER'
"""Set for the processes: their mistakes are told here, once, not by each of them."""
PATIENCE = 60
"""Seconds that the other processes get to save and stop."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run; see ``torchrun --help``."""
    os.environ[MARK] = '1'
    os.environ.setdefault('TORCH_ELASTIC_SHUTDOWN_TIMEOUT', str(PATIENCE))
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    words = list(sys.argv[1:] if argv is None else argv)
    args = parse_args(words)
    share_cores(str(args.nproc_per_node))
    quiet()
    try:
        run(args)
    except ChildFailedError as error:
        return explain(error.failures)
    except SignalException as error:
        name = signal.Signals(error.sigval).name
        print(f'{name}: all processes are stopped', file=sys.stderr)
        return 128 + int(error.sigval)
    return 0


def share_cores(processes: str) -> None:
    """Give each process its part of the cores, unless OMP_NUM_THREADS says otherwise."""
    count = int(processes) if processes.isdigit() else 1
    os.environ.setdefault('OMP_NUM_THREADS', str(max(1, (os.cpu_count() or 1) // max(count, 1))))


def quiet() -> None:
    """Leave out torchrun's own account of failures: ours takes its place."""
    for name in [name for name in logging.root.manager.loggerDict if name.startswith('torch.distributed')]:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def explain(failures: dict[int, Any]) -> int:
    """Print why the first of the ``failures`` (by rank) failed, and return the status to exit with."""
    rank, failure = min(failures.items(), key=lambda item: (_is_consequence(item[1]), item[1].timestamp, item[0]))
    if failure.exitcode == 2 and failure.error_file_data.get('sentence'):
        print(f'error: {failure.error_file_data["sentence"]}', file=sys.stderr)
        return 2
    if failure.exitcode < 0:
        told = f'was killed ({failure.signal_name()})'
        if failure.exitcode == -signal.SIGKILL:
            told += ', by the system if memory ran out'
    elif failure.exitcode > 128:
        told = 'stopped as it was asked to; its message stands above'
    else:
        told = f'failed with status {failure.exitcode}; its message stands above'
    print(f'error: process {rank} {told}; the other processes of this machine are stopped', file=sys.stderr)
    return failure.exitcode if failure.exitcode > 0 else 1


def _is_consequence(failure: Any) -> bool:
    """Whether a process failed because another one was gone, or was stopped therefore."""
    return failure.exitcode == -signal.SIGTERM or bool(failure.error_file_data.get('peer_lost'))


if __name__ == '__main__':
    sys.exit(main())

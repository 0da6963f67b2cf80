"""``python -m volo_seg.engine.torchrun``: torchrun with its flags, and with a one-line message on failure.

It starts the processes of this machine and waits for them. If one fails, it stops the others, prints the rank and the
reason, and exits with the status of that process. Ctrl-C and SIGTERM are forwarded; training then saves and stops.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from volo_seg.errors import print_message

MARK = 'VOLO_SEG_LAUNCHER'
"""Environment variable of the started processes: they write error messages to the error file of torchrun."""
SHUTDOWN_SECONDS = 60
"""Seconds that the other processes have to save and stop."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run torchrun; see ``torchrun --help``. Returns the exit status."""
    os.environ[MARK] = '1'
    os.environ.setdefault('TORCH_ELASTIC_SHUTDOWN_TIMEOUT', str(SHUTDOWN_SECONDS))
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    words = list(sys.argv[1:] if argv is None else argv)
    args = parse_args(words)
    count = int(args.nproc_per_node) if str(args.nproc_per_node).isdigit() else 1
    os.environ.setdefault('OMP_NUM_THREADS', str(max(1, (os.cpu_count() or 1) // max(count, 1))))
    # explain() replaces torchrun's own messages about failures
    for name in [name for name in logging.root.manager.loggerDict if name.startswith('torch.distributed')]:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    try:
        run(args)
    except ChildFailedError as error:
        return explain(error.failures)
    except SignalException as error:
        name = signal.Signals(error.sigval).name
        print(f'{name}: all processes are stopped', file=sys.stderr)
        return 128 + int(error.sigval)
    return 0


def explain(failures: dict[int, Any]) -> int:
    """Print which process of ``failures`` (by rank) failed first and why; return the exit status."""
    rank, failure = min(failures.items(), key=lambda item: (_is_consequence(item[1]), item[1].timestamp, item[0]))
    if failure.exitcode == 2 and failure.error_file_data.get('sentence'):
        print_message(f'error: {failure.error_file_data["sentence"]}')
        return 2
    if failure.exitcode < 0:
        reason = f'was killed ({failure.signal_name()})'
        if failure.exitcode == -signal.SIGKILL:
            reason += '; the system does this when memory runs out'
    elif failure.exitcode > 128:
        reason = 'stopped after a signal; see its message above'
    else:
        reason = f'failed with status {failure.exitcode}; see its message above'
    print_message(f'error: process {rank} {reason}; the other processes of this machine are stopped')
    return failure.exitcode if failure.exitcode > 0 else 1


def _is_consequence(failure: Any) -> bool:
    """Return whether a process failed because another one had ended, or was stopped for that reason."""
    return failure.exitcode == -signal.SIGTERM or bool(failure.error_file_data.get('peer_lost'))


if __name__ == '__main__':
    sys.exit(main())

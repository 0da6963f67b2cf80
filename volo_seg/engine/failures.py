"""How a run ends: recorded, and in one sentence where the cause lies outside of it."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, TypeVar

from volo_seg.engine.logging.run_record import RunRecord
from volo_seg.errors import PeerLost, UserError

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)
PEER = ('gloo', 'NCCL', 'Connection closed by peer', 'Connection reset by peer', 'Broken pipe')
"""Words of torch's errors when a process of the group is gone."""

Outcome = TypeVar('Outcome')


def run_recorded(runner: Any, kind: str, work: Callable[[], Outcome]) -> Outcome:
    """Do ``work`` with a record of it.

    Raises:
        PeerLost: Another process of the job ended; its own message says why.
    """
    runner.record = RunRecord(runner, kind=kind)
    runner.record.write()
    try:
        outcome = work()
    except KeyboardInterrupt as error:
        runner.record.finish('interrupted', reason=str(error) or 'interrupted')
        raise
    except BaseException as error:
        runner.record.finish('failed', reason=f'{type(error).__name__}: {error}'.strip()[:2000])
        if runner.world_size > 1 and lost_peer(error):
            raise PeerLost('another process of this job ended; its message says why') from error
        raise
    finally:
        runner.stop_listening()
    runner.record.finish('finished')
    return outcome


def lost_peer(error: BaseException) -> bool:
    """Whether ``error`` is torch's about a process of the group that is gone."""
    if isinstance(error, UserError) or not isinstance(error, RuntimeError):
        return False
    return any(word in str(error) for word in PEER)


def disk_is_at_fault(error: OSError) -> bool:
    """Whether the disk or the folder refused a write."""
    return error.errno in DISK

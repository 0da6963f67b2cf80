"""How a run ends: with a record, and with one sentence if the cause lies outside of it."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, TypeVar

from volo_seg.engine.data_files import unreadable_file
from volo_seg.engine.logging.run_record import RunRecord
from volo_seg.errors import PeerLost, UserError

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)
PEER = ('gloo', 'NCCL', 'Connection closed by peer', 'Connection reset by peer', 'Broken pipe')
"""Words of torch's errors when a process of the group has ended."""

Result = TypeVar('Result')


def run_recorded(runner: Any, kind: str, work: Callable[[], Result]) -> Result:
    """Do ``work`` and record in ``run.json`` how it ended.

    Raises:
        PeerLost: Another process of the job ended; its own message says why.
        UserError: A data file cannot be read.
    """
    runner.record = RunRecord(runner, kind=kind)
    runner.record.write()
    try:
        result = work()
    except KeyboardInterrupt as error:
        runner.record.finish('interrupted', reason=str(error) or 'interrupted')
        raise
    except BaseException as error:
        loops = (runner._train_loop, runner._val_loop, runner._test_loop)
        explained = unreadable_file(error, [loop.dataloader.dataset for loop in loops if hasattr(loop, 'dataloader')])
        if explained is None and runner.world_size > 1 and lost_peer(error):
            explained = PeerLost('another process of this job ended; its message says why')
        reported = explained or error
        runner.record.finish('failed', reason=f'{type(reported).__name__}: {reported}'.strip()[:2000])
        if explained is not None:
            raise explained from error
        raise
    finally:
        runner.stop_listening()
    runner.record.finish('finished')
    return result


def lost_peer(error: BaseException) -> bool:
    """Whether ``error`` is torch's, about a process of the group that has ended."""
    if isinstance(error, UserError) or not isinstance(error, RuntimeError):
        return False
    return any(word in str(error) for word in PEER)


def disk_is_at_fault(error: OSError) -> bool:
    """Whether the disk or the folder refused a write."""
    return error.errno in DISK

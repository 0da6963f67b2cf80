"""A hook by which the second process of a job comes to grief."""

import os
import signal

import yapf.yapflib.yapf_api as formatter
from mmengine.hooks import Hook
from mmseg.registry import HOOKS

# laying a config out prettily takes a second each time
formatter.FormatCode = lambda text, **_: (text, True)


@HOOKS.register_module()
class Misfortune(Hook):
    """With ``kind='kill'``, end the process in its third iteration."""

    def __init__(self, kind):
        self.kind = kind

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if self.kind == 'kill' and runner.rank == 1 and runner.iter == 2:
            os.kill(os.getpid(), signal.SIGKILL)

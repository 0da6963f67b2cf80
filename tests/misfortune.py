"""A hook by which the second process of a job comes to grief."""

import os
import signal

import yapf.yapflib.yapf_api as formatter
from mmengine.hooks import Hook
from mmseg.registry import HOOKS

from volo_seg.errors import UserError

# laying a config out prettily takes a second each time
formatter.FormatCode = lambda text, **_: (text, True)


@HOOKS.register_module()
class Misfortune(Hook):
    """In the third iteration, end the process (``'kill'``), raise an error ('fail') or make a loss NaN ('nan')."""

    def __init__(self, kind):
        self.kind = kind

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.rank != 1 or runner.iter != 2:
            return
        if self.kind == 'kill':
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == 'fail':
            raise UserError('a mistake of process 1')
        if self.kind == 'nan':
            runner.model.module.decode_head.loss_decode.loss_weight = float('nan')

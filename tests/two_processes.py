"""What two processes do together; tests/test_distributed.py runs it under torchrun: two_processes.py DATA OUT."""

import json
import sys
from pathlib import Path

import tiny
import torch
from mmengine.hooks import Hook

from volo_seg.engine.sharding import blocks

ACCUMULATED = dict(optim_wrapper__accumulative_counts=2, train_cfg__max_iters=4, train_cfg__val_interval=4)
RARE = ('--sampling', 'rare', '--copy-paste')


def teacher(out):
    """Flags that let the first network of ``out`` teach."""
    return '--teacher', out / 'ddp' / 'even.py', out / 'ddp' / 'iter_4.pth', '--teacher-weight', '100'


class WholeInValidation(Hook):
    """Fails where a process validates on shards: with another number of windows, each would wait for the other."""

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        for block in blocks(runner.model):
            assert not any(hasattr(parameter, 'full_tensor') for parameter in block.parameters())

    def after_val_epoch(self, runner, metrics=None):
        assert all(hasattr(parameter, 'full_tensor') for parameter in runner.model.parameters())


def main(data, out):
    torch.set_num_threads(1)
    launched = ('--launcher', 'pytorch')
    losses = {
        'ddp': tiny.train_even(data, out / 'ddp', *launched),
        'fsdp': tiny.train_even(data, out / 'fsdp', *launched, '--fsdp', hooks=[WholeInValidation()]),
        'rare classes': tiny.train_even(data, out / 'rare', *launched, *RARE),
        'taught': tiny.train_even(data, out / 'taught', *launched, *teacher(out)),
        'resumed shards': tiny.train_even(
            data, out / 'shards', *launched, '--fsdp', '--resume', str(out / 'fsdp' / 'iter_2.pth')
        ),
    }
    tiny.train(data, out / 'whole', *launched, **ACCUMULATED)
    tiny.train(data, out / 'resumed', *launched, '--resume', str(out / 'whole' / 'iter_3.pth'), **ACCUMULATED)
    (out / 'losses.json').write_text(json.dumps(losses))


if __name__ == '__main__':
    main(Path(sys.argv[1]), Path(sys.argv[2]))

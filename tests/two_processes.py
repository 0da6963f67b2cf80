"""What two processes do together; tests/test_distributed.py runs it under torchrun: two_processes.py DATA OUT."""

import json
import sys
from pathlib import Path

import tiny
import torch

ACCUMULATED = dict(optim_wrapper__accumulative_counts=2, train_cfg__max_iters=4, train_cfg__val_interval=4)


def main(data, out):
    torch.set_num_threads(1)
    launched = ('--launcher', 'pytorch')
    losses = {
        'ddp': tiny.train_even(data, out / 'ddp', *launched),
        'fsdp': tiny.train_even(data, out / 'fsdp', *launched, '--fsdp'),
        'resumed shards': tiny.train_even(
            data, out / 'shards', *launched, '--fsdp', '--resume', str(out / 'fsdp' / 'iter_2.pth')
        ),
    }
    tiny.train(data, out / 'whole', *launched, **ACCUMULATED)
    tiny.train(data, out / 'resumed', *launched, '--resume', str(out / 'whole' / 'iter_3.pth'), **ACCUMULATED)
    (out / 'losses.json').write_text(json.dumps(losses))


if __name__ == '__main__':
    main(Path(sys.argv[1]), Path(sys.argv[2]))

"""Time to a command's help, and from the command to the end of its first training iteration, against mmseg's tools.

    python benchmarks/startup.py --data-root TOYSCAPES

Both train the same config (volo-nano on Toyscapes, one iteration of two images, no worker processes); mmseg's
tools/train.py is the one in the installed package. Wall time of whole processes.
"""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import mmseg
from _measure import Report, parser, settings

from volo_seg.config.load import find_config

CONFIG = 'volo-nano_upernet_1xb4-1200_toyscapes-256x256'
OPTIONS = (
    'train_cfg.max_iters=1',
    'train_dataloader.batch_size=2',
    'train_dataloader.num_workers=0',
    'train_dataloader.persistent_workers=False',
    'val_dataloader=None',
    'val_cfg=None',
    'val_evaluator=None',
    'default_hooks.checkpoint=None',
)


def call(*words: str) -> None:
    """Run one process to its end."""
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f'error: {" ".join(words)} failed:\n{done.stderr[-2000:]}')


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    flags = parser(__doc__)
    flags.add_argument('--data-root', help='a Toyscapes with labelTrainIds; without it, only the help is timed')
    args = flags.parse_args(argv)
    report = Report('Start-up', settings(args))
    theirs = str(Path(mmseg.__file__).parent / '.mim' / 'tools' / 'train.py')
    ours = str(Path(__file__).parents[1] / 'tools' / 'train.py')
    helps = {'mmseg': lambda: call(theirs, '--help'), 'ours': lambda: call(ours, '--help')}
    report.compare('train.py --help', helps, clock='wall', memory=False)
    if args.data_root:
        with tempfile.TemporaryDirectory() as work:
            data = [f'{split}_dataloader.dataset.data_root={args.data_root}' for split in ('train', 'test')]
            config = str(find_config(CONFIG))
            words = (config, '--work-dir', work, '--cfg-options', *OPTIONS, *data)
            steps = {'mmseg': lambda: call(theirs, *words), 'ours': lambda: call(ours, *words)}
            report.compare('one iteration', steps, clock='wall', memory=False)
    report.finish()


if __name__ == '__main__':
    main()

"""Does a teacher help: VOLO-nano with and without the soft labels of a wider network that was trained for longer.

    python benchmarks/distillation.py --out distillation [--iters 300] [--teacher-iters 1000] [--seeds 0 1]

Generates plain Toyscapes of 128 x 256 pixels, trains the teacher (96 to 192 channels), then nano without and with
``--teacher`` for each seed: same images, crops, iterations and rates. A run that is finished is skipped, so an
interrupted benchmark goes on where it stopped. Prints the mIoU of the last weights on the held-out scenes.
"""

import argparse
import json
import resource
from pathlib import Path

from volo_seg.commands import run

NANO = 'volo-nano_upernet_1xb4-1200_toyscapes-256x256'
WIDE = """
_base_ = '{base}'
model = dict(
    backbone=dict(_delete_=True, type='VOLO', img_size=128, norm_cfg=dict(type='SyncBN', requires_grad=True),
                  arch=dict(depths=(2, 1, 2, 1), embed_dims=(96, 192, 192, 192), num_heads=(3, 6, 6, 6),
                            mlp_ratio=2.0, stem_channels=32)),
    decode_head=dict(in_channels=[96, 192, 192, 192], in_index=[0, 1, 2, 3], channels=96),
    auxiliary_head=dict(in_channels=192, in_index=2),
)
"""


def options(iters: int) -> list[str]:
    """Crops of 128 x 128 pixels, ``iters`` iterations."""
    step = 'train_dataloader.dataset.dataset.pipeline'
    return [
        'crop_size=(128,128)',
        'model.data_preprocessor.size=(128,128)',
        f'{step}.2.scale=(256,128)',
        f'{step}.3.crop_size=(128,128)',
        'val_dataloader.dataset.pipeline.1.scale=(256,128)',
        'train_dataloader.num_workers=0',
        'val_dataloader.num_workers=0',
        f'param_scheduler.1.end={iters}',
        f'train_cfg.max_iters={iters}',
        f'train_cfg.val_interval={iters}',
        f'default_hooks.checkpoint.interval={iters}',
        'default_hooks.checkpoint.save_best=None',
        'default_hooks.logger.interval=100',
    ]


def train(config: str, work_dir: Path, *, iters: int, seed: int, flags: tuple[str, ...] = ()) -> float:
    """Train unless ``work_dir`` has the result; return the mIoU of the last weights in percent."""
    result = work_dir / 'result.json'
    if not result.exists():
        start = resource.getrusage(resource.RUSAGE_SELF).ru_utime
        words = [config, '--work-dir', str(work_dir), '--seed', str(seed), '--plain', *flags]
        if run('train', [*words, '--no-check', '--cfg-options', *options(iters)]):
            raise SystemExit(1)
        seconds = resource.getrusage(resource.RUSAGE_SELF).ru_utime - start
        scores = max(work_dir.rglob('metrics.json'), key=lambda path: path.stat().st_mtime)
        result.write_text(json.dumps({'mIoU': json.loads(scores.read_text())['mIoU'], 'cpu_seconds': seconds}))
    found = json.loads(result.read_text())
    print(
        f'{work_dir.name:<20} {iters:>6} iterations  mIoU {found["mIoU"]:.2f}  {found["cpu_seconds"]:.0f} CPU s',
        flush=True,
    )
    return found['mIoU']


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, required=True, help='folder for the data and the runs')
    parser.add_argument('--iters', type=int, default=300)
    parser.add_argument('--teacher-iters', type=int, default=1000)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1])
    args = parser.parse_args()
    data = args.out / 'data'
    if not data.exists():
        words = [str(data), '--train', '600', '--val', '60', '--size', '128', '256', '--style', 'plain']
        if run('toyscapes', words):
            raise SystemExit(1)
    root = ('--data-root', str(data))
    from volo_seg.config.load import find_config

    wide = args.out / 'wide.py'
    wide.write_text(WIDE.format(base=find_config(NANO)))
    train(str(wide), args.out / 'teacher', iters=args.teacher_iters, seed=0, flags=root)
    teacher = ('--teacher', str(wide), str(args.out / 'teacher' / f'iter_{args.teacher_iters}.pth'))
    for seed in args.seeds:
        alone = train(NANO, args.out / f'alone_{seed}', iters=args.iters, seed=seed, flags=root)
        taught = train(NANO, args.out / f'taught_{seed}', iters=args.iters, seed=seed, flags=(*root, *teacher))
        print(f'seed {seed}: {taught - alone:+.2f} with a teacher')


if __name__ == '__main__':
    main()

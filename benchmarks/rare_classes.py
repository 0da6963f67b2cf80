"""What helps rare classes: each flag of ``volo-seg train`` for them alone, and the best loss with the best data flag.

    python benchmarks/rare_classes.py --data-root data/camvid --ignore-labels 11 --out rare_classes [--iters 1000]

``--data-root`` has images/{train,val}, annotations/{train,val} and classes.txt (or ``--classes``). All runs have the
same network (MMSegmentation's Fast-SCNN from random weights), crops, batches, iterations, rate, schedule and seed, and
differ in the flags alone. After 400 iterations on CamVid, the rare classes are still at 0. Scores are those of the last
weights over the whole validation split; CPU time is that of the whole process with its data loaders. A run that is
finished is skipped, so an interrupted benchmark goes on where it stopped. The pair is the loss and the data flag with
the highest mean IoU of the ``--rare`` classes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import mmseg
from mmengine.config import Config

import volo_seg.register  # noqa: F401
from volo_seg.config.load import datasets, load_config
from volo_seg.engine.recipe import apply_recipe

THEIRS = Path(mmseg.__file__).parent / '.mim' / 'configs' / '_base_' / 'models' / 'fast_scnn.py'
FOLDERS = 'volo-nano_upernet_1xb4-20k_folders-256x256'
LOSSES = ['ce', 'ohem', 'focal', 'dice', 'lovasz', 'ce+dice', 'ce+lovasz', 'boundary']
RUNS = {f'loss {loss}': 'loss' for loss in LOSSES} | {
    'class-weights inverse': 'loss',
    'sampling rare': 'data',
    'copy-paste': 'data',
}
"""The flags of each run, without the leading hyphens (several flags are joined by commas), and their kind."""


def write_config(args: argparse.Namespace) -> Path:
    """Write the config of all runs: the folders recipe with Fast-SCNN, validated once, at the end."""
    config = load_config(FOLDERS)
    model = Config.fromfile(THEIRS).model
    model.data_preprocessor = config.model.data_preprocessor
    for part in (model.backbone, model.decode_head, *model.auxiliary_head):
        part.pop('num_classes', None)
        part.norm_cfg.momentum = 0.1  # statistics with its own 0.01 lag behind the weights of a short run
    config.model, config.load_from = model, None
    for split in ('train', 'val', 'test'):
        for _, dataset in datasets(config[f'{split}_dataloader'].dataset, split):
            dataset.update({key: value for key in ('classes', 'ignore_labels') if (value := getattr(args, key))})
    apply_recipe(config, iterations=args.iters, batch_size=args.batch, rate=args.lr, crop=(args.crop, args.crop))
    config.train_cfg.val_interval = config.default_hooks.checkpoint.interval = args.iters
    config.default_hooks.checkpoint.save_best = None
    unused = ('TrainingScoreHook', 'ContactSheetHook')
    config.custom_hooks = [hook for hook in config.custom_hooks if hook.type not in unused]
    path = args.out / 'config.py'
    config.dump(str(path))
    return path


def train(args: argparse.Namespace, flags: str) -> dict[str, Any]:
    """Train with ``flags`` unless the result is there; the scores and the CPU seconds."""
    work_dir = args.out / flags.replace(' ', '_')
    result = work_dir / 'result.json'
    if not result.exists():
        words = [str(write_config(args)), '--work-dir', str(work_dir), '--data-root', args.data_root, '--plain']
        command = [sys.executable, '-m', 'volo_seg', 'train', *words, '--seed', str(args.seed), *words_of(flags)]
        with subprocess.Popen(command, env={**os.environ, 'OMP_NUM_THREADS': '1'}) as process:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(process.returncode)
        scores = json.loads(max(work_dir.rglob('metrics.json'), key=lambda path: path.stat().st_mtime).read_text())
        result.write_text(json.dumps({**scores, 'cpu_seconds': usage.ru_utime + usage.ru_stime}))
    return json.loads(result.read_text())


def words_of(flags: str) -> list[str]:
    """The words of a command line for ``flags``."""
    return [word for flag in flags.split(',') for word in f'--{flag}'.split()]


def rare_ious(args: argparse.Namespace, scores: dict[str, Any]) -> list[float]:
    """The IoU of each rare class in percent."""
    by_name = {row['class']: row['IoU'] for row in scores['classes']}
    return [by_name[name] for name in args.rare]


def row(args: argparse.Namespace, flags: str, scores: dict[str, Any]) -> str:
    """A row of the table."""
    rare = rare_ious(args, scores)
    numbers = [f'{value:.1f}' for value in (*rare, statistics.mean(rare), scores['mIoU'])]
    return f'| `{" ".join(words_of(flags))}` | {" | ".join(numbers)} | {scores["cpu_seconds"]:.0f} |'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data-root', required=True)
    parser.add_argument('--out', type=Path, required=True, help='folder for the config and the runs')
    parser.add_argument('--classes', nargs='+')
    parser.add_argument('--ignore-labels', type=int, nargs='+')
    parser.add_argument('--rare', nargs='+', default=['Pole', 'SignSymbol', 'Pedestrian', 'Bicyclist'])
    parser.add_argument('--iters', type=int, default=1000)
    parser.add_argument('--batch', type=int, default=4)
    parser.add_argument('--crop', type=int, default=256)
    parser.add_argument('--lr', type=float, default=2e-3)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--runs', nargs='+', default=list(RUNS), help='such as "loss ce,sampling rare" (default: all)')
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    results = {}
    for flags in args.runs:
        results[flags] = train(args, flags)
        print(row(args, flags, results[flags]), flush=True)
    kinds = {kind: [flags for flags in results if RUNS.get(flags) == kind] for kind in ('loss', 'data')}
    if all(kinds.values()):
        pair = ','.join(max(kinds[kind], key=lambda flags: sum(rare_ious(args, results[flags]))) for kind in kinds)
        results[pair] = train(args, pair)
    heads = ['flags', *args.rare, 'mean of these', 'mIoU', 'CPU s']
    print('\n| ' + ' | '.join(heads) + ' |\n|' + '---|' * len(heads))
    print('\n'.join(row(args, flags, scores) for flags, scores in results.items()))


if __name__ == '__main__':
    main()

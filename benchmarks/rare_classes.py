"""What helps rare classes: each flag of ``volo-seg train`` for them alone, and the best loss with the best data flag.

    python benchmarks/rare_classes.py --data-root data/camvid --ignore-labels 11 --json rare_classes.json

``--data-root`` has images/{train,val}, annotations/{train,val} and classes.txt (or ``--classes``). All runs fine-tune
the model that ships with the same crops, batches, iterations, schedule and seed, and differ in the flags alone;
``loss ce`` is the baseline. Scores are those of the last weights over the whole validation split; CPU time is that of
the whole process with its data loaders, on one thread. ``--cpu-seconds`` is for the whole table, at the speed that the
constants below state; it sets the iterations.

Each result goes into ``--json`` when its run ends; a run that is there is skipped, and one that was interrupted
resumes from its last checkpoint in ``<json without suffix>_runs``, so the command goes on where it stopped. The pair is
the loss and the data flag with the highest mean IoU of the rare classes.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from _measure import machine, write_whole

from volo_seg.config.load import datasets, load_config

CONFIG = 'volo-nano_upernet_1xb4-20k_folders-256x256'
BASELINE = 'loss ce'
RUNS = {
    BASELINE: 'baseline',
    **{f'loss {loss}': 'loss' for loss in ('ohem', 'focal', 'dice', 'lovasz', 'ce+dice', 'ce+lovasz', 'boundary')},
    'class-weights inverse': 'loss',
    'sampling rare': 'data',
    'copy-paste': 'data',
}
"""The flags of each run, without the leading hyphens (several flags are joined by commas), and their kind."""
ITERATIONS_A_SECOND, SECONDS_AROUND = 2.1, 25
"""Of a run on one core: its training speed (3.5 with ce, 1.1 with lovasz; the mean), and CPU seconds for the rest."""


def write_config(args: argparse.Namespace, folder: Path) -> Path:
    """Write the config of all runs: the folders recipe with the classes of the data, validated once, at the end."""
    config = load_config(CONFIG)
    for split in ('train', 'val', 'test'):
        for _, dataset in datasets(config[f'{split}_dataloader'].dataset, split):
            dataset.update({key: value for key in ('classes', 'ignore_labels') if (value := getattr(args, key))})
    config.train_cfg.val_interval = config.train_cfg.max_iters  # --iters keeps the share
    config.default_hooks.checkpoint.save_best = None
    unused = ('TrainingScoreHook', 'ContactSheetHook')
    config.custom_hooks = [hook for hook in config.custom_hooks if hook.type not in unused]
    path = folder / 'config.py'
    config.dump(str(path))
    return path


def train(args: argparse.Namespace, flags: str) -> dict[str, Any]:
    """Train with ``flags`` unless the result is in ``--json``; returns the result."""
    content = json.loads(args.json.read_text()) if args.json.is_file() else {'machine': machine('cpu'), 'runs': []}
    identity = {'flags': flags, 'iters': args.iters, 'seed': args.seed}
    for run in content['runs']:
        if identity.items() <= run.items():
            return run
    runs = args.json.with_name(args.json.stem + '_runs')
    work_dir = runs / '_'.join(str(value).replace(' ', '_') for value in identity.values())
    work_dir.mkdir(parents=True, exist_ok=True)
    resumed = (work_dir / 'last_checkpoint').is_file()
    words = [str(write_config(args, runs)), '--data-root', args.data_root, '--iters', str(args.iters), '--plain']
    words += ['--work-dir', str(work_dir), '--seed', str(args.seed), *(['--resume'] if resumed else [])]
    command = [sys.executable, '-m', 'volo_seg', 'train', '--no-check', *words, *words_of(flags)]
    with subprocess.Popen(command, env={**os.environ, 'OMP_NUM_THREADS': '1'}) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(process.returncode)
    scores = json.loads(max(work_dir.rglob('metrics.json'), key=lambda path: path.stat().st_mtime).read_text())
    result = {
        **identity,
        'mIoU': scores['mIoU'],
        'IoU': {row['class']: row['IoU'] for row in scores['classes']},
        'cpu_seconds': usage.ru_utime + usage.ru_stime,
        'resumed': resumed,  # then cpu_seconds are those of the rest
    }
    content['runs'].append(result)
    write_whole(args.json, json.dumps(content, indent=1))
    shutil.rmtree(work_dir)
    return result


def words_of(flags: str) -> list[str]:
    """The words of a command line for ``flags``."""
    return [word for flag in flags.split(',') for word in f'--{flag}'.split()]


def rare_ious(args: argparse.Namespace, result: dict[str, Any]) -> list[float]:
    """The IoU of each rare class in percent."""
    return [result['IoU'][name] for name in args.rare]


def row(args: argparse.Namespace, result: dict[str, Any]) -> str:
    """A row of the table."""
    rare = rare_ious(args, result)
    numbers = ' | '.join(f'{value:.1f}' for value in (*rare, statistics.mean(rare), result['mIoU']))
    more = '> ' if result['resumed'] else ''
    return f'| `{" ".join(words_of(result["flags"]))}` | {numbers} | {more}{result["cpu_seconds"]:.0f} |'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data-root', required=True)
    parser.add_argument('--classes', nargs='+')
    parser.add_argument('--ignore-labels', type=int, nargs='+')
    parser.add_argument('--rare', nargs='+', default=['Pole', 'SignSymbol', 'Pedestrian', 'Bicyclist'])
    parser.add_argument('--json', type=Path, required=True, help='file of the results')
    parser.add_argument('--iters', type=int, help='iterations of a run (default: as many as --cpu-seconds allow)')
    parser.add_argument('--cpu-seconds', type=float, default=4500, help='of the whole table (default 4500)')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--runs', nargs='+', default=list(RUNS), help='e.g. "loss ce" "copy-paste" (default: all)')
    args = parser.parse_args()
    args.iters = args.iters or int((args.cpu_seconds / (len(RUNS) + 1) - SECONDS_AROUND) * ITERATIONS_A_SECOND)
    if args.iters < 1:
        parser.error(f'--cpu-seconds {args.cpu_seconds:g} is too little for one iteration of each run; give more')
    results = []
    for flags in args.runs:
        results.append(train(args, flags))
        print(row(args, results[-1]), flush=True)
    kinds = [[result for result in results if RUNS.get(result['flags']) == kind] for kind in ('loss', 'data')]
    if all(kinds):
        best = [max(kind, key=lambda result: sum(rare_ious(args, result)))['flags'] for kind in kinds]
        results.append(train(args, ','.join(best)))
    heads = ['flags', *args.rare, 'mean of these', 'mIoU', 'CPU s']
    print(f'\n{args.iters} iterations a run, seed {args.seed}\n\n| {" | ".join(heads)} |\n|{"---|" * len(heads)}')
    print('\n'.join(row(args, result) for result in results))


if __name__ == '__main__':
    main()

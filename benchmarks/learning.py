"""Does it learn: VOLO with native strides and with a pyramid neck, beside MMSegmentation's Swin-T and SegFormer.

    python benchmarks/learning.py --data data/camvid --json learning.json [--iters 600] [--networks nano d1]

Every network is trained from scratch on CamVid by one recipe: AdamW at one learning rate, linear warm-up, linear
decay, gradients clipped; the same images in the same crops, the same number of iterations. The networks of
MMSegmentation are its own config files, adapted only in data, schedule and classes (no pretrained weights, BN for
SyncBN). The images are shrunk once, to ``--size``. mIoU is that of the last weights over the whole validation split,
never of the best ones.

Each run is a process of its own, and its line goes into ``--json`` when it ends; a run that is there already is
skipped, so an interrupted benchmark goes on where it stopped. Cost: a training step of each network side by side.

The folder ``--data``:

    <data>/images/{train,val}/*.jpg    <data>/annotations/{train,val}/*.png     0..10 classes, 11 void
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import mmseg
import torch
from _measure import Report, _write_whole, machine, parser, settings
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS, RUNNERS
from mmseg.structures import SegDataSample

import volo_seg.engine.runner
import volo_seg.models  # noqa: F401
from volo_seg.config.load import load_config
from volo_seg.engine.launch import replace_types

CLASSES = [
    'Sky',
    'Building',
    'Pole',
    'Road',
    'Pavement',
    'Tree',
    'SignSymbol',
    'Fence',
    'Car',
    'Pedestrian',
    'Bicyclist',
]
VOID = 11
THEIRS = Path(mmseg.__file__).parent / '.mim' / 'configs'
BASE = 'volo-nano_upernet_1xb4-20k_folders-256x256'
BASELINE = 'Swin-T + UPerNet'
# name -> (config, kind); cheapest first, so that what is there is a table at any time
NETWORKS = {
    'nano': ('volo-nano_upernet_1xb4-20k_folders-256x256', 'native'),
    'nano, pyramid': ('volo-nano_upernet_1xb4-20k_folders-256x256', 'pyramid'),
    'SegFormer-B0': ('segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py', 'theirs'),
    'd1': ('volo-d1_upernet_1xb4-20k_folders-512x512', 'native'),
    'SegFormer-B2': ('segformer/segformer_mit-b2_8xb2-160k_ade20k-512x512.py', 'theirs'),
    'd1, pyramid': ('volo-d1_upernet_1xb4-20k_folders-512x512', 'pyramid'),
    'Swin-T + UPerNet': ('swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py', 'theirs'),
}


def network(name: str, crop: int) -> dict[str, Any]:
    """The model config of ``name`` for 11 classes and crops of ``crop`` pixels, without pretrained weights."""
    config, kind = NETWORKS[name]
    loaded = Config.fromfile(THEIRS / config) if kind == 'theirs' else load_config(config)
    model = loaded.model.to_dict()
    model['backbone']['init_cfg'] = model['pretrained'] = None
    model['data_preprocessor']['size'] = (crop, crop)
    for head in ('decode_head', 'auxiliary_head'):
        if head in model:
            model[head]['num_classes'] = len(CLASSES)
    if kind != 'theirs':
        del model['pretrained']
        model['backbone']['img_size'] = (crop, crop)
    if kind == 'pyramid':
        model['neck'] = dict(
            type='VOLOPyramid', in_channels=model['decode_head']['in_channels'], norm_cfg=dict(type='BN')
        )
    return replace_types(model, {'SyncBN': 'BN'})


def shrink(data: Path, size: tuple[int, int]) -> Path:
    """CamVid at ``size`` = (width, height) in the folder for temporary files, made once: labels by nearest."""
    target = Path(tempfile.gettempdir()) / f'volo_seg_learning_{size[0]}x{size[1]}'
    if target.is_dir():
        return target
    part = Path(tempfile.mkdtemp(dir=target.parent))
    for kind, flags, how in (
        ('images', cv2.IMREAD_COLOR, cv2.INTER_AREA),
        ('annotations', cv2.IMREAD_UNCHANGED, cv2.INTER_NEAREST),
    ):
        for path in sorted(data.glob(f'{kind}/*/*')):
            file = part / path.relative_to(data).with_suffix('.png')
            file.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(file), cv2.resize(cv2.imread(str(path), flags), size, interpolation=how))
    os.replace(part, target)
    return target


def run_config(args: argparse.Namespace, name: str, seed: int, data: Path, work_dir: str) -> Config:
    """One run: our folder data set, and one schedule for all networks."""
    config = load_config(BASE)
    resized = dict(type='RandomResize', scale=args.size, ratio_range=(0.75, 1.5), keep_ratio=True)
    crop = dict(type='RandomCrop', crop_size=(args.crop, args.crop), cat_max_ratio=0.75)
    load, masks, pack = (dict(type=kind) for kind in ('LoadImageFromFile', 'LoadAnnotations', 'PackSegInputs'))
    train = [load, masks, resized, crop, dict(type='RandomFlip', prob=0.5), pack]
    for split, pipeline in (('train', train), ('val', [load, masks, pack]), ('test', [load, masks, pack])):
        loader = config[f'{split}_dataloader']
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.update(data_root=str(data), classes=CLASSES, ignore_labels=[VOID], pipeline=pipeline)
    config.train_dataloader.batch_size = args.batch
    config.model = network(name, args.crop)
    config.optim_wrapper = dict(
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=args.lr, weight_decay=0.01),
        clip_grad=dict(max_norm=1.0),
        paramwise_cfg=dict(
            norm_decay_mult=0.0,
            bias_decay_mult=0.0,
            custom_keys={key: dict(decay_mult=0.0) for key in ('pos_embed', 'relative_position_bias_table')},
        ),
    )
    warm = max(1, args.iters // 20)
    config.param_scheduler = [
        dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=warm),
        dict(type='PolyLR', eta_min=0.0, power=1.0, begin=warm, end=args.iters, by_epoch=False),
    ]
    config.train_cfg.update(max_iters=args.iters, val_interval=args.iters)
    config.default_hooks.update(
        checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=-1, save_last=False, save_best=None)
    )
    config.randomness = dict(seed=seed)
    config.work_dir, config.launcher = work_dir, 'none'
    return config


def train(args: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    """Train and evaluate once; the figures of the last weights."""
    torch.set_num_threads(args.threads)
    work_dir = tempfile.mkdtemp(prefix='volo_seg_learning_run_')
    try:
        start = time.process_time()
        runner = RUNNERS.build(run_config(args, name, seed, shrink(args.data, args.size), work_dir))
        runner.train()
        log = runner.message_hub.log_scalars
        scores = {key.removeprefix('val/'): float(log[key].current()) for key in log if key.startswith('val/')}
        taken = time.process_time() - start
    finally:
        shutil.rmtree(work_dir, ignore_errors=True)
    return {
        **identity(args, name, seed),
        'images': args.iters * args.batch,
        'mIoU': scores['mIoU'],
        'aAcc': scores['aAcc'],
        'classes': {key.removeprefix('IoU/'): value for key, value in scores.items() if key.startswith('IoU/')},
        'loss': float(log['train/loss'].mean(50)),
        'cpu_seconds': taken,
        'peak_rss_MiB': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def identity(args: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    """What makes a run this run and no other."""
    return {
        'network': name,
        'seed': seed,
        'iters': args.iters,
        'batch': args.batch,
        'crop': args.crop,
        'size': list(args.size),
        'lr': args.lr,
    }


def read(path: Path) -> dict[str, Any]:
    """What ``--json`` holds so far."""
    return json.loads(path.read_text()) if path.is_file() else {'runs': [], 'cost': []}


def is_there(args: argparse.Namespace, name: str, seed: int) -> bool:
    """Whether the run has its line in the file."""
    wanted = identity(args, name, seed)
    return any(wanted.items() <= run.items() for run in read(args.json)['runs'])


def run_all(args: argparse.Namespace) -> None:
    """Train what is missing, each in a process of its own: first one seed of every network, then the next."""
    for seed in range(args.seeds):
        for name in args.networks:
            if not is_there(args, name, seed):
                print(f'{time.strftime("%H:%M:%S")} {name}, seed {seed}', flush=True)
                flags = [*sys.argv[1:], '--one', name, str(seed)]
                subprocess.run([sys.executable, __file__, *flags], check=True)


def step_batch(batch: int, crop: int) -> dict[str, Any]:
    """Random images and labels, as the network sees them after its preprocessor."""
    sample = SegDataSample(gt_sem_seg=PixelData(data=torch.randint(0, len(CLASSES), (1, crop, crop))))
    sample.set_metainfo(dict(img_shape=(crop, crop), ori_shape=(crop, crop), pad_shape=(crop, crop)))
    return {'inputs': torch.randn(batch, 3, crop, crop), 'data_samples': [sample] * batch, 'mode': 'loss'}


def step(model: torch.nn.Module, batch: dict[str, Any]) -> None:
    """Forward with losses (auxiliary head too) and backward."""
    model.zero_grad(set_to_none=True)
    sum(value for key, value in model(**batch).items() if 'loss' in key).backward()


def measure_cost(args: argparse.Namespace) -> None:
    """A training step of every network, side by side; kept in ``--json``."""
    content = read(args.json)
    done = {(row['network'], row['crop']) for row in content['cost']}
    if all((name, args.cost_crop) in done for name in NETWORKS):
        return
    init_default_scope('mmseg')
    report = Report('A training step', settings(args))
    torch.manual_seed(0)
    models = {name: MODELS.build(network(name, args.cost_crop)).train() for name in NETWORKS}
    models = {BASELINE: models.pop(BASELINE), **models}
    batch = step_batch(args.cost_batch, args.cost_crop)
    rows = report.compare('step', {name: (lambda m=model: step(m, batch)) for name, model in models.items()})
    content['cost'] += [
        {
            'network': row.peer,
            'crop': args.cost_crop,
            'batch': args.cost_batch,
            'seconds': row.seconds[1],
            'ratio': row.ratio,
            'peak_MiB': row.peak / 2**20,
            'parameters': sum(p.numel() for p in models[row.peer].parameters()),
        }
        for row in rows
    ]
    _write_whole(args.json, json.dumps(content, indent=1))


def table(content: dict[str, Any], cost_crop: int) -> str:
    """One line a network and budget: median mIoU of the seeds, with lowest and highest, beside the cost of a step."""
    lines = [
        '| network | M parameters | iterations | images | seeds | mIoU | lowest-highest | step time | peak memory |'
    ]
    lines.append('|---|---|---|---|---|---|---|---|---|')
    costs = {row['network']: row for row in content['cost'] if row['crop'] == cost_crop}
    base = costs[BASELINE]
    for iters in sorted({run['iters'] for run in content['runs']}):
        for name in NETWORKS:
            runs = [run for run in content['runs'] if run['network'] == name and run['iters'] == iters]
            if not runs:
                continue
            scores, cost = sorted(run['mIoU'] for run in runs), costs[name]
            cells = [
                name,
                f'{cost["parameters"] / 1e6:.1f}',
                f'{iters:,}',
                f'{runs[0]["images"]:,}',
                str(len(runs)),
                f'{statistics.median(scores):.1f}',
                f'{scores[0]:.1f}-{scores[-1]:.1f}',
                f'{1 / cost["ratio"][1]:.2g}',
                f'{cost["peak_MiB"] / base["peak_MiB"]:.2g}',
            ]
            lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(
        [*lines, '', f'Step time and peak memory: shares of those of {BASELINE}, {cost_crop}x{cost_crop}.']
    )


def build_parser() -> argparse.ArgumentParser:
    """The shared flags and those of the training."""
    flags = parser(__doc__)
    flags.add_argument('--data', type=Path, required=True, help='CamVid, in the layout above')
    flags.add_argument('--networks', nargs='+', default=list(NETWORKS), choices=NETWORKS, help='default: all')
    flags.add_argument('--seeds', type=int, default=3, help='runs of each network (default 3)')
    flags.add_argument('--iters', type=int, default=600, help='iterations of a run (default 600)')
    flags.add_argument('--batch', type=int, default=4, help='images in a batch (default 4)')
    flags.add_argument('--crop', type=int, default=128, help='side of a training crop in pixels (default 128)')
    flags.add_argument('--size', type=int, nargs=2, default=(240, 180), metavar=('W', 'H'), help='images are shrunk to')
    flags.add_argument('--lr', type=float, default=5e-4, help='highest learning rate, of every network')
    flags.add_argument('--cost-crop', type=int, default=128, help='side of the crop whose step is timed')
    flags.add_argument('--cost-batch', type=int, default=4, help='images in the batch whose step is timed')
    flags.add_argument('--table', action='store_true', help='only print what --json holds')
    flags.add_argument('--one', nargs=2, metavar=('NETWORK', 'SEED'), help=argparse.SUPPRESS)
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the cost, train what is missing, print the table."""
    args = build_parser().parse_args(argv)
    if args.json is None:
        raise SystemExit('error: --json FILE is needed: results are kept there, run by run')
    args.size = tuple(args.size)
    if args.one:
        result = train(args, args.one[0], int(args.one[1]))
        content = read(args.json)
        content['runs'].append(result)
        _write_whole(args.json, json.dumps(content | {'machine': machine('cpu')}, indent=1))
        return
    if not args.table:
        shrink(args.data, args.size)
        measure_cost(args)
        run_all(args)
    print(table(read(args.json), args.cost_crop))


if __name__ == '__main__':
    main()

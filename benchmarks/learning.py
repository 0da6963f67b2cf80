"""Who learns most in equal CPU time: VOLO-nano beside small and large networks of MMSegmentation, one recipe for all.

    python benchmarks/learning.py --data-root data/camvid --ignore-labels 11 --json learning.json --cpu-seconds 300

``--data-root`` has images/{train,val}, annotations/{train,val} and classes.txt (or ``--classes``). ``--config`` names
another config for data and augmentation, such as volo-nano_upernet_1xb4-1200_toyscapes-256x256 for Toyscapes. Images
are read as that config says; its schedule, optimizer and network are not used.

Recipe: from random weights, AdamW, weight decay 0.01 on matrices, gradients clipped to norm 1, linear warm-up over 5 %
of the budget and linear decay to 0, a softmax cross entropy of each head (``resized_cross_entropy`` of this package,
weights of the heads as in the network's config). The budget is CPU time of the process, loading and augmentation
included, or with ``--iters`` a number of iterations. Each network trains at each rate of ``--lr`` and the table has the
rate with the highest mIoU; that is measured with the last weights, over the whole validation split.

Each run is a process of its own, and its line goes into ``--json`` when it ends; a run that is there already is
skipped. Inference time: one image of 512x1024, side by side, as a share of Fast-SCNN's. Networks of MMSegmentation are
its config files without pretrained weights; it has no ENet, and ERFNet is its nearest relative.
"""

import argparse
import json
import logging
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmseg
import torch
from _measure import Report, machine, parser, settings, write_whole
from mmengine.config import Config, ConfigDict
from mmengine.evaluator import Evaluator
from mmengine.registry import init_default_scope
from mmengine.runner import Runner, set_random_seed
from mmseg.registry import DATASETS, MODELS
from torch import Tensor, nn

import volo_seg.register  # noqa: F401
from volo_seg.config.load import datasets, load_config, set_data_root
from volo_seg.config.sizes import set_crop
from volo_seg.engine.launch import replace_types
from volo_seg.engine.schedule import set_batch_size
from volo_seg.models.losses.resized_cross_entropy import resized_cross_entropy

THEIRS = Path(mmseg.__file__).parent / '.mim' / 'configs'
FOLDERS = 'volo-nano_upernet_1xb4-20k_folders-256x256'
BASELINE = 'Fast-SCNN'
NETWORKS = {
    'nano': FOLDERS,
    'Fast-SCNN': 'fastscnn/fast_scnn_8xb4-160k_cityscapes-512x1024.py',
    'ERFNet': 'erfnet/erfnet_fcn_4xb4-160k_cityscapes-512x1024.py',
    'SegFormer-B0': 'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
    'Swin-T + UPerNet': 'swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py',
}
WARM_UP, CLIP, DECAY = 0.05, 1.0, 0.01


def network(name: str, config: Config) -> nn.Module:
    """The network ``name`` for the data of ``config``, with random weights."""
    path = NETWORKS[name]
    model = (Config.fromfile(THEIRS / path) if path.endswith('.py') else load_config(path)).model.to_dict()
    model.update(pretrained=None, test_cfg=dict(mode='whole'))
    model['backbone']['init_cfg'] = None
    model['data_preprocessor'] = config.model.data_preprocessor.to_dict()
    auxiliary = model.get('auxiliary_head') or []
    for head in (model['decode_head'], *(auxiliary if isinstance(auxiliary, list) else [auxiliary])):
        head['num_classes'] = config.class_count
    built = MODELS.build(ConfigDict(replace_types(model, {'SyncBN': 'BN'})))
    built.init_weights()
    return built


def data_config(args: argparse.Namespace) -> Config:
    """The config of data and augmentation, with the flags applied."""
    config = load_config(args.config)
    if args.data_root:
        set_data_root(config, args.data_root)
    if args.crop:
        set_crop(config, tuple(args.crop))
    set_batch_size(config, args.batch)
    for split in ('train', 'val'):
        loader = config[f'{split}_dataloader']
        loader.update(num_workers=0, persistent_workers=False)
        for _, dataset in datasets(loader.dataset, split):
            dataset.update({key: value for key in ('classes', 'ignore_labels') if (value := getattr(args, key))})
    config.class_count = len(DATASETS.build({**dataset, 'lazy_init': True, 'pipeline': []}).metainfo['classes'])
    return config


def step_loss(model: Any, inputs: Tensor, labels: Tensor) -> Tensor:
    """The weighted sum of the cross entropies of all heads: ``inputs`` (B, 3, H, W), ``labels`` (B, H, W)."""
    features = model.extract_feat(inputs)
    auxiliary = getattr(model, 'auxiliary_head', None) or []  # a list where the config names none
    total = inputs.new_zeros(())
    for head in (model.decode_head, *(auxiliary if isinstance(auxiliary, (list, nn.ModuleList)) else [auxiliary])):
        loss, count, _ = resized_cross_entropy(head.forward(features), labels, align_corners=head.align_corners)
        total = total + head.loss_decode.loss_weight * loss / count.clamp_min(1)
    return total


def train(args: argparse.Namespace, name: str, rate: float, seed: int) -> dict[str, Any]:
    """Train and evaluate once; the figures of the last weights."""
    torch.set_num_threads(args.threads)
    set_random_seed(seed)
    config = data_config(args)
    loader = Runner.build_dataloader(config.train_dataloader, seed=seed)
    model = network(name, config).train()
    parameters = [[p for p in model.parameters() if (p.ndim > 1) is decays] for decays in (True, False)]
    groups = [dict(params=parameters[0]), dict(params=parameters[1], weight_decay=0.0)]
    optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=DECAY, fused=True)
    batches, count, start = iter(loader), 0, time.process_time()
    while (used := count / args.iters if args.iters else (time.process_time() - start) / args.cpu_seconds) < 1:
        for group in optimizer.param_groups:
            group['lr'] = rate * max(1e-3, min(used / WARM_UP, (1 - used) / (1 - WARM_UP)))
        batch = model.data_preprocessor(next(batches), True)
        labels = torch.stack([sample.gt_sem_seg.data[0] for sample in batch['data_samples']])
        loss = step_loss(model, batch['inputs'], labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        count += 1
    taken = time.process_time() - start
    scores = evaluate(model.eval(), config)
    return {
        **identity(args, name, rate, seed),
        'iterations': count,
        'cpu_s': taken,
        'mIoU': scores['mIoU'],
        'aAcc': scores['aAcc'],
        'classes': {key.removeprefix('IoU/'): value for key, value in scores.items() if key.startswith('IoU/')},
        'parameters': sum(p.numel() for p in model.parameters()),
    }


@torch.no_grad()
def evaluate(model: Any, config: Config) -> dict[str, float]:
    """The scores over the validation split."""
    loader = Runner.build_dataloader(config.val_dataloader, seed=0)
    evaluator = Evaluator(dict(type='ExactIoUMetric', tables=False))
    evaluator.dataset_meta = loader.dataset.metainfo
    for batch in loader:
        evaluator.process(data_samples=model.val_step(batch), data_batch=batch)
    return evaluator.evaluate(len(loader.dataset))


def identity(args: argparse.Namespace, name: str, rate: float, seed: int) -> dict[str, Any]:
    """What makes a run this run and no other."""
    budget = {'iters': args.iters} if args.iters else {'cpu_seconds': args.cpu_seconds}
    data = {'config': args.config, 'data_root': args.data_root, 'batch': args.batch, 'crop': args.crop}
    return {'network': name, 'lr': rate, 'seed': seed, **budget, **data}


def read(args: argparse.Namespace) -> dict[str, Any]:
    """What ``--json`` holds so far."""
    return json.loads(args.json.read_text()) if args.json.is_file() else {'runs': [], 'inference': {}}


def runs_of(args: argparse.Namespace, name: str, rate: float) -> list[dict[str, Any]]:
    """The runs of ``name`` at ``rate`` that ``--json`` holds, of any seed."""
    wanted = identity(args, name, rate, 0)
    del wanted['seed']
    return [run for run in read(args)['runs'] if wanted.items() <= run.items()]


def run_all(args: argparse.Namespace) -> None:
    """Train what is missing, each in a process of its own: first one seed of every network and rate, then the next."""
    for seed in range(args.seeds):
        for name, rate in ((name, rate) for name in args.networks for rate in args.lr):
            if all(run['seed'] != seed for run in runs_of(args, name, rate)):
                print(f'{time.strftime("%H:%M:%S")} {name}, rate {rate:g}, seed {seed}', flush=True)
                flags = [*sys.argv[1:], '--one', name, str(rate), str(seed)]
                subprocess.run([sys.executable, __file__, *flags], check=True)


def measure_inference(args: argparse.Namespace) -> None:
    """Time of a forward pass of every network as a share of the baseline's; kept in ``--json``."""
    content = read(args)
    if set(args.networks) <= set(content['inference']):
        return
    image, report = torch.randn(1, 3, 512, 1024), Report('Inference, 512x1024', settings(args))
    names, config = dict.fromkeys([BASELINE, *args.networks]), data_config(args)
    models: Any = {name: network(name, config).eval() for name in names}
    with torch.no_grad():
        peers = {name: (lambda m=model: m(image, mode='tensor')) for name, model in models.items()}
        rows = report.compare('image', peers)
    content['inference'] |= {row.peer: 1 / row.ratio[1] for row in rows}
    write_whole(args.json, json.dumps(content, indent=1))


def table(args: argparse.Namespace) -> str:
    """A line for each network at its best rate: median mIoU of its seeds, and the run of that mIoU."""
    inference, lines, classes = read(args)['inference'], [], []
    for name in args.networks:
        by_rate = [sorted(runs, key=lambda run: run['mIoU']) for rate in args.lr if (runs := runs_of(args, name, rate))]
        runs = max(by_rate, key=lambda runs: runs[len(runs) // 2]['mIoU'])
        run, classes = runs[len(runs) // 2], list(runs[0]['classes'])
        seeds = f'{len(runs)}' if len(runs) == 1 else f'{len(runs)} ({runs[0]["mIoU"]:.1f}-{runs[-1]["mIoU"]:.1f})'
        cells = [
            f'{run["parameters"] / 1e6:.2f}',
            f'{run["lr"]:g}',
            str(run['iterations']),
            f'{run["cpu_s"]:.0f}',
            seeds,
        ]
        scores = [run['mIoU'], run['aAcc'], *(run['classes'].get(label, float('nan')) for label in classes)]
        cells += [*(f'{score:.1f}' for score in scores), f'{inference.get(name, float("nan")):.2f}']
        lines.append(f'| {name} | ' + ' | '.join(cells) + ' |')
    head = f'| network | M parameters | rate | iterations | CPU s | seeds | mIoU | accuracy | {" | ".join(classes)} |'
    return '\n'.join([f'{head} inference |', '|---' * (9 + len(classes)) + '|', *lines])


def build_parser() -> argparse.ArgumentParser:
    """The shared flags and those of the training."""
    flags = parser(__doc__)
    flags.add_argument('--config', default=FOLDERS, help='config of data and augmentation (default: folders, nano)')
    flags.add_argument('--data-root', help='folder of the data set, instead of the one in the config')
    flags.add_argument('--classes', nargs='+', help='class names, instead of classes.txt')
    flags.add_argument('--ignore-labels', nargs='+', type=int, help='label values that are neither trained nor scored')
    flags.add_argument('--networks', nargs='+', default=list(NETWORKS), choices=NETWORKS, help='default: all')
    flags.add_argument('--cpu-seconds', type=float, default=300.0, help='CPU time of a run (default 300)')
    flags.add_argument('--iters', type=int, help='iterations of a run, instead of CPU time')
    flags.add_argument('--lr', nargs='+', type=float, default=[1e-3, 2e-3, 4e-3], help='highest rates (1e-3 2e-3 4e-3)')
    flags.add_argument('--seeds', type=int, default=1, help='runs of each network and rate (default 1)')
    flags.add_argument('--batch', type=int, default=4, help='images in a batch (default 4)')
    flags.add_argument('--crop', type=int, nargs=2, metavar=('H', 'W'), help='training crop (default: of the config)')
    flags.add_argument('--one', nargs=3, metavar=('NETWORK', 'RATE', 'SEED'), help=argparse.SUPPRESS)
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is missing, measure inference, print the table."""
    args = build_parser().parse_args(argv)
    if args.json is None:
        raise SystemExit('error: --json FILE is needed: results are kept there, run by run')
    init_default_scope('mmseg')
    logging.disable(logging.INFO)
    if args.one:
        name, rate, seed = args.one
        result, content = train(args, name, float(rate), int(seed)), read(args)
        content['runs'].append(result)
        write_whole(args.json, json.dumps(content | {'machine': machine('cpu')}, indent=1))
        return
    run_all(args)
    measure_inference(args)
    print(table(args))


if __name__ == '__main__':
    main()

"""Measure latency, throughput and memory of a segmentor by stage, and of exported files beside it."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volo_seg.commands.flags import add_config_flags, make_parser
from volo_seg.errors import UserError
from volo_seg.io import atomic_write, check_writable, find_files

if TYPE_CHECKING:
    from mmengine.config import Config

    from volo_seg.inference.base import BasePredictor
    from volo_seg.inference.stage_timing import Summary


def build_parser() -> argparse.ArgumentParser:
    """The flags of ``volo-seg benchmark``."""
    parser = make_parser('benchmark', __doc__)
    add_config_flags(parser)
    parser.add_argument(
        '--checkpoint', default='none', help='trained weights, a file or a name (default none: random, as fast)'
    )
    parser.add_argument(
        '--exported', '--onnx', nargs='+', default=[], metavar='FILE', help='measure these exported files as well'
    )
    parser.add_argument('--images', nargs='+', metavar='PATH', help='image files or folders (default: one generated)')
    parser.add_argument('--size', type=int, nargs=2, metavar=('H', 'W'), help='size of that image (default: crop size)')
    parser.add_argument('--batch-size', type=int, default=1, metavar='N', help='images in a batch (default 1)')
    parser.add_argument('--repeat', type=int, default=10, metavar='N', help='rounds over the images (default 10)')
    parser.add_argument('--warm-up', type=int, default=1, metavar='N', help='batches before measuring (default 1)')
    parser.add_argument('--device', default='auto', help='auto (default), cpu, cuda, cuda:N')
    parser.add_argument('--threads', type=int, metavar='N', help='CPU threads (default: that of PyTorch)')
    parser.add_argument('--json', metavar='OUT', help='also write the figures to this JSON file')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; see ``volo-seg benchmark --help``."""
    args = build_parser().parse_args(argv)
    check(args)
    os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # the profiler that counts memory logs its steps
    import torch

    from volo_seg.config.load import load_config
    from volo_seg.inference.stage_timing import measure

    if args.threads:
        torch.set_num_threads(args.threads)
    config = load_config(args.config, args.cfg_options)
    predictors = load_predictors(args, config)
    with tempfile.TemporaryDirectory() as folder:
        images = find_images(args, config, Path(folder))
        found = measure(predictors, images, batch_size=args.batch_size, repeat=args.repeat, warm_up=args.warm_up)
    about = describe(args, predictors, images)
    print(table(about, found))
    if args.json:
        content = {**about, 'results': {name: as_json(summary) for name, summary in found.items()}}
        atomic_write(args.json, (json.dumps(content, indent=1) + '\n').encode())
    return 0


def check(args: argparse.Namespace) -> None:
    """Raise UserError if a number is out of range, or two flags contradict each other."""
    for flag, least in (('batch_size', 1), ('repeat', 1), ('warm_up', 0), ('threads', 1)):
        value = getattr(args, flag)
        if value is not None and value < least:
            raise UserError(f'--{flag.replace("_", "-")} {value} must be {least} or more')
    if args.size and min(args.size) < 1:
        raise UserError(f'--size {args.size[0]} {args.size[1]} must be height and width in pixels')
    if args.size and args.images:
        raise UserError('--size is for the generated image; leave it out with --images')
    if args.json:
        check_writable(Path(args.json).parent)


def load_predictors(args: argparse.Namespace, config: Config) -> dict[str, BasePredictor]:
    """The PyTorch predictor, then one for each exported file."""
    import torch

    from volo_seg.inference import Predictor
    from volo_seg.inference.exported_predictor import PREDICTORS, exported_predictor
    from volo_seg.inference.loaded_model import load_model

    network = load_model(config.copy(), args.checkpoint)
    predictors: dict[str, BasePredictor] = {
        'PyTorch': Predictor(network, device=args.device, batch_size=args.batch_size)
    }
    for path in args.exported:
        if Path(path).suffix not in PREDICTORS:
            raise UserError(f'{path!r} is not an exported file; give one that ends in {", ".join(PREDICTORS)}')
        predictors[Path(path).name] = exported_predictor(path)(
            path, device=args.device, batch_size=args.batch_size, threads=torch.get_num_threads()
        )
    return predictors


def find_images(args: argparse.Namespace, config: Config, folder: Path) -> list[Path]:
    """The images to measure on: those of ``--images``, or a batch of one image generated in ``folder``.

    Raises:
        UserError: A folder has no images.
    """
    from volo_seg.image_files import SUFFIXES
    from volo_seg.inference.stage_timing import generated_image

    if not args.images:
        size = args.size or config.get('crop_size') or (512, 512)
        return [generated_image(folder, (size[0], size[1]))] * args.batch_size
    found: list[Path] = []
    for text in args.images:
        path = Path(text)
        inside = find_files(path, suffixes=SUFFIXES) if path.is_dir() else [path]
        if not inside:
            raise UserError(f'--images {text!r} holds no image; give images or a folder with some')
        found += inside
    return found


def describe(args: argparse.Namespace, predictors: Mapping[str, Any], images: Sequence[Path]) -> dict[str, Any]:
    """The configuration of the measurement."""
    import platform

    import torch

    device = predictors['PyTorch'].device
    gpu = torch.cuda.get_device_name(device) if device.type == 'cuda' else None
    return {
        'config': Path(args.config).stem,
        'checkpoint': args.checkpoint,
        'device': gpu or f'CPU, {torch.get_num_threads()} of {os.cpu_count()} threads',
        'python': platform.python_version(),
        'torch': str(torch.__version__),
        'images': len(images),
        'batch_size': args.batch_size,
        'repeat': args.repeat,
    }


def as_json(summary: Summary) -> dict[str, Any]:
    """A summary in milliseconds and MiB."""
    return {
        'batches': summary.batches,
        'latency_ms': {'p50': 1e3 * summary.p50, 'p95': 1e3 * summary.p95},
        'images_per_second': summary.images_per_second,
        'megapixels_per_second': summary.megapixels_per_second,
        'peak_memory_mib': None if summary.peak_memory is None else summary.peak_memory / 2**20,
        'peak_memory_counted': summary.memory_counted,
        'stages': {
            name: {'p50_ms': 1e3 * p50, 'p95_ms': 1e3 * p95, 'share': share}
            for name, (p50, p95, share) in summary.stages.items()
        },
    }


def table(about: Mapping[str, Any], found: Mapping[str, Summary]) -> str:
    """The figures as text: one line per predictor, and one per stage."""
    wide = max(12, *map(len, found)) + 2
    lines = [
        f'{about["config"]}, {about["device"]}, torch {about["torch"]}: {about["repeat"]} x {about["images"]} images '
        f'in batches of {about["batch_size"]}',
        f'{"":<{wide}}{"p50":>10}{"p95":>10}{"images/s":>10}{"Mpixel/s":>10}{"MiB":>8}',
    ]
    for name, one in found.items():
        memory = '-' if one.peak_memory is None else f'{one.peak_memory / 2**20:.0f}'
        lines.append(
            f'{name:<{wide}}{1e3 * one.p50:>7.1f} ms{1e3 * one.p95:>7.1f} ms'
            f'{one.images_per_second:>10.2f}{one.megapixels_per_second:>10.2f}{memory:>8}'
        )
        for stage, (p50, p95, share) in one.stages.items():
            lines.append(f'  {stage:<{wide - 2}}{1e3 * p50:>7.1f} ms{1e3 * p95:>7.1f} ms{100 * share:>9.1f}%')
    lines.append('times are per batch')
    lines += [f'MiB of {name}: {one.memory_counted}' for name, one in found.items()]
    return '\n'.join(lines)

"""Latency and memory of exported files: PyTorch, ONNX Runtime, OpenVINO, torch.export and TorchScript, side by side.

    python benchmarks/runtimes.py [--rounds 5] [--sizes 512x1024 1024x2048] [--scenes 12]

The networks are nano with the weights that ship, and d1 of the Cityscapes config with random weights. Each is exported
once; int8 files are calibrated on generated scenes, and the mIoU of nano's is that of ``--scenes`` others. Ratios are
those of PyTorch in float32. bf16 is autocast of PyTorch, and OpenVINO's hint, where the CPU has it. Memory is the
growth of the resident memory in the first run of a fresh process, as a share of PyTorch's.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from _measure import Report, parser, settings

from volo_seg.commands import run
from volo_seg.config.load import load_config
from volo_seg.export.formats import FORMATS, export_file
from volo_seg.export.onnx_export import export_onnx
from volo_seg.export.quantization import calibration_images, quantize
from volo_seg.export.whole_image import WholeImage
from volo_seg.inference.loaded_model import load_model
from volo_seg.inference.onnx_predictor import open_session
from volo_seg.inference.openvino_predictor import compile_openvino, read_openvino
from volo_seg.inference.stage_timing import resident_growth
from volo_seg.inference.torch_program_predictor import load_program, runnable

NETWORKS = {
    'nano': ('volo-nano_upernet_1xb4-6k_toyscapes-256x256', 'volo-nano_toyscapes'),
    'd1': ('volo-d1_upernet_8xb2-160k_cityscapes-512x1024', 'none'),
}
FILES = {'onnx': '.onnx', 'onnx int8': '-int8.onnx', **{name: kind.suffix for name, kind in FORMATS.items()}}


def export(name: str, folder: Path, scenes: Path) -> None:
    """Write all files of a network."""
    config, checkpoint = NETWORKS[name]
    network = load_model(load_config(config), checkpoint)
    export_onnx(network, folder / f'{name}.onnx')
    for kind, found in FORMATS.items():
        export_file(network, folder / f'{name}{found.suffix}', kind=kind)
    images, held_back = calibration_images(scenes, count=16)
    changed = quantize(folder / f'{name}.onnx', folder / f'{name}-int8.onnx', images, held_back=held_back)
    print(f'{name}: int8 changes {100 * changed:.2f}% of the labels of {len(held_back)} scenes', flush=True)


def peer(name: str, what: str, folder: Path, image: torch.Tensor, threads: int) -> Callable[[], Any]:
    """A function that runs ``image`` (1, 3, H, W) through a network in a runtime."""
    if what.startswith('PyTorch'):
        model = WholeImage(load_model(load_config(NETWORKS[name][0]), NETWORKS[name][1]).model).eval()
        return lambda: autocast(model, image, enabled=what.endswith('bf16'))
    kind = what.removesuffix(' bf16')
    path, values = folder / f'{name}{FILES[kind]}', image.numpy()
    if kind.startswith('onnx'):
        session = open_session(path, device='cpu', threads=threads)
        return lambda: session.run(None, {'image': values})
    if kind == 'openvino':
        precision = 'bf16' if what.endswith('bf16') else 'f32'
        compiled = compile_openvino(read_openvino(path)[0], threads=threads, precision=precision)
        return lambda: compiled([values])
    program = runnable(load_program(path)[0])
    return lambda: autocast(program, image, enabled=False)


@torch.inference_mode()
def autocast(model: Any, image: torch.Tensor, *, enabled: bool) -> Any:
    """Run a module of PyTorch."""
    with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
        return model(image)


def memory(name: str, what: str, folder: Path, size: tuple[int, int]) -> float:
    """MiB by which the resident memory of a fresh process grows in the first run."""
    words = [name, what, str(folder), *map(str, size)]
    done = subprocess.run([sys.executable, __file__, '--child', *words], check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def child(name: str, what: str, folder: str, height: str, width: str) -> None:
    """Print the growth for :func:`memory`."""
    torch.set_num_threads(1)
    run_once = peer(name, what, Path(folder), torch.randn(1, 3, int(height), int(width)), 1)
    print((resident_growth(run_once) or 0) / 2**20)


def main(argv: Sequence[str] | None = None) -> None:
    """Export, measure, print the tables."""
    flags = parser(__doc__)
    flags.add_argument('--networks', nargs='+', default=list(NETWORKS), choices=NETWORKS)
    flags.add_argument('--sizes', nargs='+', default=['512x1024', '1024x2048'], metavar='HxW')
    flags.add_argument('--scenes', type=int, default=12, help='scenes for the mIoU of nano (default 12)')
    flags.add_argument('--child', nargs=5, help=argparse.SUPPRESS)
    args = flags.parse_args(argv)
    if args.child:
        child(*args.child)
        return
    report = Report('Runtimes', settings(args))
    peers = ['PyTorch', 'onnx', 'onnx int8', *FORMATS]
    if torch.backends.cpu.get_cpu_capability() and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        peers += ['PyTorch bf16', 'openvino bf16']
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        run('toyscapes', [str(folder / 'scenes'), '--train', '32', '--val', str(args.scenes), '--seed', '7'])
        for name in args.networks:
            export(name, folder, folder / 'scenes' / 'leftImg8bit' / 'train')
            for size in (tuple(map(int, pair.split('x'))) for pair in args.sizes):
                image = torch.randn(1, 3, *size)
                shares = {what: memory(name, what, folder, size) for what in peers}
                notes = {what: {'memory': f'{shares[what] / shares["PyTorch"]:.2f}'} for what in peers}
                functions = {what: peer(name, what, folder, image, report.settings.threads) for what in peers}
                case = f'{name}, {size[0]}x{size[1]}'
                report.compare(case, functions, notes=notes, memory=False, clock='wall')
        if 'nano' in args.networks:
            for what in ('onnx', 'onnx int8', 'openvino'):
                print(f'mIoU of nano, {what}, on {args.scenes} scenes:', flush=True)
                words = [NETWORKS['nano'][0], str(folder / f'nano{FILES[what]}'), '--data-root', str(folder / 'scenes')]
                run('test', words)
    report.finish()


if __name__ == '__main__':
    main()

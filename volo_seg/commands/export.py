"""Export a checkpoint as ONNX or for another runtime, for images of any size, after comparing it with PyTorch."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volo_seg.commands.flags import add_config_flags, make_parser
from volo_seg.errors import UserError
from volo_seg.io import check_writable

if TYPE_CHECKING:
    from mmengine.config import Config


SUFFIXES = {'onnx': '.onnx', 'openvino': '.xml', 'pt2': '.pt2', 'torchscript': '.ts', 'tensorrt': '.onnx'}
"""The formats, and how their files end."""


def build_parser() -> argparse.ArgumentParser:
    """The flags of ``volo-seg export``."""
    parser = make_parser('export', __doc__)
    add_config_flags(parser)
    parser.add_argument('checkpoint', help='trained weights: a file, a name of volo-seg weights list, or none')
    parser.add_argument('out', metavar='OUT', help='the file to write, such as model.onnx')
    parser.add_argument(
        '--format',
        choices=SUFFIXES,
        help='default: as OUT ends (.onnx, .xml, .pt2, .ts); tensorrt is ONNX, compared in TensorRT',
    )
    parser.add_argument('--normalize', action='store_true', help='include normalization: the input is uint8 BGR')
    parser.add_argument('--argmax', action='store_true', help='include the argmax: the output is labels')
    parser.add_argument('--int8', metavar='FOLDER', help='also write OUT-int8.onnx, calibrated on images of FOLDER')
    parser.add_argument(
        '--max-changed',
        type=float,
        default=0.05,
        metavar='SHARE',
        help='refuse the int8 file if more of the labels of other images of FOLDER change (default 0.05)',
    )
    parser.add_argument('--calibration-images', type=int, default=32, metavar='N', help='of FOLDER (default 32)')
    parser.add_argument('--evaluate', action='store_true', help='evaluate the files on the test data of the config')
    parser.add_argument('--data-root', help='folder of the data set, instead of the one in the config')
    parser.add_argument('--overwrite', action='store_true', help='replace existing files')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Export; see ``volo-seg export --help``."""
    args = build_parser().parse_args(argv)
    paths = targets(args)
    from volo_seg.config.load import load_config, set_data_root
    from volo_seg.export.formats import export_file
    from volo_seg.export.onnx_export import export_onnx
    from volo_seg.export.parity import table
    from volo_seg.export.quantization import calibration_images
    from volo_seg.inference.loaded_model import load_model

    kind = file_format(args)
    images, held_back = calibration_images(args.int8, count=args.calibration_images) if args.int8 else ([], [])
    config = load_config(args.config, args.cfg_options)
    if args.data_root:
        set_data_root(config, args.data_root)
    start = time.perf_counter()
    export: Callable[..., Any] = export_onnx
    if kind == 'tensorrt':
        export = partial(export_onnx, provider='TensorrtExecutionProvider')
    elif kind != 'onnx':
        export = partial(export_file, kind=kind)
    with busy('exporting, a minute or more'):
        found = export(
            load_model(config.copy(), args.checkpoint),
            paths['float32'],
            normalize=args.normalize,
            argmax=args.argmax,
            source={'config': Path(args.config).stem, 'checkpoint': Path(args.checkpoint).name},
        )
    print(f'{kind} against PyTorch:\n{table(found)}')
    print(f'{paths["float32"]}: {_mebibytes(paths["float32"])}, {time.perf_counter() - start:.0f} s')
    if args.argmax and (config.model.get('test_cfg') or {}).get('mode') == 'slide':
        print('the config uses sliding windows, which need logits: a file with --argmax takes whole images')
    if images:
        write_int8(paths, images, held_back, most=args.max_changed)
    if args.evaluate:
        evaluate(paths, config)
    return 0


@contextlib.contextmanager
def busy(what: str) -> Iterator[None]:
    """Show a spinner with the elapsed time."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    with Progress(SpinnerColumn(), TextColumn(what), TimeElapsedColumn(), transient=True) as progress:
        progress.add_task(what)
        yield


def file_format(args: argparse.Namespace) -> str:
    """The format by ``--format``, or by the suffix of the file.

    Raises:
        UserError: Neither names one.
    """
    found = args.format or {suffix: name for name, suffix in reversed(SUFFIXES.items())}.get(Path(args.out).suffix)
    if not found:
        raise UserError(f'{args.out!r} ends in none of {", ".join(dict.fromkeys(SUFFIXES.values()))}: correct the name')
    return found


def targets(args: argparse.Namespace) -> dict[str, Path]:
    """The files to write: ``float32`` and, with ``--int8``, ``int8``.

    Raises:
        UserError: A file exists, has another suffix, or a flag has a bad value.
    """
    out, kind = Path(args.out), file_format(args)
    if out.suffix != SUFFIXES[kind]:
        raise UserError(
            f'{args.out!r} does not end in {SUFFIXES[kind]}, as --format {kind} does: give a name that does'
        )
    if args.int8 and kind != 'onnx':
        raise UserError(f'--int8 is for --format onnx, and the format is {kind}: leave one of them out')
    if not 0 <= args.max_changed <= 1:
        raise UserError(f'--max-changed {args.max_changed:g} is not a share: give a number in [0, 1]')
    if args.calibration_images < 1:
        raise UserError(f'--calibration-images {args.calibration_images} is below 1: give a positive number')
    paths = {'float32': out}
    if args.int8:
        paths['int8'] = out.with_name(f'{out.stem}-int8.onnx')
    if kind == 'openvino':
        paths['weights'] = out.with_suffix('.bin')
    there = [str(path) for path in paths.values() if path.exists()]
    if there and not args.overwrite:
        raise UserError(f'{there[0]!r} exists already: add --overwrite or give another name')
    check_writable(out.parent)
    return paths


def write_int8(paths: Mapping[str, Path], images: Sequence[Path], held_back: Sequence[Path], *, most: float) -> None:
    """Quantize, and print the share of labels of the images ``held_back`` that stay; see :func:`.quantize`."""
    from volo_seg.export.quantization import quantize

    start = time.perf_counter()
    changed = quantize(paths['float32'], paths['int8'], images, held_back=held_back, most=most)
    print(
        f'{paths["int8"]}: {_mebibytes(paths["int8"])}, {time.perf_counter() - start:.0f} s, calibrated on '
        f'{len(images)} images; {100 * (1 - changed):.2f}% of the labels of {len(held_back)} others equal those in '
        'float32'
    )


def evaluate(paths: Mapping[str, Path], config: Config) -> None:
    """Evaluate the files side by side on the test data of ``config`` and print a table."""
    from volo_seg.export.accuracy import LabelledImages, score
    from volo_seg.inference.exported_predictor import exported_predictor

    predictors: dict[str, Any] = {
        name: exported_predictor(path)(path, device='cpu') for name, path in paths.items() if name != 'weights'
    }
    scores = score(predictors, LabelledImages(config))
    base = scores['float32']
    print(f'{base.images} test images:')
    print(f'{"":<10}{"mIoU":>8}{"aAcc":>8}{"file":>12}{"median":>10}{"speed":>8}')
    for name, found in scores.items():
        print(
            f'{name:<10}{100 * found.mean_iou:>8.2f}{100 * found.pixel_accuracy:>8.2f}{_mebibytes(paths[name]):>12}'
            f'{1000 * found.seconds:>7.0f} ms{base.seconds / found.seconds:>7.2f}x'
        )


def _mebibytes(path: Path) -> str:
    return f'{path.stat().st_size / 2**20:.1f} MiB'

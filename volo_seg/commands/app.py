"""Serve a page that segments images in the browser, with one checkpoint or several side by side."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from volo_seg.errors import UserError

EXAMPLES = 24


def build_parser() -> argparse.ArgumentParser:
    """The flags of ``volo-seg app``."""
    parser = argparse.ArgumentParser(prog='volo-seg app', description=__doc__)
    parser.add_argument(
        'checkpoints',
        nargs='+',
        metavar='CHECKPOINT',
        help='.pth, .safetensors, .onnx, or a published folder; NAME=CHECKPOINT chooses what the page calls it',
    )
    parser.add_argument('--config', nargs='+', default=[], help='config of the checkpoints: one for all, or one each')
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda, cuda:1 (default auto)')
    parser.add_argument('--host', default='127.0.0.1', help='address to listen on (default: this machine alone)')
    parser.add_argument('--port', type=int, default=7860, help='port, 0 for any that is free (default 7860)')
    parser.add_argument('--examples', type=Path, metavar='FOLDER', help='folder whose images the page offers')
    parser.add_argument(
        '--max-pixels', type=int, default=2**24, metavar='N', help='largest image in pixels (default 4096 x 4096)'
    )
    parser.add_argument(
        '--max-upload', type=float, default=20.0, metavar='MB', help='largest image file in MB (default 20)'
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Open the checkpoints and serve the page; see ``volo-seg app --help``."""
    args = build_parser().parse_args(argv)
    max_bytes = check_limits(args.max_pixels, args.max_upload)
    examples = find_examples(args.examples) if args.examples else []
    from volo_seg.app import open_models
    from volo_seg.app.server import check_gradio, serve

    check_gradio()
    models = open_models(args.checkpoints, configs=args.config, device=args.device)

    def announce(address: str) -> None:
        print(f'{", ".join(model.name for model in models)}: open {address} in a browser (Ctrl-C stops)', flush=True)
        if args.host not in ('127.0.0.1', 'localhost', '::1'):
            print('note: whoever reaches this address can use the page; there is no password', flush=True)

    serve(
        models,
        host=args.host,
        port=args.port,
        examples=examples,
        max_pixels=args.max_pixels,
        max_bytes=max_bytes,
        announce=announce,
    )
    return 0


def check_limits(max_pixels: int, max_upload: float) -> int:
    """``max_upload`` in bytes.

    Raises:
        UserError: A limit is not above 0.
    """
    if max_pixels < 1:
        raise UserError(f'--max-pixels {max_pixels} must be 1 or more')
    if not math.isfinite(max_upload) or max_upload * 2**20 < 1:
        raise UserError(f'--max-upload {max_upload:g} must be a number of MB above 0')
    return int(max_upload * 2**20)


def find_examples(folder: Path) -> list[Path]:
    """The first images in ``folder`` and below, by name.

    Raises:
        UserError: There are none.
    """
    from volo_seg.imageio import SUFFIXES

    found = sorted(p for p in folder.rglob('*') if p.suffix.lower() in SUFFIXES and p.is_file())
    if not found:
        raise UserError(f'--examples {str(folder)!r} holds no images')
    return found[:EXAMPLES]

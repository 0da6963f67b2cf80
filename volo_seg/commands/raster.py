"""Segment an image of any size, such as a GeoTIFF, which is read and written by windows."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from volo_seg.commands.flags import add_config_flags, make_parser
from volo_seg.errors import UserError, exit_on_signal

NOTES = """
The Resize of the test pipeline and the EXIF orientation are not applied; the normalization of model.data_preprocessor
is. Windows are placed as in sliding inference, and the labels are the same as in memory. --memory bounds everything
except the network itself, whose memory depends on its windows. Logits that wait for overlapping windows and do not fit
go to a temporary file beside OUT.tif. CRS and transform are kept, also those of a world file. Pixels without a value
(nodata, a mask or IN.msk, full transparency, NaN) get 255, the nodata of the output (65535 with more than 255 classes).
Other files beside IN (.ovr, .aux.xml) are not read, nor are formats that name other files, such as VRT.
"""


def build_parser() -> argparse.ArgumentParser:
    """The flags of ``volo-seg raster``."""
    parser = make_parser('raster', __doc__, notes=NOTES)
    add_config_flags(parser)
    parser.add_argument('checkpoint', help='trained weights: a file, or a name of volo-seg weights list')
    parser.add_argument('source', metavar='IN', help='an image: TIFF, GeoTIFF, JPEG 2000, JPEG, PNG, WebP or BMP')
    parser.add_argument('target', metavar='OUT.tif', help='labels, as a tiled, compressed TIFF with palette and names')
    parser.add_argument(
        '--kinds',
        nargs='+',
        default=['labels'],
        metavar='KIND',
        help='labels (default), confidence (percent, in OUT_confidence.tif), or both',
    )
    parser.add_argument(
        '--crop-size',
        type=int,
        nargs='+',
        metavar='PIXELS',
        help='window: a side, or height and width (default: that of the config)',
    )
    parser.add_argument(
        '--stride',
        type=int,
        nargs='+',
        metavar='PIXELS',
        help='from window to window: one number, or down and across (default: that of the config, or 3/4 of a window)',
    )
    parser.add_argument('--weights', help='uniform, hann or gaussian; the latter two hide seams (default: the config)')
    parser.add_argument('--batch-windows', help="windows at a time, or 'auto' (default: the config)")
    parser.add_argument('--memory', type=float, default=1024, metavar='MIB', help='budget, see below (default 1024)')
    parser.add_argument(
        '--bands',
        type=int,
        nargs='+',
        metavar='N',
        help='numbers of the red, green and blue band, or of one grey band (default: those marked so)',
    )
    parser.add_argument(
        '--range',
        type=float,
        nargs=2,
        metavar=('BLACK', 'WHITE'),
        help='values that become 0 and 255, others in proportion; needed unless the image has 8 bits',
    )
    parser.add_argument('--device', default='auto', help='auto (default), cpu, cuda, cuda:N')
    parser.add_argument('--overwrite', action='store_true', help='replace existing files')
    parser.add_argument('--resume', action='store_true', help='continue an interrupted run from OUT.tif.resume, if any')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Segment; see ``volo-seg raster --help``."""
    args = build_parser().parse_args(argv)
    crop_size, stride = pair(args.crop_size, '--crop-size'), pair(args.stride, '--stride')
    batch = args.batch_windows
    from volo_seg.inference.predictor import Predictor
    from volo_seg.inference.raster.plan import target_paths
    from volo_seg.inference.raster.segment import segment_raster
    from volo_seg.inference.raster.state import state_path
    from volo_seg.progress import Progress

    # before the model is loaded
    target = Path(args.target)
    target_paths(target, args.kinds, source=Path(args.source), overwrite=args.overwrite, resume=args.resume)
    predictor = Predictor(args.config, args.checkpoint, device=args.device, cfg_options=args.cfg_options or ())

    def interrupted() -> str:
        return f'interrupted; {"--resume continues" if state_path(target).exists() else "nothing was written"}'

    with exit_on_signal(interrupted), Progress(0, unit='windows') as bar:
        paths = segment_raster(
            predictor,
            args.source,
            args.target,
            crop_size=crop_size,
            stride=stride,
            weights=args.weights,
            batch_windows=int(batch) if batch is not None and batch.isdecimal() else batch,
            memory=args.memory,
            kinds=args.kinds,
            bands=args.bands,
            value_range=args.range and tuple(args.range),
            overwrite=args.overwrite,
            resume=args.resume,
            progress=bar.update,
        )
    for path in paths:
        print(f'wrote {path}')
    return 0


def pair(numbers: list[int] | None, flag: str) -> tuple[int, int] | None:
    """(height, width) from one or two numbers.

    Raises:
        UserError: There are more than two, or one is not above 0.
    """
    if numbers is None:
        return None
    if len(numbers) > 2 or min(numbers) < 1:
        raise UserError(f'{flag} {" ".join(map(str, numbers))}: give one or two numbers of pixels above 0')
    return numbers[0], numbers[-1]

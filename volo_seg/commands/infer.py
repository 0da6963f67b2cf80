"""Segment images, folders and videos: labels, overlays, polygons, tables."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from volo_seg.commands.flags import make_parser
from volo_seg.errors import UserError
from volo_seg.inference.output_formats import DEFAULT, KINDS

if TYPE_CHECKING:
    from volo_seg.inference.base import BasePredictor
    from volo_seg.inference.batch.job import Job
    from volo_seg.inference.batch.sharing import Report
    from volo_seg.inference.batch.sources import Task
    from volo_seg.inference.result import Failure

EPILOG = """\
kinds of results (--kinds), below the output folder:
{kinds}

Names and subfolders are kept. Images whose names would be equal (a.jpg and a.png, or x.jpg of two folders) get longer
ones: a.jpg, a.png, day/x.jpg, night/x.jpg. Of a video the overlay is a video, and the rest are files, one a frame.

Polygons run along the edges of the pixels: a pixel belongs to the polygon that holds its centre, and rasterising them
by that rule gives the labels back. An image too large for the memory is one for `volo-seg raster`.

Several processes share the work: torchrun --nproc_per_node 2 tools/infer.py ...
Exit status: 0 done; 1 done, but some files could not be segmented; 2 a mistake; 130 interrupted (go on by --resume).
"""
CHECKPOINTS = ('.pth', '.pt', '.tar', '.safetensors', '.onnx')


def build_parser() -> argparse.ArgumentParser:
    """The flags of ``volo-seg infer``."""
    kinds = '\n'.join(
        f'  {name:<14}{kind.folder + (f"/NAME{kind.suffix}" if kind.suffix else ""):<28}{kind.what}'
        for name, kind in KINDS.items()
    )
    usage = 'volo-seg infer [CONFIG] CHECKPOINT INPUT [INPUT ...] --out-dir FOLDER [options]'
    parser = make_parser('infer', __doc__, notes=EPILOG.format(kinds=kinds), usage=usage)
    parser.add_argument(
        'words',
        nargs='+',
        metavar='[CONFIG] CHECKPOINT INPUT',
        help='config (file or name; not needed with a checkpoint that carries its own, a model folder, or .onnx), '
        'trained weights, then images, videos, folders (searched through), globs, text files with one path a line',
    )
    parser.add_argument('--out-dir', required=True, help='folder of the results; nothing is written outside it')
    parser.add_argument('--kinds', nargs='+', metavar='KIND', default=DEFAULT, help='default: labels overlay')
    parser.add_argument('--resume', action='store_true', help='skip what is finished')
    parser.add_argument('--overwrite', action='store_true', help='replace results that are already there')
    parser.add_argument('--device', default='auto', help='auto (default), cpu, cuda, cuda:N')
    parser.add_argument('--batch-size', type=int, help='images of one size at a time (default: 8 on a GPU, else 1)')
    parser.add_argument('--threads', type=int, default=2, help='that read, and as many that write (default 2)')
    parser.add_argument('--opacity', type=float, default=0.5, help='of the colours in an overlay (default 0.5)')
    parser.add_argument('--cfg-options', nargs='+', metavar='KEY=VALUE', help='override settings of the config')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Segment; see ``volo-seg infer --help``."""
    args = build_parser().parse_args(argv)
    config, checkpoint, inputs = split_words(args.words)
    check_flags(args, config)
    from volo_seg.inference.batch.job import plan_job
    from volo_seg.inference.batch.stopping import stopped_orderly

    options = {'kinds': args.kinds, 'opacity': args.opacity, 'resume': args.resume, 'overwrite': args.overwrite}
    job = plan_job(inputs, args.out_dir, **options)
    with stopped_orderly('interrupted; all files are whole, and --resume goes on'):
        predictor = None if job.is_empty else open_model(args, config, checkpoint)
        start = time.perf_counter()
        failures = segment(predictor, job, args) if predictor else []
        return conclude(job, failures, seconds=time.perf_counter() - start)


def split_words(words: Sequence[str]) -> tuple[str | None, str, list[str]]:
    """Config (None if the first word is a checkpoint), checkpoint and inputs.

    Raises:
        UserError: One of them is missing.
    """
    first_is_checkpoint = Path(words[0]).suffix.lower() in CHECKPOINTS or Path(words[0]).is_dir()
    count = 1 if first_is_checkpoint else 2
    if len(words) <= count:
        what = 'CHECKPOINT INPUT' if first_is_checkpoint else 'CONFIG CHECKPOINT INPUT'
        raise UserError(f'{" ".join(words)!r} is not all: give {what}, the inputs last')
    return (None if first_is_checkpoint else words[0]), words[count - 1], list(words[count:])


def check_flags(args: argparse.Namespace, config: str | None) -> None:
    """Refuse flags that contradict each other, or numbers that cannot be.

    Raises:
        UserError: There are such.
    """
    if not 0.0 <= args.opacity <= 1.0:
        raise UserError(f'--opacity {args.opacity} is not in [0, 1]')
    if args.threads < 1 or (args.batch_size is not None and args.batch_size < 1):
        raise UserError(f'--threads {args.threads} and --batch-size {args.batch_size or 1} must be 1 or more')
    if args.resume and args.overwrite:
        raise UserError('--resume skips what is there and --overwrite replaces it; give one of the two')
    if args.cfg_options and config is None:
        raise UserError('--cfg-options overrides a config, and none is given; name the config before the checkpoint')


def segment(predictor: BasePredictor, job: Job, args: argparse.Namespace) -> list[Failure]:
    """Segment this process's share under a progress bar; return what could not be segmented."""
    from volo_seg.inference.batch.folders import FolderRun
    from volo_seg.inference.progress import Progress

    with Progress(job.count(), unit=job.unit, shown=job.share.rank == 0) as progress:
        run = FolderRun(predictor, job, batch_size=args.batch_size, threads=args.threads, on_done=progress.advance)
        return run.run()


def open_model(args: argparse.Namespace, config: str | None, checkpoint: str) -> BasePredictor:
    """The predictor that the words name."""
    from volo_seg.inference.batch.sharing import device_of_this_process

    device = device_of_this_process(args.device)
    if args.cfg_options:
        from volo_seg.inference.predictor import Predictor

        return Predictor(config, checkpoint, device=device, cfg_options=args.cfg_options)
    from volo_seg.inference.load import load_predictor

    return load_predictor(checkpoint, config=config, device=device)


def conclude(job: Job, failures: Sequence[Failure], *, seconds: float) -> int:
    """Say what was done, and what could not be and why; return the exit status, the same in all processes."""
    from volo_seg.inference.batch.sharing import Report, gathered

    told = {str(failure.source): failure.reason for failure in failures}
    with gathered(job.share, Report(len(job.todo), job.skipped, told, seconds)) as reports:
        if job.share.rank == 0 or len(reports) == 1:
            tell(job, reports)
    return 1 if any(report.failures for report in reports) else 0


def tell(job: Job, reports: Sequence[Report]) -> None:
    """Print a summary, and a line for each file that could not be segmented."""
    reasons = {source: reason for report in reports for source, reason in report.failures.items()}
    done, skipped = sum(report.done for report in reports), sum(report.skipped for report in reports)
    lasted = f', in {max(report.seconds for report in reports):.1f} s' if done else ''
    before = f'; {skipped} were finished before' if skipped else ''
    where = f'{what_kind(job.plan)} segmented into {job.output.folder}'
    print(f'{done - len(reasons)} of {done} {where}{lasted}{before}', flush=True)
    for task in job.plan:
        if str(task.source) in reasons:
            print(f'error: {reasons[str(task.source)]}', file=sys.stderr, flush=True)


def what_kind(plan: Sequence[Task]) -> str:
    """What the plan is made of, in a word."""
    videos = sum(task.is_video for task in plan)
    return 'images' if not videos else 'videos' if videos == len(plan) else 'images and videos'

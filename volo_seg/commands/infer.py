"""Segment images, folders and videos: labels, overlays, polygons, tables."""

from __future__ import annotations

import argparse
import glob
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from volo_seg.commands.flags import make_parser
from volo_seg.errors import UserError, exit_on_signal, print_message
from volo_seg.inference.exported_predictor import PREDICTORS
from volo_seg.inference.output_formats import DEFAULT as DEFAULT_KINDS
from volo_seg.inference.output_formats import OUTPUT_FORMATS
from volo_seg.inference.pretrained import CONFIG as PUBLISHED_CONFIG
from volo_seg.inference.pretrained import WEIGHTS as PUBLISHED_WEIGHTS
from volo_seg.weights import DEFAULT, WEIGHTS, did_you_mean, named

if TYPE_CHECKING:
    from volo_seg.inference.base import BasePredictor
    from volo_seg.inference.batch.distributed import Report
    from volo_seg.inference.batch.job import Job

EPILOG = """\
kinds of output (--kinds), below the output folder:
{kinds}

NAME is the path of the image without suffix, relative to the folder or glob that was given. Two images with the same
NAME (a.jpg and a.png, or x.jpg of two folders) are refused. For a video, the overlay is a video, and the other kinds
are one file per frame.

GeoJSON's polygons follow the edges of the pixels: a pixel belongs to the polygon that contains its centre. What is for
COCO, CVAT and labelme is read back by `volo-seg import RESULT OUT --images FOLDER --background ignore`.
For an image that is too large for the memory, use `volo-seg raster`.

Several processes divide the files: torchrun --nproc_per_node 2 tools/infer.py ...

Exit status: 0 done; 1 done, but some files could not be segmented; 2 an error; 130 interrupted (continue by --resume).
"""
CHECKPOINTS = ('.pth', '.pt', '.tar', '.safetensors', *PREDICTORS)
PUBLISHED = (PUBLISHED_CONFIG, PUBLISHED_WEIGHTS)


def build_parser() -> argparse.ArgumentParser:
    """The flags of ``volo-seg infer``."""
    kinds = '\n'.join(
        f'  {name:<15}{kind.folder + (f"/NAME{kind.suffix}" if kind.suffix else ""):<24}{kind.description}'
        for name, kind in OUTPUT_FORMATS.items()
    )
    usage = 'volo-seg infer [[CONFIG] MODEL] INPUT [INPUT ...]\n                      [--out-dir FOLDER] [options]'
    parser = make_parser('infer', __doc__, notes=EPILOG.format(kinds=kinds), usage=usage)
    parser.add_argument(
        'words',
        nargs='+',
        metavar='[[CONFIG] MODEL] INPUT',
        help='config (file or name; not needed with weights that carry their own, a model folder, or an exported '
        f'file), trained weights (a file, or a name of volo-seg weights list; default {DEFAULT}, which ships with the '
        'package), then images, videos, folders (searched recursively), globs, text files with a path per line; '
        'images, folders and globs also as s3://, gs:// or az:// URLs',
    )
    parser.add_argument(
        '--out-dir',
        '--out',
        default='results',
        help='output folder or URL (default results); nothing is written outside it',
    )
    parser.add_argument(
        '--kinds', '--outputs', nargs='+', metavar='KIND', default=DEFAULT_KINDS, help='default: labels overlay'
    )
    parser.add_argument('--resume', action='store_true', help='skip finished files of the same model and options')
    parser.add_argument('--overwrite', action='store_true', help='replace existing results')
    parser.add_argument('--device', default='auto', help='auto (default), cpu, cuda, cuda:N')
    parser.add_argument('--batch-size', type=int, help='images in a forward pass (default: 8 on a GPU, else 1)')
    parser.add_argument('--threads', type=int, default=2, help='threads that read, and as many that write (default 2)')
    parser.add_argument('--opacity', type=float, default=0.5, help='opacity of the colours in an overlay (default 0.5)')
    parser.add_argument('--cfg-options', nargs='+', metavar='KEY=VALUE', help='override settings of the config')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Segment; see ``volo-seg infer --help``."""
    args = build_parser().parse_args(argv)
    config, model, inputs = split_words(args.words)
    check_flags(args, config)
    checkpoint = model or DEFAULT
    if model is None:
        print(f'model: {DEFAULT}, which ships with volo-seg ({WEIGHTS[DEFAULT].content})', flush=True)
    from volo_seg.inference.batch.distributed import Report, gather_reports, process_group, wait_for_all
    from volo_seg.inference.batch.folder_key import model_key
    from volo_seg.inference.batch.job import plan_job

    key = model_key(checkpoint, config=config, cfg_options=args.cfg_options or ())
    options = {'kinds': args.kinds, 'opacity': args.opacity, 'resume': args.resume, 'overwrite': args.overwrite}
    job = plan_job(inputs, args.out_dir, **options, key=key)
    with exit_on_signal('interrupted; all files are complete, and --resume continues'), process_group():
        predictor = None if job.is_empty else load_model(args, config, checkpoint)
        start = time.perf_counter()
        failures = segment(predictor, job, args) if predictor else {}
        reports = gather_reports(Report(len(job.todo), job.skipped, failures, time.perf_counter() - start))
        if job.rank == 0 or len(reports) == 1:
            if predictor:
                job.annotate(predictor.classes, predictor.palette)
            print_summary(job, reports)
        wait_for_all()
    return 1 if any(report.failures for report in reports) else 0


def split_words(words: Sequence[str]) -> tuple[str | None, str | None, list[str]]:
    """Config (None if no word is one), model (None for the one that ships with the package), and inputs.

    Raises:
        UserError: There is no input, or the first word is nearly the name of weights.
    """
    has_config = not _is_model(words[0]) and (_is_config(words[0]) or (len(words) > 1 and _is_model(words[1])))
    if not has_config and not _is_model(words[0]):
        if not (Path(words[0]).exists() or glob.has_magic(words[0])) and did_you_mean(words[0]):
            raise UserError(
                f'{words[0]!r} is neither a file nor the name of weights{did_you_mean(words[0])}; correct it'
            )
        return None, None, list(words)
    count = 2 if has_config else 1
    if len(words) <= count:
        what = 'CONFIG CHECKPOINT INPUT' if has_config else 'CHECKPOINT INPUT'
        raise UserError(f'{" ".join(words)!r} lacks an argument; give {what}, the inputs last')
    return (words[0] if has_config else None), words[count - 1], list(words[count:])


def _is_model(word: str) -> bool:
    """Whether ``word`` is a weights file, by its suffix, the name of weights, or a published folder."""
    path = Path(word)
    return path.suffix.lower() in CHECKPOINTS or named(word) is not None or any((path / n).exists() for n in PUBLISHED)


def _is_config(word: str) -> bool:
    if Path(word).suffix in ('.py', '.json', '.yaml', '.yml'):
        return True
    from volo_seg.config.load import shipped_configs

    return not Path(word).exists() and word in shipped_configs()


def check_flags(args: argparse.Namespace, config: str | None) -> None:
    """Check the values of flags.

    Raises:
        UserError: Flags contradict each other, or a number is out of range.
    """
    if not 0.0 <= args.opacity <= 1.0:
        raise UserError(f'--opacity {args.opacity} is not in [0, 1]; give a number in this range')
    if args.threads < 1 or (args.batch_size is not None and args.batch_size < 1):
        raise UserError(f'--threads {args.threads} and --batch-size {args.batch_size or 1} must be 1 or more')
    if args.resume and args.overwrite:
        raise UserError('--resume skips existing results and --overwrite replaces them; give one of the two')
    if args.cfg_options and config is None:
        raise UserError('--cfg-options overrides a config, and none is given; give the config before the checkpoint')


def segment(predictor: BasePredictor, job: Job, args: argparse.Namespace) -> dict[str, str]:
    """Segment the files of this process under a progress bar; return the reasons by the files that failed."""
    from volo_seg.inference.batch.run import BatchRun
    from volo_seg.progress import Progress

    job.drop_old_rows()
    with Progress(job.count(), unit=job.unit, shown=job.rank == 0) as progress:
        run = BatchRun(predictor, job, batch_size=args.batch_size, threads=args.threads, on_done=progress.advance)
        return {str(failure.source): failure.reason for failure in run.run()}


def load_model(args: argparse.Namespace, config: str | None, checkpoint: str) -> BasePredictor:
    """The predictor that the words of the command name."""
    from volo_seg.inference.batch.distributed import device_of_rank

    device = device_of_rank(args.device)
    if args.cfg_options:
        from volo_seg.inference.predictor import Predictor

        assert config is not None
        return Predictor(config, checkpoint, device=device, cfg_options=args.cfg_options)
    from volo_seg.inference.load import load_predictor

    return load_predictor(checkpoint, config=config, device=device)


def print_summary(job: Job, reports: Sequence[Report]) -> None:
    """Print a summary of all processes, and a line for each file that could not be segmented."""
    reasons = {source: reason for report in reports for source, reason in report.failures.items()}
    done, skipped = sum(report.done for report in reports), sum(report.skipped for report in reports)
    videos = sum(task.is_video for task in job.plan)
    files = 'images' if not videos else 'videos' if videos == len(job.plan) else 'images and videos'
    duration = f', in {max(report.seconds for report in reports):.1f} s' if done else ''
    before = f'; {skipped} were finished before' if skipped else ''
    print(f'{done - len(reasons)} of {done} {files} segmented into {job.output.folder}{duration}{before}', flush=True)
    for task in job.plan:
        if str(task.source) in reasons:
            print_message(f'error: {reasons[str(task.source)]}')

"""Label images by a trained model: masks to train with, in which pixels of low confidence are 255 (ignored)."""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from volo_seg.commands import run
from volo_seg.commands.flags import make_parser
from volo_seg.errors import UserError
from volo_seg.io import atomic_write, safe_join

EPILOG = """\
The masks have the names of the images, so that they train as a second folder:
  volo-seg train config.py --extra-data photos masks 0.5

Predictions are kept in OUT/.predictions: with --resume, another threshold costs no prediction, and an interrupted run
continues. Delete that folder when no other threshold is to be tried.
"""
PREDICTIONS = '.predictions'
UNSURE = 255
LEVELS = 65535
"""The value of a confidence of 1 in a ``confidence16`` file."""


def build_parser() -> argparse.ArgumentParser:
    """The flags of ``volo-seg pseudo-label``."""
    usage = 'volo-seg pseudo-label [CONFIG] CHECKPOINT INPUT [INPUT ...]\n'
    usage += '                             --out FOLDER [options]'
    parser = make_parser('pseudo-label', __doc__, notes=EPILOG, usage=usage)
    parser.add_argument('words', nargs='+', metavar='[CONFIG] CHECKPOINT INPUT', help='as of volo-seg infer')
    parser.add_argument('--out', '--out-dir', required=True, type=Path, metavar='FOLDER', help='folder for the masks')
    rule = parser.add_mutually_exclusive_group()
    rule.add_argument(
        '--confidence', type=float, default=0.9, metavar='P', help='keep pixels of at least this probability (0.9)'
    )
    rule.add_argument(
        '--keep-share', type=float, metavar='S', help='keep the most confident share of the pixels of each class'
    )
    parser.add_argument('--resume', action='store_true', help='keep the predictions of the same model')
    parser.add_argument('--overwrite', action='store_true', help='replace existing predictions and masks')
    parser.add_argument('--device', default='auto', help='auto (default), cpu, cuda, cuda:N')
    parser.add_argument('--batch-size', type=int, help='images in a forward pass (default: 8 on a GPU, else 1)')
    parser.add_argument('--cfg-options', nargs='+', metavar='KEY=VALUE', help='override settings of the config')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Label; see ``volo-seg pseudo-label --help``."""
    args = build_parser().parse_args(argv)
    for flag, value in (('confidence', args.confidence), ('keep-share', args.keep_share)):
        if value is not None and not 0 < value <= 1:
            raise UserError(f'--{flag} {value:g} is not in (0, 1]; give a number in this range')
    from volo_seg.config.extra_data import PSEUDO_LABELS

    out: Path = args.out
    known = (out / PREDICTIONS).is_dir()
    if not known and not args.overwrite and out.is_dir() and any(out.rglob('*.png')):
        raise UserError(f'{str(out)!r} has masks that are not of volo-seg pseudo-label; name another --out')
    for word in args.words:
        if Path(word).is_dir() and out.resolve().is_relative_to(Path(word).resolve()):
            raise UserError(f'--out {str(out)!r} is inside the input {word!r}; name a folder beside it')
    words = [*args.words, '--out-dir', str(out / PREDICTIONS), '--kinds', 'labels', 'confidence16', 'shares']
    words += ['--device', args.device, *(['--batch-size', str(args.batch_size)] if args.batch_size else [])]
    words += [flag for flag, given in (('--resume', args.resume), ('--overwrite', args.overwrite)) if given]
    words += ['--cfg-options', *args.cfg_options] if args.cfg_options else []
    status = run('infer', words)
    if status not in (0, 1) or os.environ.get('RANK', '0') != '0':
        return status
    predictions = Predictions(out / PREDICTIONS)
    rule = {'keep_share': args.keep_share} if args.keep_share else {'confidence': args.confidence}
    (out / PSEUDO_LABELS).unlink(missing_ok=True)
    summary = {'model': args.words, **rule, **write_masks(predictions, out, **rule)}
    atomic_write(out / PSEUDO_LABELS, json.dumps(summary, indent=1, ensure_ascii=False).encode())
    print_summary(summary)
    return status


@dataclass(frozen=True)
class Predictions:
    """The labels and confidences that ``volo-seg infer`` has written into ``folder``."""

    folder: Path

    def table(self) -> list[list[str]]:
        """The rows of the table of shares, the head first."""
        with (self.folder / 'shares.csv').open(encoding='utf-8', newline='') as file:
            return list(csv.reader(file))

    def __iter__(self) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Yield the name, labels (H, W) and confidences (H, W), 0 to 65535, of each image."""
        from volo_seg.label_png import read_labels

        for name, *_ in self.table()[1:]:
            labels, confidence = (
                read_labels(safe_join(self.folder / kind, f'{name}.png')) for kind in ('labels', 'confidence16')
            )
            yield name, labels, confidence


def write_masks(
    predictions: Predictions, out: Path, *, confidence: float | None = None, keep_share: float | None = None
) -> dict:
    """Write a mask for each prediction; return what was kept.

    Raises:
        UserError: There are more than 255 classes, or nothing is predicted.
    """
    from volo_seg.label_png import encode_labels

    classes = predictions.table()[0][4:]
    if len(classes) > UNSURE:
        raise UserError(
            f'the model has {len(classes)} classes, and label {UNSURE} means unsure; use one of at most 255'
        )
    if keep_share is None:
        least = np.full(len(classes), math.ceil((confidence or 0) * LEVELS))
    else:
        least = share_thresholds(predictions, len(classes), keep_share)
    predicted, kept, images = (np.zeros(len(classes), np.int64) for _ in range(3))
    count = 0
    for name, labels, levels in predictions:
        mask = np.where(levels >= least[labels], labels, UNSURE).astype(np.uint8)
        atomic_write(safe_join(out, f'{name}.png'), encode_labels(mask))
        predicted += np.bincount(labels.ravel(), minlength=len(classes))
        here = np.bincount(mask[mask != UNSURE], minlength=len(classes))
        kept, images, count = kept + here, images + (here > 0), count + 1
    rows = [
        {
            'class': name,
            'threshold': round(float(least[label]) / LEVELS, 5),
            'predicted_share': float(predicted[label] / max(1, predicted.sum())),
            'kept_share': float(kept[label] / max(1, predicted[label])),
            'images': int(images[label]),
        }
        for label, name in enumerate(classes)
    ]
    return {'images': count, 'kept_share': float(kept.sum() / max(1, predicted.sum())), 'classes': rows}


def share_thresholds(predictions: Predictions, classes: int, share: float) -> np.ndarray:
    """The least level (0 to 65535) of each class that at least ``share`` of its pixels have, over all images."""
    counts = np.zeros((classes, LEVELS + 1), np.int64)
    for _, labels, levels in predictions:
        for label in np.unique(labels):
            counts[label] += np.bincount(levels[labels == label], minlength=LEVELS + 1)
    above = counts[:, ::-1].cumsum(1)[:, ::-1]  # pixels of at least each level
    return LEVELS - (above[:, ::-1] >= share * above[:, :1]).argmax(1)


def print_summary(summary: dict) -> None:
    """Print what was kept of each class."""
    width = max(len(row['class']) for row in summary['classes'])
    print(f'{"class":<{width}}  {"predicted":>9} {"kept":>7} {"threshold":>9} {"images":>7}')
    for row in summary['classes']:
        shares = f'{row["predicted_share"]:>9.2%} {row["kept_share"]:>7.1%}'
        print(f'{row["class"]:<{width}}  {shares} {row["threshold"]:>9.4f} {row["images"]:>7}')
    print(
        f'{summary["images"]} masks; {summary["kept_share"]:.1%} of their pixels are labelled, the others are {UNSURE}'
    )

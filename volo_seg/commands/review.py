"""Find wrong labels: rank the images of a split by where labels and a trained model disagree most confidently."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volo_seg.commands import load_stack
from volo_seg.commands.flags import make_parser, progress_bar
from volo_seg.errors import UserError
from volo_seg.inference.exported_predictor import PREDICTORS
from volo_seg.io import atomic_write, check_writable, read_regular

if TYPE_CHECKING:
    import numpy as np

    from volo_seg.datasets.inspection.splits import Split

PAGE, TABLE = 'review.html', 'review.csv'


def build_parser() -> argparse.ArgumentParser:
    """The flags of ``volo-seg review``."""
    parser = make_parser('review', __doc__)
    parser.add_argument(
        'model', metavar='MODEL', help='weights of the network in CONFIG, a model folder, or an exported file'
    )
    parser.add_argument('config', metavar='CONFIG', help='config file or name of a shipped config, for its data')
    parser.add_argument('--split', choices=('train', 'val', 'test'), default='val', help='default val')
    parser.add_argument('--out', type=Path, default=Path('review'), metavar='FOLDER', help='default review')
    parser.add_argument('--count', type=int, default=40, metavar='N', help='images on the page (default 40)')
    parser.add_argument('--data-root', help='folder of the data set, instead of the one in the config')
    parser.add_argument('--overwrite', action='store_true', help='replace an existing page and table')
    parser.add_argument('--device', default='auto', help='auto (default), cpu, cuda, cuda:N')
    parser.add_argument('--cfg-options', nargs='+', metavar='KEY=VALUE', help='override settings of the config')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Review; see ``volo-seg review --help``."""
    args = build_parser().parse_args(argv)
    if args.count < 1:
        raise UserError(f'--count {args.count} is not a number of images; give 1 or more')
    targets = args.out / PAGE, args.out / TABLE
    for target in targets:
        if target.exists() and not args.overwrite:
            raise UserError(f'{str(target)!r} exists; add --overwrite, or name another folder by --out')
    check_writable(args.out)
    load_stack()
    from volo_seg.config.agreement import check_same_classes
    from volo_seg.config.checks import check_run
    from volo_seg.config.load import load_config, set_data_root
    from volo_seg.datasets.inspection.splits import read_splits
    from volo_seg.evaluation.label_review import rank, review_image
    from volo_seg.inference.load import load_predictor
    from volo_seg.inference.predictor import Predictor
    from volo_seg.reports.review import review_csv, review_page, suspect_picture

    config = load_config(args.config, args.cfg_options)
    if args.data_root:
        set_data_root(config, args.data_root)
    check_run(config, (args.split,))
    own_weights = Path(args.model).is_file() and Path(args.model).suffix not in PREDICTORS
    predictor: Any = (
        Predictor(config, args.model, device=args.device)
        if own_weights
        else load_predictor(args.model, device=args.device)
    )
    pairs = [(split, image, mask) for split in read_splits(config, args.split) for image, mask in split.pairing.pairs]
    if not pairs or any(mask is None for _, _, mask in pairs):
        raise UserError(f'the {args.split} split has images without masks; name another --split')
    classes = pairs[0][0].classes
    check_same_classes(f'model {args.model!r}', predictor.classes, 'the data set', classes)
    images = [image for _, image, _ in pairs]
    reviews = []
    results = predictor.stream(iter(images), probabilities=True)
    for (split, image, mask), result in progress_bar(zip(pairs, results, strict=True), 'images', len(pairs)):
        labels = read_labels(split, image, mask, result.labels.shape)
        reviews.append(review_image(labels, result.probabilities))
    suspects = rank(reviews)
    pictures = []
    for one in suspects[: args.count]:
        split, image, mask = pairs[one.index]
        result = predictor(image)
        labels = read_labels(split, image, mask, result.labels.shape)
        drawn = {'image': result.image, 'labels': labels, 'predicted': result.labels}
        pictures.append(suspect_picture(one, **drawn, classes=classes, palette=[list(c) for c in split.palette]))
    title = f'Review of {args.split}: {len(images)} images'
    page = review_page(suspects, pictures, images=images, classes=classes, title=title, facts=[args.model, args.config])
    for target, text in zip(targets, (page, review_csv(suspects, images, classes)), strict=True):
        atomic_write(target, text.encode('utf-8', 'replace'))
        print(target)
    return 0


def read_labels(split: Split, image: str, mask: str | None, size: tuple[int, ...]) -> np.ndarray:
    """The training labels (H, W) of an image of ``size``.

    Raises:
        UserError: The mask cannot be read or has another size.
    """
    from volo_seg.datasets.masks import decode_mask

    assert mask is not None
    labels = split.lookup[decode_mask(read_regular(mask), where=mask, table=split.table)]
    if labels.shape != size:
        raise UserError(f'mask {mask!r} has {labels.shape} pixels, its image {image!r} {size}; run volo-seg check')
    return labels

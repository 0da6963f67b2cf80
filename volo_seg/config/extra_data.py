"""A second folder of images and masks in the training data of a config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmseg.registry import DATASETS

from volo_seg.errors import UserError

PSEUDO_LABELS = 'pseudo_labels.json'
"""The summary in a folder of masks by ``volo-seg pseudo-label``, whose values are the labels of training."""
WEIGHTS = (0.1, 10.0)
"""Range of the weight of extra data."""


def add_extra_data(config: Config, words: Sequence[str]) -> None:
    """Add the pairs of two folders to the training data of ``config``: ``words`` are images, masks and a weight.

    An image of the extra data is drawn ``weight`` (default 1) times as often as one of the others. Its masks are read
    like those of a ``FolderDataset`` in the config, those of ``volo-seg pseudo-label`` as they are.

    Raises:
        UserError: ``words`` are not such words, or the training data is not one data set with a pipeline.
    """
    try:
        images, masks = (str(Path(word).absolute()) for word in words[:2])
        (weight,) = map(float, words[2:] or ['1'])
    except ValueError as error:
        raise UserError(f'--extra-data {" ".join(words)!r} is not IMAGES MASKS [WEIGHT]; give two folders') from error
    if not WEIGHTS[0] <= weight <= WEIGHTS[1]:
        raise UserError(f'--extra-data: weight {weight:g} is not in [{WEIGHTS[0]:g}, {WEIGHTS[1]:g}]; give another')
    for folder in (images, masks):
        if not Path(folder).is_dir():
            raise UserError(
                f'--extra-data: {folder!r} is not a folder; give the folders of the images and of the masks'
            )
    place: Any = config.train_dataloader
    while isinstance(place.dataset.get('dataset'), Mapping):
        place = place.dataset
    own: Any = place.dataset
    first = own
    while isinstance(first.get('datasets'), (list, tuple)) or isinstance(first.get('dataset'), Mapping):
        first = first['dataset'] if 'dataset' in first else first['datasets'][0]
    if 'pipeline' not in first:
        raise UserError('--extra-data: the training data has no pipeline; use a config whose data set has one')
    files = {'data_prefix': dict(img_path=images, seg_map_path=masks), 'ann_file': ''}
    read_alike = not Path(masks, PSEUDO_LABELS).exists()
    if first['type'] == 'FolderDataset' and read_alike:
        extra = {key: value for key, value in first.items() if key != 'indices'} | files
    else:
        built = DATASETS.build({**first, 'lazy_init': True, 'pipeline': []})
        extra = dict(
            type='FolderDataset',
            data_root=first.get('data_root') or '.',
            classes=list(built.metainfo['classes']),
            ignore_index=built.ignore_index,
            reduce_zero_label=read_alike and built.reduce_zero_label,
            pipeline=first['pipeline'],
            **files,
        )
    ratio = Fraction(weight).limit_denominator(10)
    repeated = zip((own, extra), (ratio.denominator, ratio.numerator), strict=True)
    place.dataset = dict(
        type='ConcatDataset',
        ignore_keys=['classes', 'palette', 'label_map', 'reduce_zero_label'],
        datasets=[part if n == 1 else dict(type='RepeatDataset', times=n, dataset=part) for part, n in repeated],
    )

"""The files of a data set, and the file that a failed data loader could not read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2

from volo_seg.errors import UserError, message_of
from volo_seg.image_files import ImageError
from volo_seg.io import check_regular

READING_ERRORS = (AssertionError, OSError, cv2.error)
"""Errors that the image readers of MMCV and MMSegmentation raise."""


def data_files(dataset: Any) -> Iterator[tuple[str, str]]:
    """Yield (data root, path) of each image and label file of ``dataset``, also of wrapped data sets."""
    parts = getattr(dataset, 'datasets', None) or ([dataset.dataset] if hasattr(dataset, 'dataset') else None)
    if parts is not None:
        for part in parts:
            yield from data_files(part)
    elif hasattr(dataset, 'get_data_info'):
        root = getattr(dataset, 'data_root', None) or '.'
        for index in range(len(dataset)):
            info = dataset.get_data_info(index)
            yield from ((root, info[key]) for key in ('img_path', 'seg_map_path') if info.get(key))


def unreadable_file(error: BaseException, datasets: Iterable[Any]) -> UserError | None:
    """Return the error to raise instead of ``error`` if an image or label file of ``datasets`` could not be read.

    The file is the one that ``error`` names, else the first that is missing or empty. None if there is no such file.
    """
    if isinstance(error, ImageError):
        return UserError(f'{message_of(error)}; replace the file, or remove it from the data')
    if not isinstance(error, READING_ERRORS):
        return None
    message = str(error)
    paths = [path for dataset in datasets for _, path in data_files(dataset)]
    named = [path for path in paths if path in message]
    for path in named or paths:
        reason = why_unreadable(path, decode=bool(named))
        if reason:
            return UserError(f'cannot read {str(path)!r}: {reason}; copy the file again, or remove it from the data')
    return None


def check_files(dataset: Any) -> None:
    """Check that all files of ``dataset`` are regular files: reading a pipe or a device can block.

    Raises:
        UserError: A file is not a regular file.
    """
    for _, path in data_files(dataset):
        if os.path.lexists(path) and not os.path.isfile(path):
            raise UserError(f'cannot read {str(path)!r}: {why_unreadable(path)}; remove it from the data')


def why_unreadable(path: str | Path, *, decode: bool = True) -> str | None:
    """Return why the image at ``path`` cannot be read, None if it can; without ``decode``, check only its size."""
    try:
        if check_regular(path).st_size == 0:
            return 'the file is empty'
    except FileNotFoundError:
        return 'the file does not exist'
    except OSError as error:
        return error.strerror
    if not decode:
        return None
    try:
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        return f'the image does not decode ({error.err})'
    return 'it is damaged or not an image' if image is None else None

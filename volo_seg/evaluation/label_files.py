"""Label maps as PNG files: strict reading, whole writing, and nobody else's file replaced."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from volo_seg.errors import UserError
from volo_seg.io import write_whole

MARK = 'volo-seg'
Labels = npt.NDArray[Any]
_MODES = ('1', 'L', 'P', 'I', 'I;16', 'I;16B')  # of Pillow: one channel of whole numbers


def read_labels(path: Path) -> Labels:
    """Read a label map (H, W), uint8 or int32; a palette image gives its indices.

    Raises:
        UserError: the file cannot be read, or it holds colours rather than labels.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in _MODES:
                raise UserError(
                    f'{path} is a colour image (mode {image.mode}), not a label map; '
                    'write class numbers as an 8-bit single-channel PNG'
                )
            labels = np.array(image)
            return labels if labels.dtype == np.uint8 else labels.astype(np.int32)
    except FileNotFoundError as error:
        raise UserError(f'{path} does not exist; check the path') from error
    except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UserError(f'{path} cannot be read as an image ({error}); write it again') from error


def encode_labels(labels: Labels) -> bytes:
    """PNG bytes of a label map (H, W): 8 bit, or 16 bit if a label exceeds 255. The file carries our mark."""
    largest = int(labels.max(initial=0))
    if labels.ndim != 2 or largest > 65535 or int(labels.min(initial=0)) < 0:
        raise ValueError(f'a PNG cannot hold labels of shape {labels.shape} up to {largest}')
    info = PngImagePlugin.PngInfo()
    info.add_text('Software', MARK)
    stream = io.BytesIO()
    image = Image.fromarray(labels.astype(np.uint8 if largest <= 255 else np.uint16))
    image.save(stream, format='PNG', pnginfo=info)
    return stream.getvalue()


def write_labels(path: Path, labels: Labels) -> None:
    """Write a label map as PNG, whole or not at all; folders are made. Only a file of ours is replaced.

    Raises:
        UserError: ``path`` is a file that we did not write, or it cannot be written.
    """
    if path.exists() and not _is_ours(path):
        raise UserError(f'{path} exists and was not written by {MARK}; name another output folder')
    write_whole(path, encode_labels(labels))


def _is_ours(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return image.format == 'PNG' and image.info.get('Software') == MARK
    except (OSError, SyntaxError, UnidentifiedImageError):
        return False

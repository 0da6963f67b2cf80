"""Read and write label maps: image files that hold one class number per pixel."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, ImageOps, PngImagePlugin

from volo_seg.errors import UserError
from volo_seg.image_files import ImageError, has_several_images, load_image, open_image, pillow_errors
from volo_seg.io import atomic_write, check_regular, read_regular

MARK = 'volo-seg'
"""Value of the text field ``Software`` in the PNG files that the toolkit writes."""
Labels = npt.NDArray[Any]
_MODES = ('1', 'L', 'P', 'I', 'I;16', 'I;16B', 'I;16L', 'I;16N')  # modes of Pillow with one channel of integers
_MODE_NAMES = {
    'RGBA': 'colour image with transparency',
    'LA': 'grey image with transparency',
    'F': 'floating-point image',
}


def read_labels(path: Path) -> Labels:
    """Read a label map (H, W), uint8 or int32; a palette image gives its indices.

    Raises:
        UserError: The file cannot be read, or holds colours and not labels.
    """
    try:
        content = read_regular(path)
    except FileNotFoundError as error:
        raise UserError(f'{path} does not exist; check the path') from error
    except OSError as error:
        raise UserError(f'{path} cannot be read ({error.strerror}); check the path') from error
    return labels_of(load_label_image(content, name=str(path)), name=str(path))


def load_label_image(content: bytes, *, name: str) -> ImageFile.ImageFile:
    """Decode the content of a label file, of any format that :mod:`volo_seg.imageio` reads, upright by its EXIF.

    Raises:
        ImageError: The file is damaged, not an image, or holds several.
    """
    try:
        image = open_image(io.BytesIO(content), name=name)
        several = has_several_images(image, name=name)
        load_image(image, name=name)
        with pillow_errors(f'{name} has damaged EXIF data'):
            ImageOps.exif_transpose(image, in_place=True)
    except ImageError as error:
        reason = 'it is damaged or not an image' if error.kind == 'format' else error.reason
        raise ImageError(
            f'{name} cannot be read as an image ({reason}); write it again', kind=error.kind, reason=reason
        ) from error
    if several:
        reason = 'it holds several images'
        raise ImageError(f'{name} cannot be read as a label map ({reason}); save them one by one', reason=reason)
    return image


def labels_of(image: Image.Image, *, name: str) -> Labels:
    """The labels (H, W) of a decoded label file, uint8 or int32.

    Raises:
        ImageError: It holds colours or fractions.
    """
    if image.mode not in _MODES:
        kind = _MODE_NAMES.get(image.mode, 'colour image')
        raise ImageError(
            f'{name} is a {kind} (mode {image.mode}): it holds no class numbers; '
            'write class numbers as an 8-bit grey or palette PNG',
            kind='mode',
        )
    labels = np.array(image)
    return labels.astype(np.uint8 if labels.dtype in (np.uint8, bool) else np.int32, copy=False)


def encode_labels(labels: Labels, palette: npt.NDArray[np.uint8] | None = None) -> bytes:
    """PNG content of a label map (H, W) of integers, with :data:`MARK`.

    uint8 gives 8 bits per pixel and uint16 gives 16; other types the smallest depth that holds the largest label.
    ``palette``, (at most 256, 3) RGB, makes labels of 8 bits indices of colours that viewers show.

    Raises:
        ValueError: Labels outside 0..65535, or not two axes.
    """
    smallest, largest = int(labels.min(initial=0)), int(labels.max(initial=0))
    if labels.ndim != 2 or largest > 65535 or smallest < 0:
        raise ValueError(f'a PNG cannot hold labels {smallest}..{largest} of shape {labels.shape}')
    if labels.dtype not in (np.uint8, np.uint16):
        labels = labels.astype(np.uint8 if largest <= 255 else np.uint16)
    info = PngImagePlugin.PngInfo()
    info.add_text('Software', MARK)
    stream = io.BytesIO()
    # run-length coding gives smaller label maps than the default, in half the time
    image = Image.fromarray(labels)
    if palette is not None and labels.dtype == np.uint8:
        image.putpalette(palette.tobytes())
    image.save(stream, format='PNG', pnginfo=info, compress_type=zlib.Z_RLE)
    return stream.getvalue()


def write_labels(path: Path, labels: Labels) -> None:
    """Write a label map as PNG, atomically; folders are made. Only a file that the toolkit wrote is replaced.

    Raises:
        UserError: ``path`` is another file, or it cannot be written.
    """
    if path.exists() and not _is_ours(path):
        raise UserError(f'{path} exists and was not written by {MARK}; name another output folder')
    atomic_write(path, encode_labels(labels))


def ranges(values: Iterable[int]) -> str:
    """Label values as text, runs joined: ``0..33, 255``."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ', '.join(str(first) if first == last else f'{first}..{last}' for first, last in runs)


def _is_ours(path: Path) -> bool:
    try:
        check_regular(path)
        with path.open('rb') as file:
            image = open_image(file, name=str(path))
            return isinstance(image, PngImagePlugin.PngImageFile) and image.info.get('Software') == MARK
    except (OSError, UserError):
        return False

"""What is asked for when a raster is segmented, checked before the work begins: windows, files, memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from volo_seg.errors import UserError
from volo_seg.inference.raster.blending import TILE
from volo_seg.io import check_writable
from volo_seg.models.segmentors.volo_segmentor import VOLOSegmentor
from volo_seg.windows import InferenceConfig, Size, WindowGrid

KINDS = ('labels', 'confidence')
SUFFIXES = ('.tif', '.tiff')
MEMORY = 1024
"""MiB; see :func:`volo_seg.inference.raster.segment.segment_raster`."""
MOST_MEMORY = 2**24
PIXEL = 24
"""Bytes that one pixel of a window takes on its way from the file to the network."""


def window_config(
    model: torch.nn.Module,
    *,
    crop_size: Size | None = None,
    stride: Size | None = None,
    weights: str | None = None,
    batch: int | str | None = None,
) -> InferenceConfig:
    """Which windows go over a raster; what is None is taken from the config of ``model``.

    Raises:
        UserError: The model has no sliding windows, their size is known nowhere, or a value is impossible.
    """
    if not isinstance(model, VOLOSegmentor):
        raise UserError(f'rasters need model.type=VOLOSegmentor, and this config has {type(model).__name__!r}')
    given = {**(model.test_cfg or {})}
    sliding = given.get('mode') == 'slide' and crop_size is None
    crop = crop_size or (given.get('crop_size') if sliding else getattr(model.data_preprocessor, 'size', None))
    if crop is None:
        raise UserError('the config says nothing about the size of windows; give it, such as --crop-size 512')
    if stride is None and not sliding:
        stride = max(1, crop[0] * 3 // 4), max(1, crop[1] * 3 // 4)
    asked = {'crop_size': crop, 'stride': stride, 'window_weights': weights, 'batch_windows': batch}
    return InferenceConfig.from_test_cfg(
        {**given, 'mode': 'slide', **{k: v for k, v in asked.items() if v is not None}}
    )


def target_paths(target: Path, kinds: Sequence[str], *, source: Path, overwrite: bool) -> dict[str, Path]:
    """The file of each kind; see :func:`segment_raster`.

    Raises:
        UserError: No TIFF, nothing or something unknown to write, or files that are there already.
    """
    if target.suffix.lower() not in SUFFIXES:
        raise UserError(f'output {str(target)!r} must end in {" or ".join(SUFFIXES)}')
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise UserError(f'kinds {list(kinds)}: choose from {", ".join(KINDS)}')
    names = {'labels': target, 'confidence': target.with_name(f'{target.stem}_confidence{target.suffix}')}
    paths = {kind: names[kind] for kind in KINDS if kind in kinds}
    for path in paths.values():
        if path.is_dir():
            raise UserError(f'output {str(path)!r} is a folder; give the name of a file')
        if path.exists() and source.exists() and path.samefile(source):
            raise UserError(f'output {str(path)!r} is the input; give another name')
        if path.exists() and not overwrite:
            raise UserError(f'output {str(path)!r} is there already; add --overwrite or give another name')
        check_writable(path.parent)
    return paths


def quarter_of(memory: float, grid: WindowGrid, *, classes: int) -> int:
    """A quarter of ``memory`` (MiB) in bytes: for the file cache, windows to come, maps that wait, and blending each.

    Raises:
        UserError: One window, or one row of blending, would exceed it; it says what would do.
    """
    window = PIXEL * grid.size[0] * grid.size[1]
    row = 2 * 4 * 4 * classes * (TILE + 2 * grid.size[1])
    least = -(-4 * max(window, row) // 2**20)
    if not least <= memory:
        raise UserError(
            f'memory of {memory} MiB is too little for windows of {grid.size[0]} x {grid.size[1]} pixels and {classes} '
            f'classes; allow {least} or more'
        )
    return int(min(memory, MOST_MEMORY) * 2**18)

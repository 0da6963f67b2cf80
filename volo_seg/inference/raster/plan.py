"""The windows, files and memory of a raster segmentation, checked before it begins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from volo_seg.errors import UserError
from volo_seg.inference.raster.blending import TILE
from volo_seg.inference.raster.state import state_path
from volo_seg.io import WriteError, check_writable, write_failure
from volo_seg.models.segmentors.volo_segmentor import VOLOSegmentor, overridden_methods
from volo_seg.windows import InferenceConfig, Size, WindowGrid

RASTER_KINDS = ('labels', 'confidence')
SUFFIXES = ('.tif', '.tiff')
MEMORY = 1024
"""Default in MiB; see :func:`volo_seg.inference.raster.segment.segment_raster`."""
MOST_MEMORY = 2**24
"""MiB; a larger budget has no effect."""
PIXEL = 24
"""Bytes per pixel of a window between the file and the network."""


def window_config(
    model: torch.nn.Module,
    *,
    crop_size: Size | None = None,
    stride: Size | None = None,
    weights: str | None = None,
    batch: int | str | None = None,
) -> InferenceConfig:
    """The windows of a raster; arguments that are None are taken from the config of ``model``.

    Raises:
        UserError: The model does not support windows, their size is not known, or a value is invalid.
    """
    if not isinstance(model, VOLOSegmentor):
        raise UserError(
            f'rasters need model.type=VOLOSegmentor, and this config has {type(model).__name__!r}; change the config'
        )
    ignored = [name for name in overridden_methods(model) if name != 'encode_decode']
    if ignored:
        raise UserError(
            f'{type(model).__name__} overrides {ignored[0]}(), which rasters do not call; override encode_decode() '
            'instead, or use model.type=VOLOSegmentor'
        )
    given = {**(model.test_cfg or {})}
    sliding = given.get('mode') == 'slide' and crop_size is None
    crop = crop_size or (given.get('crop_size') if sliding else getattr(model.data_preprocessor, 'size', None))
    if crop is None:
        raise UserError('the config has no size of windows; give one, such as --crop-size 512')
    if stride is None and not sliding:
        stride = max(1, crop[0] * 3 // 4), max(1, crop[1] * 3 // 4)
    asked = {'crop_size': crop, 'stride': stride, 'window_weights': weights, 'batch_windows': batch}
    return InferenceConfig.from_test_cfg(
        {**given, 'mode': 'slide', **{k: v for k, v in asked.items() if v is not None}}
    )


def target_paths(target: Path, kinds: Sequence[str], *, source: Path, overwrite: bool, resume: bool) -> dict[str, Path]:
    """The output file of each kind; see :func:`segment_raster`.

    Raises:
        UserError: ``target`` is not a TIFF or cannot be written, a kind is unknown, or a file or a state exists.
    """
    if target.suffix.lower() not in SUFFIXES:
        raise UserError(f'output {str(target)!r} must end in {" or ".join(SUFFIXES)}')
    unknown = [kind for kind in kinds if kind not in RASTER_KINDS]
    if unknown or not kinds:
        raise UserError(f'kinds {list(kinds)}: choose from {", ".join(RASTER_KINDS)}')
    names = {'labels': target, 'confidence': target.with_name(f'{target.stem}_confidence{target.suffix}')}
    paths = {kind: names[kind] for kind in RASTER_KINDS if kind in kinds}
    for path in paths.values():
        if path.is_dir():
            raise UserError(f'output {str(path)!r} is a folder; give the name of a file')
        if path.exists() and source.exists() and path.samefile(source):
            raise UserError(f'output {str(path)!r} is the input; give another name')
        if path.exists() and not overwrite:
            raise UserError(f'output {str(path)!r} exists already; add --overwrite or give another name')
        try:
            check_writable(path.parent)
        except UserError as error:
            raise WriteError(path, write_failure(error, path.parent)) from error
    state = state_path(target)
    if state.exists() and not (overwrite or resume):
        raise UserError(
            f'{str(state)!r} is the state of an interrupted run; add --resume to continue, --overwrite to start again '
            'or give another name'
        )
    return paths


def quarter_of_memory(memory: float, grid: WindowGrid, *, classes: int) -> int:
    """A quarter of ``memory`` (MiB) in bytes: the budget each of file cache, prefetched windows, logits and blending.

    Raises:
        UserError: One window, or one row of blending, does not fit.
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

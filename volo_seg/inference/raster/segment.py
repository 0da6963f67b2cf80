"""Segment images that do not fit into memory: read by windows, blended, written by blocks."""

from __future__ import annotations

import bisect
import contextlib
import itertools
from collections.abc import Callable, Generator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmseg.structures import SegDataSample
from torch import Tensor

from volo_seg.errors import UserError
from volo_seg.image_files import check_raster
from volo_seg.inference.concurrency import WriterPool, prefetch
from volo_seg.inference.predictor import Predictor
from volo_seg.inference.raster.blending import Area, Blend
from volo_seg.inference.raster.plan import MEMORY, PIXEL, quarter_of_memory, target_paths, window_config
from volo_seg.inference.raster.source import OPTIONS, RasterSource, import_rasterio
from volo_seg.inference.raster.state import RasterState, model_digest, source_stamp
from volo_seg.inference.raster.target import RasterTarget
from volo_seg.inference.raster.window_store import WindowStore
from volo_seg.models.resize.logit_source import LogitSource, compute_labels, compute_labels_and_confidence
from volo_seg.windows import MAX_WINDOWS, InferenceConfig, Size, WindowGrid

WAITING_BLOCKS = 2
"""Largest number of blocks that wait to be written."""


def segment_raster(
    predictor: Predictor,
    source: str | Path,
    target: str | Path,
    *,
    crop_size: Size | None = None,
    stride: Size | None = None,
    weights: str | None = None,
    batch_windows: int | str | None = None,
    memory: float = MEMORY,
    kinds: Sequence[str] = ('labels',),
    bands: Sequence[int] | None = None,
    value_range: tuple[float, float] | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Path]:
    """Segment the image file ``source`` of any size into tiled TIFF files, and return their paths.

    The labels are those of sliding windows over the whole image in memory, for any ``memory``. CRS and transform are
    kept, and overviews are added. Either all files are written or none; an interrupted run leaves its finished blocks
    in ``<target>.resume``, from which ``resume`` continues with the same result. The ``Resize`` of the test pipeline
    and the EXIF orientation are not applied.

    Args:
        predictor: The predictor.
        source: A file of a format in :data:`volo_seg.inference.raster.source.DRIVERS`.
        target: The file of the labels, ``.tif``. Pixels without a value in ``source`` get 255, or 65535 with more than
            255 classes. The file of ``'confidence'``, the probability of each label in percent, is beside it; its name
            ends in ``_confidence``.
        crop_size: (height, width) of a window in pixels; by default ``test_cfg.crop_size`` of a sliding config, else
            the size of training crops.
        stride: (vertical, horizontal) distance between windows; by default that of a sliding config, else 3/4 of
            ``crop_size``.
        weights: ``window_weights`` of :class:`~volo_seg.windows.InferenceConfig`; by default that of the config.
        batch_windows: Number of windows in one forward pass, or ``'auto'``; by default that of the config.
        memory: MiB for pixels, logits and caches, besides the memory of the network for its windows.
        kinds: ``'labels'``, ``'confidence'`` or both.
        bands: See :class:`RasterSource`.
        value_range: See :class:`RasterSource`; by default that of the model.
        overwrite: Whether existing files are replaced, and without ``resume`` the state of an interrupted run.
        resume: Whether an interrupted run is continued, if there is one.
        progress: Called with the number of finished windows and of all windows.

    Raises:
        UserError: A file cannot be read or written, or an argument is invalid.
    """
    config = window_config(predictor.model, crop_size=crop_size, stride=stride, weights=weights, batch=batch_windows)
    paths = target_paths(Path(target), kinds, source=Path(source), overwrite=overwrite, resume=resume)
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        # the second one is read by the writing thread
        options: Any = {'value_range': value_range, 'model_range': predictor.reading.value_range}
        reader, validity = (enter(RasterSource(source, bands=bands, **options)) for _ in range(2))
        check_raster(Path(source), name=f'raster {str(source)!r}')
        grid = WindowGrid(reader.size, crop_size=config.crop_size, stride=config.stride)
        budget = quarter_of_memory(memory, grid, classes=len(predictor.classes))
        enter(import_rasterio().Env(GDAL_CACHEMAX=budget, **OPTIONS))
        targets = {kind: enter(_open_target(kind, path, reader, predictor)) for kind, path in paths.items()}
        key = {
            'source': [source_stamp(Path(source)), reader.size, reader.bands, reader.value_range],
            'model': [model_digest(predictor.model), predictor.device.type, predictor.classes],
            'set of options': [config.crop_size, config.stride, config.window_weights, config.batch_windows, [*paths]],
        }
        dtypes = {kind: raster.dtype for kind, raster in targets.items()}
        state = enter(RasterState(Path(target), reader.size, dtypes=dtypes, key=key, resume=resume))
        for area, finished in state.blocks():
            for kind, raster in targets.items():
                raster.write(area, finished[kind])
        writer = enter(WriterPool(threads=1, depth=WAITING_BLOCKS))
        store = enter(WindowStore(budget=budget, folder=Path(target).absolute().parent))
        blocks = _blocks(
            predictor.model, reader, grid, config, store, start=state.rows, budget=budget, progress=progress
        )
        enter(contextlib.closing(blocks))
        enter(torch.inference_mode())
        for area, logits in blocks:
            values = _predict(logits, predictor.model, confidence='confidence' in paths, budget=budget // 2)
            writer.submit(partial(_write_block, targets, state, validity, area, values))
        writer.wait()
        for raster in targets.values():
            raster.close()
        for raster in targets.values():
            raster.publish()
        progress(len(grid), len(grid))
    return list(paths.values())


def _blocks(
    model: Any,
    reader: RasterSource,
    grid: WindowGrid,
    config: InferenceConfig,
    store: WindowStore,
    *,
    start: int,
    budget: int,
    progress: Callable[[int, int], None],
) -> Generator[tuple[Area, LogitSource | None], None, None]:
    """Run the windows through the network; yield each block from row ``start`` as soon as its windows are complete."""
    resized = model.resize_logits
    blend = Blend(grid, weights=config.window_weights, store=store, resized=resized, budget=budget // 2, start=start)
    first = _first_window(reader, grid, config, start=start)
    meta = {'ori_shape': grid.size, 'img_shape': grid.size, 'pad_shape': grid.size}
    with contextlib.closing(_windows(reader, grid, model, first=first, budget=budget)) as windows:
        for (top, left), logits in model.forward_windows(windows, [meta], config):
            yield from blend.finished(top)
            if top + grid.size[0] > start:
                blend.add(top, left, logits[0])
            finished = bisect.bisect_left(grid.tops, top) * len(grid.lefts) + bisect.bisect_right(grid.lefts, left)
            progress(finished, len(grid))
        yield from blend.finished(grid.image[0])


def _first_window(reader: RasterSource, grid: WindowGrid, config: InferenceConfig, *, start: int) -> int:
    """The number of the window that a run from row ``start`` begins with, so that its batches are those of a whole run.

    Rounding depends on the batch, and with it the label of a pixel where two classes are equal but for rounding.
    """
    first = sum(top + grid.size[0] <= start for top in grid.tops) * len(grid.lefts)
    if config.batch_windows in (1, 'auto'):
        return first
    valid = []
    for number, position in enumerate(itertools.islice(grid, first)):
        mask = reader.valid(Area(*position, *grid.size))
        if mask is None or mask.any():
            valid.append(number)
    extra = len(valid) % int(config.batch_windows)
    return valid[-extra] if extra else first


def _windows(
    reader: RasterSource, grid: WindowGrid, model: Any, *, first: int, budget: int
) -> Generator[tuple[Size, Tensor], None, None]:
    """Yield (top, left) and normalized pixels (1, 3, h, w) of each window with a valid pixel, from number ``first`` on.

    They are prefetched.
    """

    def read(position: Size) -> tuple[Size, Tensor] | None:
        pixels, valid = reader.pixels(Area(*position, *grid.size))
        if valid is not None and not valid.any():
            return None
        return position, _normalize(model, np.ascontiguousarray(pixels))

    depth = max(1, min(budget // (PIXEL * grid.size[0] * grid.size[1]), 2 * MAX_WINDOWS))
    with contextlib.closing(prefetch(read, itertools.islice(grid, first, None), threads=1, depth=depth)) as windows:
        for window in windows:
            if window is not None:
                yield window


def _normalize(model: Any, pixels: np.ndarray) -> Tensor:
    data = {'inputs': [torch.from_numpy(pixels)], 'data_samples': [SegDataSample()]}
    inputs = model.data_preprocessor(data, False)['inputs']
    if inputs.shape[2:] != pixels.shape[1:]:
        raise UserError(
            'model.data_preprocessor.test_cfg pads images, and rasters are cut into windows as they are; add '
            '--cfg-options model.data_preprocessor.test_cfg=None'
        )
    return inputs


def _predict(logits: LogitSource | None, model: Any, *, confidence: bool, budget: int) -> dict[str, np.ndarray]:
    """Labels of a block, and their probabilities in percent if asked for; nothing for a block without windows."""
    if logits is None:
        return {}
    threshold = model.decode_head.threshold if logits.channels == 1 else None
    if not confidence:
        return {'labels': compute_labels(logits, budget=budget, threshold=threshold)[0].cpu().numpy()}
    labels, scores = compute_labels_and_confidence(logits, budget=budget, threshold=threshold)
    # pixels that no window covers have 0 / 0; none of them has a value
    percent = (100 * scores).nan_to_num_().round_()
    return {'labels': labels.cpu().numpy(), 'confidence': percent.cpu().numpy()}


def _write_block(
    targets: dict[str, RasterTarget],
    state: RasterState,
    validity: RasterSource,
    area: Area,
    values: dict[str, np.ndarray],
) -> None:
    """Write a block to all targets and to ``state``, with ``nodata`` for pixels without a value."""
    valid = validity.valid(area)
    blocks = {}
    for kind, target in targets.items():
        if kind in values:
            block = values[kind].astype(target.dtype)
            if valid is not None:
                block[~valid] = target.nodata
        else:
            block = np.full((area.height, area.width), target.nodata, target.dtype)
        target.write(area, block)
        blocks[kind] = block
    state.write(area, blocks)


def _open_target(kind: str, path: Path, reader: RasterSource, predictor: Predictor) -> RasterTarget:
    wide = kind == 'labels' and len(predictor.classes) > 255
    target = RasterTarget(
        path,
        reader.size,
        dtype='uint16' if wide else 'uint8',
        nodata=65535 if wide else 255,
        georeference=reader.georeference,
    )
    labels = kind == 'labels'
    target.describe(
        'class' if labels else 'probability of the class in percent',
        classes=predictor.classes,
        palette=predictor.palette if labels else None,
    )
    return target

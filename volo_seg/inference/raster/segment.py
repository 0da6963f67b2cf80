"""Segment images that do not fit into memory: read by windows, blended, written by blocks."""

from __future__ import annotations

import bisect
import contextlib
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from mmseg.structures import SegDataSample
from torch import Tensor

from volo_seg.errors import UserError
from volo_seg.imageio import check_raster
from volo_seg.inference.raster.blending import Area, Blend
from volo_seg.inference.raster.plan import MEMORY, PIXEL, quarter_of, target_paths, window_config
from volo_seg.inference.raster.source import RasterSource, import_rasterio
from volo_seg.inference.raster.target import BlockWriter, RasterTarget
from volo_seg.inference.raster.window_store import WindowStore
from volo_seg.models.resize.logit_source import LogitSource, compute_labels, compute_labels_and_confidence
from volo_seg.windows import MAX_WINDOWS, InferenceConfig, Size, WindowGrid


class LoadedModel(Protocol):
    """What is needed of a predictor."""

    model: torch.nn.Module
    device: torch.device
    classes: tuple[str, ...]
    palette: np.ndarray


def segment_raster(
    predictor: LoadedModel,
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
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Path]:
    """Segment the image file ``source`` of any size into tiled TIFF files; return their paths.

    The labels are those that sliding windows over the whole image in memory give, whatever ``memory`` is. CRS and
    transform are kept. Either all files are written, or none. The image is taken as it is: the
    ``Resize`` of the test pipeline, and a turn that EXIF asks for, are not applied.

    Args:
        predictor: A :class:`Predictor`.
        source: Whatever rasterio opens.
        target: Where labels go, .tif: 255 where the source has no value (65535 with more than 255 classes); with
            ``'confidence'`` among ``kinds``, the probability of each label in percent goes to a file beside it, whose
            name ends in ``_confidence``.
        crop_size: (height, width) of a window in pixels; by default ``test_cfg.crop_size`` of a sliding config, else
            the size of training crops.
        stride: (down, across) from window to window; by default that of a sliding config, else 3/4 of ``crop_size``.
        weights: See ``window_weights`` of :class:`~volo_seg.windows.InferenceConfig`; the config's by
            default.
        batch_windows: Windows that go through the network together, or ``'auto'``; by default the config's.
        memory: MiB for pixels, logits and caches together, beside what the network itself takes for its windows.
        kinds: What to write: ``'labels'``, ``'confidence'`` or both.
        bands: See :class:`RasterSource`.
        value_range: See :class:`RasterSource`.
        overwrite: Whether files that are there may be replaced.
        progress: Called with the windows that are done and their total.

    Raises:
        UserError: The file cannot be read or written, or anything asked for is impossible.
    """
    config = window_config(predictor.model, crop_size=crop_size, stride=stride, weights=weights, batch=batch_windows)
    paths = target_paths(Path(target), kinds, source=Path(source), overwrite=overwrite)
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        reader, masks = (enter(RasterSource(source, bands=bands, value_range=value_range)) for _ in range(2))
        check_raster(Path(source), name=f'raster {str(source)!r}')
        grid = WindowGrid(reader.size, crop_size=config.crop_size, stride=config.stride)
        share = quarter_of(memory, grid, classes=len(predictor.classes))
        enter(import_rasterio().Env(GDAL_CACHEMAX=share))
        targets = {kind: enter(_open_target(kind, path, reader, predictor)) for kind, path in paths.items()}
        writer = enter(BlockWriter(targets, masks))
        store = enter(WindowStore(budget=share, folder=Path(target).absolute().parent))
        blocks = _blocks(predictor.model, reader, grid, config, store, budget=share, progress=progress)
        enter(contextlib.closing(blocks))
        enter(torch.inference_mode())
        for area, rows in blocks:
            writer.put(area, *_scores(rows, predictor.model, confidence='confidence' in paths, budget=share // 2))
        writer.finish()
        progress(len(grid), len(grid))
    return list(paths.values())


def _blocks(
    model: Any,
    reader: RasterSource,
    grid: WindowGrid,
    config: InferenceConfig,
    store: WindowStore,
    *,
    budget: int,
    progress: Callable[[int, int], None],
) -> Generator[tuple[Area, LogitSource | None], None, None]:
    """Send the windows through the network; blocks of the image, each as soon as its last window is there."""
    blend = Blend(grid, weights=config.window_weights, store=store, resized=model.resize_logits, budget=budget // 2)
    windows = read_windows(reader, grid, model, budget=budget)
    meta = {'ori_shape': grid.size, 'img_shape': grid.size, 'pad_shape': grid.size}
    with contextlib.closing(windows):
        for (top, left), logits in model.forward_windows(windows, [meta], config):
            yield from blend.finished(top)
            blend.add(top, left, logits[0])
            progress(_number(grid, top, left), len(grid))
        yield from blend.finished(grid.image[0])


def read_windows(
    reader: RasterSource, grid: WindowGrid, model: Any, *, budget: int
) -> Generator[tuple[Size, Tensor], None, None]:
    """(top, left) and normalised pixels (1, 3, h, w) of each window with any valid pixel, read ahead in a thread."""

    def read(spot: Size) -> tuple[Size, Tensor] | None:
        pixels, valid = reader.pixels(Area(*spot, *grid.size))
        if valid is not None and not valid.any():
            return None
        return spot, _normalised(model, np.ascontiguousarray(pixels))

    ahead = max(1, min(budget // (PIXEL * grid.size[0] * grid.size[1]), 2 * MAX_WINDOWS))
    pool = ThreadPoolExecutor(1, thread_name_prefix='volo-seg-read')
    coming: deque[Future[tuple[Size, Tensor] | None]] = deque()
    try:
        for spot in grid:
            coming.append(pool.submit(read, spot))
            if len(coming) > ahead and (window := coming.popleft().result()) is not None:
                yield window
        while coming:
            if (window := coming.popleft().result()) is not None:
                yield window
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _normalised(model: Any, pixels: np.ndarray) -> Tensor:
    data = {'inputs': [torch.from_numpy(pixels)], 'data_samples': [SegDataSample()]}
    inputs = model.data_preprocessor(data, False)['inputs']
    if inputs.shape[2:] != pixels.shape[1:]:
        raise UserError(
            'model.data_preprocessor.test_cfg pads images, and rasters are cut into windows as they are; add '
            '--cfg-options model.data_preprocessor.test_cfg=None'
        )
    return inputs


def _scores(
    rows: LogitSource | None, model: Any, *, confidence: bool, budget: int
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Labels of a block, and their probability in percent if it is asked for."""
    if rows is None:
        return None, None
    threshold = model.decode_head.threshold if rows.channels == 1 else None
    if not confidence:
        return compute_labels(rows, budget=budget, threshold=threshold)[0].cpu().numpy(), None
    labels, shares = compute_labels_and_confidence(rows, budget=budget, threshold=threshold)
    # no window at all lies over some pixels without a value: their share is 0 / 0
    return labels.cpu().numpy(), (100 * shares).nan_to_num_().round_().cpu().numpy()


def _open_target(kind: str, path: Path, reader: RasterSource, network: LoadedModel) -> RasterTarget:
    wide = kind == 'labels' and len(network.classes) > 255
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
        classes=network.classes,
        palette=network.palette if labels else None,
    )
    return target


def _number(grid: WindowGrid, top: int, left: int) -> int:
    """How many windows are done with that at (``top``, ``left``)."""
    return bisect.bisect_left(grid.tops, top) * len(grid.lefts) + bisect.bisect_right(grid.lefts, left)

"""Raster files written by blocks, whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from volo_seg import __version__
from volo_seg.errors import UserError
from volo_seg.inference.raster.blending import TILE, Area
from volo_seg.inference.raster.source import RasterSource, import_rasterio
from volo_seg.io import part_path

WAITING = 2
"""Blocks that wait to be written at most."""
SOFTWARE = f'volo-seg {__version__}'


class RasterTarget:
    """A tiled, compressed TIFF of one band, written by blocks; it appears when it is complete.

    Args:
        path: Ends in .tif or .tiff.
        size: (height, width) in pixels.
        dtype: NumPy's name of the type.
        nodata: Value of pixels without a result.
        georeference: As in :attr:`RasterSource.georeference`.

    Raises:
        UserError: The disk refuses it.
    """

    def __init__(
        self, path: Path, size: tuple[int, int], *, dtype: str, nodata: int, georeference: dict[str, Any]
    ) -> None:
        self.path, self.nodata, self.dtype = path, nodata, np.dtype(dtype)
        self.part = part_path(path, suffix='.tif')
        self._rasterio = import_rasterio()
        self._last: Any = None
        with self._one_sentence():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.dataset: Any = self._rasterio.open(
                self.part,
                'w',
                driver='GTiff',
                height=size[0],
                width=size[1],
                count=1,
                dtype=dtype,
                nodata=nodata,
                tiled=True,
                blockxsize=TILE,
                blockysize=TILE,
                compress='deflate',
                BIGTIFF='IF_SAFER',
                **georeference,
            )
            self.dataset.update_tags(TIFFTAG_SOFTWARE=SOFTWARE)

    def __enter__(self) -> RasterTarget:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.dataset.close()
        finally:
            self.part.unlink(missing_ok=True)

    def describe(self, text: str, *, classes: Sequence[str], palette: np.ndarray | None = None) -> None:
        """Note what the values are: a text, the class names (as JSON), and the colours of a map of labels."""
        self.dataset.update_tags(CLASSES=json.dumps(list(classes), ensure_ascii=False))
        self.dataset.set_band_description(1, text)
        if palette is not None:
            colours = {index: (*map(int, colour), 255) for index, colour in enumerate(palette)}
            self.dataset.write_colormap(1, {**colours, self.nodata: (0, 0, 0, 0)})

    def write(self, area: Area, values: np.ndarray) -> None:
        """Write ``values`` (height, width) to ``area``; the lower right corner of the image comes last.

        Raises:
            UserError: The disk refuses it.
        """
        window = self._rasterio.windows.Window(area.left, area.top, area.width, area.height)
        with self._one_sentence():
            self.dataset.write(values.astype(self.dtype, copy=False), 1, window=window)
        self._last = values[-1, -1]

    def close(self) -> None:
        """Complete the file, and look whether it is: closing it on a full disk may fail without a word.

        Raises:
            UserError: The disk refuses it.
        """
        with self._one_sentence():
            self.dataset.close()
            with self._rasterio.open(self.part) as found:
                height, width = found.shape
                corner = found.read(1, window=self._rasterio.windows.Window(width - 1, height - 1, 1, 1))
                if corner.item() != self._last:
                    raise OSError('the end of the file was not written')

    def publish(self) -> None:
        """Put the closed file in its place.

        Raises:
            UserError: The disk refuses it.
        """
        with self._one_sentence():
            os.replace(self.part, self.path)

    @contextlib.contextmanager
    def _one_sentence(self) -> Iterator[None]:
        try:
            yield
        except (OSError, self._rasterio.errors.RasterioError) as error:
            reason = error.__cause__ or error
            raise UserError(
                f'raster {str(self.path)!r} cannot be written ({reason}); free some space or name another place'
            ) from error


class BlockWriter:
    """Writes blocks in a thread, with ``nodata`` where ``source`` has no value; ``targets`` are by kind.

    ``source`` is used by that thread alone.
    """

    def __init__(self, targets: dict[str, RasterTarget], source: RasterSource) -> None:
        self.targets, self.source = targets, source
        self._pool = ThreadPoolExecutor(1, thread_name_prefix='volo-seg-write')
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> BlockWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def put(self, area: Area, labels: np.ndarray | None, confidence: np.ndarray | None = None) -> None:
        """Write a block soon; None where nothing is known of it. Waits while others wait.

        Raises:
            UserError: The disk refused an earlier block.
        """
        while len(self._waiting) >= WAITING:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(self._write, area, {'labels': labels, 'confidence': confidence}))

    def finish(self) -> None:
        """Wait for all blocks, and put the files in their places.

        Raises:
            UserError: The disk refuses it.
        """
        while self._waiting:
            self._waiting.popleft().result()
        for target in self.targets.values():
            target.close()
        for target in self.targets.values():
            target.publish()

    def _write(self, area: Area, blocks: dict[str, np.ndarray | None]) -> None:
        valid = self.source.valid(area)
        for kind, target in self.targets.items():
            block = blocks[kind]
            if block is None:
                values = np.full((area.height, area.width), target.nodata, target.dtype)
            else:
                values = block.astype(target.dtype)
                if valid is not None:
                    values[~valid] = target.nodata
            target.write(area, values)

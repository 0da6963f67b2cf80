"""Raster files written by blocks, atomically."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from volo_seg import __version__
from volo_seg.inference.raster.blending import TILE, Area
from volo_seg.inference.raster.source import import_rasterio
from volo_seg.io import WriteError, part_path

SOFTWARE = f'volo-seg {__version__}'


class RasterTarget:
    """A tiled, compressed TIFF of one band, written by blocks to a temporary file until :meth:`publish`.

    Args:
        path: Ends in .tif or .tiff.
        size: (height, width) in pixels.
        dtype: NumPy name of the type.
        nodata: Value of pixels without a result.
        georeference: See :attr:`RasterSource.georeference`.

    Raises:
        WriteError: The file cannot be written.
    """

    def __init__(
        self, path: Path, size: tuple[int, int], *, dtype: str, nodata: int, georeference: dict[str, Any]
    ) -> None:
        self.path, self.nodata, self.dtype = path, nodata, np.dtype(dtype)
        self.part = part_path(path, suffix='.tif')
        self._rasterio = import_rasterio()
        self._last: Any = None
        with self._write_errors():
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
        """Set the band description, the tag ``CLASSES`` (JSON), and the colour map of a label map."""
        self.dataset.update_tags(CLASSES=json.dumps(list(classes), ensure_ascii=False))
        self.dataset.set_band_description(1, text)
        if palette is not None:
            colours = {index: (*map(int, colour), 255) for index, colour in enumerate(palette)}
            self.dataset.write_colormap(1, {**colours, self.nodata: (0, 0, 0, 0)})

    def write(self, area: Area, values: np.ndarray) -> None:
        """Write ``values`` (height, width) to ``area``. The area with the lower right corner of the image must be last.

        Raises:
            WriteError: The file cannot be written.
        """
        window = self._rasterio.windows.Window(area.left, area.top, area.width, area.height)
        with self._write_errors():
            self.dataset.write(values.astype(self.dtype, copy=False), 1, window=window)
        self._last = values[-1, -1]

    def close(self) -> None:
        """Close the file and add overviews, down to one tile, of the nearest pixels.

        The last pixel and the last overview are read again, because GDAL reports no error when the disk is full.

        Raises:
            WriteError: The file cannot be written.
        """
        with self._write_errors():
            self.dataset.close()
            with self._rasterio.open(self.part) as found:
                height, width = found.shape
                corner = found.read(1, window=self._rasterio.windows.Window(width - 1, height - 1, 1, 1))
                if corner.item() != self._last:
                    raise OSError('the last block was not written')
            steps = math.ceil(math.log2(max(height, width) / TILE))
            factors = [2**step for step in range(1, steps + 1)]
            if not factors:
                return
            with self._rasterio.open(self.part, 'r+') as file:
                file.build_overviews(factors, self._rasterio.enums.Resampling.nearest)
            with self._rasterio.open(self.part) as found:
                if len(found.overviews(1)) != steps:
                    raise OSError('the overviews were not written')
            with self._rasterio.open(self.part, overview_level=steps - 1) as found:
                found.read(1)

    def publish(self) -> None:
        """Move the closed file to its place.

        Raises:
            WriteError: The file cannot be written.
        """
        with self._write_errors():
            os.replace(self.part, self.path)

    @contextlib.contextmanager
    def _write_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, self._rasterio.errors.RasterioError) as error:
            raise WriteError(self.path, error.__cause__ or error) from error

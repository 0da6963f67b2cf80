"""Raster files of any size, read by windows: TIFF, GeoTIFF and whatever else rasterio opens."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import numpy as np

from volo_seg.errors import UserError
from volo_seg.inference.raster.blending import Area


def import_rasterio() -> ModuleType:
    """The package rasterio.

    Raises:
        UserError: It is not installed.
    """
    try:
        import rasterio
    except ImportError as error:
        raise UserError("rasters need the package rasterio: pip install 'volo-seg[geo]'") from error
    warnings.filterwarnings('ignore', category=rasterio.errors.NotGeoreferencedWarning)
    return rasterio


class RasterSource:
    """An image file of any size, read by windows. Not for several threads at once: open it again for another.

    Args:
        path: The file.
        bands: Numbers, from 1 up, of the bands that are red, green and blue, or of one that is grey. By default those
            that say that they are, or the only one, or three that are all there is; transparency is not counted.
        value_range: (black, white): the values between which the bands are spread over 0 to 255; what lies outside is
            cut off. Needed for all types but 8 bit, which stays as it is without.

    Raises:
        UserError: No such file, none that rasterio opens, bands that are not there or unclear, values of which nobody
            knows what is black and white, palettes and complex numbers.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        bands: Sequence[int] | None = None,
        value_range: tuple[float, float] | None = None,
    ) -> None:
        rasterio = import_rasterio()
        self.name = str(path)
        if not Path(path).is_file():
            raise UserError(f'raster {self.name!r} does not exist or is not a file')
        try:
            self.dataset: Any = rasterio.open(path)
        except rasterio.errors.RasterioError as error:
            raise UserError(f'raster {self.name!r} is damaged or not an image ({error})') from error
        try:
            self.bands = choose_bands(self.dataset, bands, name=self.name)
            self.value_range = _check_range(self.dataset, self.bands, value_range, name=self.name)
        except UserError:
            self.dataset.close()
            raise
        self.size: tuple[int, int] = self.dataset.height, self.dataset.width
        flags = [self.dataset.mask_flag_enums[band - 1] for band in self.bands]
        self._masked = any(flag != [rasterio.enums.MaskFlags.all_valid] for flag in flags)
        self._floating = any(self.dataset.dtypes[band - 1].startswith('float') for band in self.bands)

    def __enter__(self) -> RasterSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.dataset.close()

    @property
    def georeference(self) -> dict[str, Any]:
        """CRS, transform, ground control points and rational polynomials, as rasterio takes them for a new file."""
        points, points_crs = self.dataset.gcps
        found = {'crs': self.dataset.crs, 'rpcs': self.dataset.rpcs}
        if not self.dataset.transform.is_identity:
            found['transform'] = self.dataset.transform
        elif points:
            found |= {'gcps': points, 'crs': points_crs}
        return {key: value for key, value in found.items() if value}

    def pixels(self, area: Area) -> tuple[np.ndarray, np.ndarray | None]:
        """Blue, green and red (3, height, width) of ``area`` in 0 to 255, and which are valid; see :meth:`valid`."""
        data = self._read(self.bands, area)
        valid = self._valid(area, data)
        if self.value_range is not None:
            black, white = self.value_range
            data = (data.astype(np.float32) - np.float32(black)) * np.float32(255 / (white - black))
            data = np.nan_to_num(data, copy=False, nan=0, posinf=255, neginf=0).clip(0, 255)
        return np.broadcast_to(data[::-1], (3, *data.shape[1:])), valid

    def valid(self, area: Area) -> np.ndarray | None:
        """(height, width): whether a pixel has a value in at least one of the bands, and NaN in none; None if all."""
        return self._valid(area, self._read(self.bands, area) if self._floating else None)

    def _valid(self, area: Area, data: np.ndarray | None) -> np.ndarray | None:
        if not self._masked and not self._floating:
            return None
        valid = np.ones((area.height, area.width), bool)
        if self._masked:
            valid &= self._read(self.bands, area, masks=True).any(0)
        if self._floating and data is not None:
            valid &= ~np.isnan(data).any(0)
        return valid

    def _read(self, bands: Sequence[int], area: Area, *, masks: bool = False) -> np.ndarray:
        rasterio = import_rasterio()
        window = rasterio.windows.Window(area.left, area.top, area.width, area.height)
        try:
            return (self.dataset.read_masks if masks else self.dataset.read)(list(bands), window=window)
        except rasterio.errors.RasterioError as error:
            raise UserError(
                f'raster {self.name!r} is damaged or cut off: the pixels at row {area.top}, column {area.left} cannot '
                f'be read ({error.__cause__ or error})'
            ) from error


def choose_bands(dataset: Any, asked: Sequence[int] | None, *, name: str) -> tuple[int, ...]:
    """The numbers of the red, green and blue band of a raster, or of its grey band; see :class:`RasterSource`.

    Raises:
        UserError: They are not there, or not to be told.
    """
    count, kinds = dataset.count, [kind.name for kind in dataset.colorinterp]
    if asked is not None:
        if len(asked) not in (1, 3) or not all(1 <= band <= count for band in asked):
            raise UserError(f'bands {list(asked)} of {name!r}: give one or three numbers from 1 to {count}')
        return tuple(asked)
    if 'palette' in kinds:
        raise UserError(f'raster {name!r} has a palette; turn it into colours first (gdal_translate -expand rgb)')
    if {'red', 'green', 'blue'} <= set(kinds):
        return tuple(kinds.index(colour) + 1 for colour in ('red', 'green', 'blue'))
    opaque = [band for band, kind in enumerate(kinds, 1) if kind != 'alpha']
    if len(opaque) not in (1, 3):
        raise UserError(
            f'raster {name!r} has {len(opaque)} bands ({", ".join(kinds)}); say which are red, green and blue, such as '
            '--bands 3 2 1'
        )
    return tuple(opaque)


def _check_range(
    dataset: Any, bands: Sequence[int], value_range: tuple[float, float] | None, *, name: str
) -> tuple[float, float] | None:
    types = {dataset.dtypes[band - 1] for band in bands}
    if any(kind.startswith('complex') for kind in types):
        raise UserError(f'raster {name!r} has complex numbers; turn them into intensities first')
    if value_range is None:
        if types != {'uint8'}:
            raise UserError(
                f'raster {name!r} is of {" and ".join(sorted(types))}, not 8 bit; say which values are black and '
                'white, such as --range 0 10000'
            )
        return None
    black, white = value_range
    if not (np.isfinite([black, white]).all() and black < white):
        raise UserError(f'range {black} {white}: give two numbers, the first (black) below the second (white)')
    return black, white

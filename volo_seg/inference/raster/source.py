"""Raster files of any size, read by windows with GDAL. No other file is opened, whatever a raster names."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import numpy as np

from volo_seg.errors import UserError
from volo_seg.imageio import check_range, scale_to_range
from volo_seg.inference.raster.blending import Area
from volo_seg.io import check_regular, read_lines

DRIVERS = ('GTiff', 'PNG', 'JPEG', 'JP2OpenJPEG', 'WEBP', 'BMP')
"""GDAL's drivers that are used. Others, such as VRT, read the files and URLs that a file names."""
OPTIONS = {'GDAL_DISABLE_READDIR_ON_OPEN': 'EMPTY_DIR', 'GDAL_PAM_ENABLED': 'NO'}
"""GDAL ignores files beside a raster (.ovr, .aux.xml, .msk), which may name others; see :func:`open_raster`."""
WORLD_SUFFIXES = {'.tif': '.tfw', '.tiff': '.tfw', '.jpg': '.jgw', '.jpeg': '.jgw', '.png': '.pgw', '.jp2': '.j2w'}


def import_rasterio() -> ModuleType:
    """Import rasterio.

    Raises:
        UserError: It is not installed.
    """
    try:
        import rasterio
    except ImportError as error:
        raise UserError("rasters need the package rasterio: pip install 'volo-seg[geo]'") from error
    warnings.filterwarnings('ignore', category=rasterio.errors.NotGeoreferencedWarning)
    return rasterio


def open_raster(path: Path) -> Any:
    """Open a regular file with one of :data:`DRIVERS`; return rasterio's dataset.

    Raises:
        UserError: There is no such file, it is of another format, or it names another file.
    """
    rasterio = import_rasterio()
    name = f'raster {str(path)!r}'
    try:
        check_regular(path)
    except OSError as error:
        raise UserError(
            f'{name} does not exist or is not a file ({error.strerror or error}); correct the path'
        ) from error
    try:
        with rasterio.Env(**OPTIONS):
            dataset = rasterio.DatasetReader(os.path.abspath(path), driver=list(DRIVERS))
    except rasterio.errors.RasterioError as error:
        raise UserError(
            f'{name} is damaged or not an image ({error}); give a TIFF, PNG, JPEG, JPEG 2000, WebP or BMP file'
        ) from error
    if dataset.tags(ns='OVERVIEWS'):  # OVERVIEW_FILE in a tag of a TIFF: GDAL opens it for reduced copies
        dataset.close()
        raise UserError(f'{name} names another file for its overviews; write it again with gdal_translate')
    return dataset


class RasterSource:
    """An image file of any size, read by windows. Not thread-safe: each thread needs a source of its own.

    A mask in a file ``<path>.msk`` and a world file (``.tfw``, ``.jgw``, ``.pgw``, ``.j2w``, ``.wld``) are read too.

    Args:
        path: The file; see :func:`open_raster`.
        bands: Numbers, from 1, of the red, green and blue band, or of one grey band. By default the bands marked so,
            else the only band, else the only three bands. An alpha band does not count.
        value_range: (black, white): values that become 0 and 255; see :func:`volo_seg.imageio.scale_to_range`.
        model_range: The range that the model was trained with, for bands of more than 8 bits if there is no
            ``value_range``. One of the two is needed unless all bands have 8 bits.

    Raises:
        UserError: The file cannot be used, its bands or value range are ambiguous, or it has a palette or complex
            numbers.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        bands: Sequence[int] | None = None,
        value_range: tuple[float, float] | None = None,
        model_range: tuple[float, float] | None = None,
    ) -> None:
        rasterio = import_rasterio()
        self.name = str(path)
        self.dataset: Any = open_raster(Path(path))
        self._mask_file: Any = None
        try:
            self.bands = select_bands(self.dataset, bands, name=self.name)
            self.value_range = _choose_range(self.dataset, self.bands, value_range, model_range, name=self.name)
            if Path(f'{path}.msk').exists():
                self._mask_file = open_raster(Path(f'{path}.msk'))
                if self._mask_file.shape != self.dataset.shape:
                    raise UserError(
                        f'mask {self._mask_file.name!r} has another size than its raster; remove or replace it'
                    )
            self._transform = self.dataset.transform
            if self._transform.is_identity:
                self._transform = _world_transform(Path(path), rasterio) or self._transform
        except UserError:
            self.close()
            raise
        self.size: tuple[int, int] = self.dataset.shape
        flags = [self.dataset.mask_flag_enums[band - 1] for band in self.bands]
        self._masked = any(flag != [rasterio.enums.MaskFlags.all_valid] for flag in flags)
        self._floating = any(self.dataset.dtypes[band - 1].startswith('float') for band in self.bands)

    def close(self) -> None:
        """Close the files."""
        self.dataset.close()
        if self._mask_file is not None:
            self._mask_file.close()

    def __enter__(self) -> RasterSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def georeference(self) -> dict[str, Any]:
        """CRS, transform, ground control points and rational polynomials, as rasterio takes them for a new file."""
        points, points_crs = self.dataset.gcps
        found = {'crs': self.dataset.crs, 'rpcs': self.dataset.rpcs}
        if not self._transform.is_identity:
            found['transform'] = self._transform
        elif points:
            found |= {'gcps': points, 'crs': points_crs}
        return {key: value for key, value in found.items() if value}

    def pixels(self, area: Area) -> tuple[np.ndarray, np.ndarray | None]:
        """The pixels of ``area``, (3, height, width) BGR in [0, 255], and their validity as in :meth:`valid`."""
        data = self._read(self.dataset.read, self.bands, area)
        valid = self._valid(area, data)
        if self.value_range is not None:
            data = scale_to_range(data, self.value_range)
        return np.broadcast_to(data[::-1], (3, *data.shape[1:])), valid

    def valid(self, area: Area) -> np.ndarray | None:
        """(height, width): whether each pixel has a value in one of the bands, and no NaN; None if all do."""
        return self._valid(area, self._read(self.dataset.read, self.bands, area) if self._floating else None)

    def _valid(self, area: Area, data: np.ndarray | None) -> np.ndarray | None:
        if not (self._masked or self._floating or self._mask_file):
            return None
        valid = np.ones((area.height, area.width), bool)
        if self._masked:
            valid &= self._read(self.dataset.read_masks, self.bands, area).any(0)
        if self._mask_file:
            one_per_band = self._mask_file.count == self.dataset.count
            valid &= self._read(self._mask_file.read, self.bands if one_per_band else [1], area).any(0)
        if self._floating and data is not None:
            valid &= ~np.isnan(data).any(0)
        return valid

    def _read(self, read: Callable[..., np.ndarray], bands: Sequence[int], area: Area) -> np.ndarray:
        rasterio = import_rasterio()
        window = rasterio.windows.Window(area.left, area.top, area.width, area.height)
        try:
            return read(list(bands), window=window)
        except rasterio.errors.RasterioError as error:
            raise UserError(
                f'raster {self.name!r} is damaged or cut off: the pixels at row {area.top}, column {area.left} cannot '
                f'be read ({error.__cause__ or error}); copy it again'
            ) from error


def select_bands(dataset: Any, bands: Sequence[int] | None, *, name: str) -> tuple[int, ...]:
    """The numbers of the red, green and blue band of a raster, or of its grey band; see :class:`RasterSource`.

    Raises:
        UserError: They do not exist, or are ambiguous.
    """
    count, kinds = dataset.count, [kind.name for kind in dataset.colorinterp]
    if bands is not None:
        if len(bands) not in (1, 3) or not all(1 <= band <= count for band in bands):
            raise UserError(f'bands {list(bands)} of {name!r}: give one or three numbers from 1 to {count}')
        return tuple(bands)
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


def _world_transform(path: Path, rasterio: ModuleType) -> Any:
    """The transform in the world file of a raster, which has the centre of the first pixel; None without a file."""
    names = [path.with_suffix(suffix) for suffix in (WORLD_SUFFIXES.get(path.suffix.lower(), '.wld'), '.wld')]
    world = next((name for name in names if name.exists()), None)
    if world is None:
        return None
    try:
        a, d, b, e, x, y = map(float, read_lines(world, most_bytes=4096)[:6])
    except (OSError, ValueError) as error:
        raise UserError(
            f'world file {str(world)!r} does not hold six numbers ({error}); remove or replace it'
        ) from error
    return rasterio.Affine(a, b, x - (a + b) / 2, d, e, y - (d + e) / 2)


def _choose_range(
    dataset: Any,
    bands: Sequence[int],
    value_range: tuple[float, float] | None,
    model_range: tuple[float, float] | None,
    *,
    name: str,
) -> tuple[float, float] | None:
    types = {dataset.dtypes[band - 1] for band in bands}
    if any(kind.startswith('complex') for kind in types):
        raise UserError(f'raster {name!r} has complex numbers; turn them into intensities first')
    if value_range is None and types != {'uint8'}:
        if model_range is None:
            raise UserError(
                f'raster {name!r} is of {" and ".join(sorted(types))}, not 8 bit; say which values are black and '
                'white, such as --range 0 10000'
            )
        return model_range
    return check_range(value_range)

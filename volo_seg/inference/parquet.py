"""``parquet/``: a table of path, size, shares, masks, model and error of each image, in parts written whole."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import threading
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from volo_seg.errors import UserError
from volo_seg.inference.output_formats import OUTPUT_FORMATS
from volo_seg.inference.remote import Location, open_url, target_file, write_file

Row = dict[str, Any]
COLUMNS = ('path', 'name', 'width', 'height', 'model', 'shares', 'masks', 'error')
PART_ROWS = 256
"""Rows of a part; a killed run loses the rows of its current part, and segments their images again."""


def result_row(name: str, labels: np.ndarray, *, classes: Sequence[str], source: Location | None, model: str) -> Row:
    """The row of an image with ``labels`` (H, W): by class, shares in [0, 1], and masks as compressed RLE of COCO."""
    from pycocotools.mask import encode

    labels = np.asfortranarray(labels)
    counts = np.bincount(labels.ravel(order='K'), minlength=len(classes))
    found = np.flatnonzero(counts).tolist()
    return {
        **error_row(None, name, source=source, model=model),
        'width': labels.shape[1],
        'height': labels.shape[0],
        'shares': [(classes[i], counts[i] / labels.size) for i in found],
        'masks': [(classes[i], encode((labels == i).view(np.uint8))['counts'].decode()) for i in found],
    }


def error_row(error: str | None, name: str, *, source: Location | None, model: str) -> Row:
    """The row of an image that could not be segmented."""
    path = os.path.abspath(source) if isinstance(source, Path) else source
    return {**dict.fromkeys(COLUMNS), 'path': path, 'name': name, 'model': model, 'error': error}


class ParquetTable:
    """The table in an output folder.

    Args:
        folder: The output folder, a path or URL.
        model: Digest of the model; see :func:`.model_digest`.

    Raises:
        UserError: pyarrow or pycocotools is missing.
    """

    def __init__(self, folder: Location, model: str = '') -> None:
        try:
            import pyarrow.parquet  # noqa: F401
            import pycocotools  # noqa: F401
        except ImportError as error:
            raise UserError(
                f"--kinds parquet needs the package {error.name}: pip install 'volo-seg[import]'"
            ) from error
        self.folder, self.model = folder, model
        self.place = target_file(folder, OUTPUT_FORMATS['parquet'].folder)
        self._rows: list[Row] = []
        self._lock = threading.Lock()

    def finished(self) -> set[str]:
        """The names of the images with a row of this model and without an error."""
        rows = self._index()
        return {row['name'] for row in rows if row['error'] is None and row['model'] == self.model}

    def drop(self, names: Collection[str], *, videos: Collection[str] = ()) -> None:
        """Remove the rows with ``names``, and those of the frames of ``videos``; a part is replaced in one step."""
        import pyarrow.parquet

        def is_dropped(name: str) -> bool:
            return name in names or PurePath(name).parent.as_posix() in videos

        for part in sorted({row['__filename'] for row in self._index() if is_dropped(row['name'])}):
            with self._explained():
                system = open_url(self.place)[0]
                table = pyarrow.parquet.read_table(io.BytesIO(system.cat_file(part)), schema=schema())
                kept = table.filter([not is_dropped(name) for name in table['name'].to_pylist()])
                if not kept.num_rows:
                    system.rm_file(part)
            if kept.num_rows:
                self._write(kept, PurePath(part).name)

    def add(self, row: Row) -> None:
        """Add a row; may be called from several threads.

        Raises:
            WriteError: A part was complete, and cannot be written.
        """
        with self._lock:
            self._rows.append(row)
            rows = self._rows if len(self._rows) >= PART_ROWS else []
            if rows:
                self._rows = []
        self._write_rows(rows)

    def flush(self) -> None:
        """Write the rows of the part that is not complete; raises WriteError if it cannot be written."""
        rows, self._rows = self._rows, []
        self._write_rows(rows)

    def _write_rows(self, rows: Sequence[Row]) -> None:
        if rows:
            import pyarrow

            rows = sorted(rows, key=lambda row: row['name'])
            # equal images give an equal file name: what is written twice stands there once
            digest = hashlib.sha256('\0'.join(row['name'] for row in rows).encode()).hexdigest()
            self._write(pyarrow.Table.from_pylist(rows, schema=schema()), f'part-{digest[:16]}.parquet')

    def _write(self, table: Any, name: str) -> None:
        import pyarrow.parquet

        content = io.BytesIO()
        pyarrow.parquet.write_table(table, content, compression='zstd')
        write_file(target_file(self.folder, f'{OUTPUT_FORMATS["parquet"].folder}/{name}'), content.getvalue())

    def _index(self) -> list[Row]:
        """Name, model, error and ``__filename`` of each row; the other columns are not read."""
        import pyarrow.dataset

        with self._explained():
            system, root = open_url(self.place)
            parts = sorted(path for path in system.find(root) if PurePath(path).match('part-*.parquet'))
            if not parts:
                return []
            data = pyarrow.dataset.dataset(parts, schema=schema(), format='parquet', filesystem=system)
            return data.to_table(columns=['name', 'model', 'error', '__filename']).to_pylist()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, KeyError) as error:
            reason = ' '.join(str(error).split())[:200]
            raise UserError(f'{str(self.place)!r} is not a table of volo-seg infer ({reason}); move it away') from error


def schema() -> Any:
    """The schema of pyarrow."""
    import pyarrow as pa

    kinds = {'width': pa.int32(), 'height': pa.int32()}
    kinds |= {'shares': pa.map_(pa.string(), pa.float64()), 'masks': pa.map_(pa.string(), pa.string())}
    return pa.schema([(name, kinds.get(name, pa.string())) for name in COLUMNS])

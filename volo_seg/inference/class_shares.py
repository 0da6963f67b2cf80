"""``shares.csv``: the share of each class in each image. Processes write parts, which are merged into one table."""

from __future__ import annotations

import csv
import io
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath

import numpy as np

from volo_seg.errors import UserError
from volo_seg.inference.output_formats import OUTPUT_FORMATS
from volo_seg.io import WriteError, atomic_write, file_lock, safe_join

COLUMNS = ('name', 'source', 'width', 'height')
"""The first columns; the others are the classes."""
Row = tuple[str, ...]


def share_row(name: str, labels: np.ndarray, *, class_count: int, source: Path | str | None) -> Row:
    """The row of an image with ``labels`` (H, W); shares are in [0, 1] with six digits."""
    height, width = labels.shape
    shares = np.bincount(labels.ravel(), minlength=class_count) / labels.size
    return (name, str(source or ''), str(width), str(height), *(f'{share:.6f}' for share in shares))


class ShareTable:
    """The table in an output folder.

    Args:
        out_dir: The output folder.
        classes: Class names.
    """

    def __init__(self, out_dir: Path, classes: Sequence[str]) -> None:
        self.path = safe_join(out_dir, OUTPUT_FORMATS['shares'].folder)
        self.head = (*COLUMNS, *classes)

    def rows(self) -> dict[str, Row]:
        """The rows by name.

        Raises:
            UserError: The file is not a table of these classes.
        """
        found = _read(self.path)
        if found and found[0] != self.head:
            raise UserError(f'{str(self.path)!r} is a table of other classes; name another --out-dir, or move it away')
        return {row[0]: row for row in found[1:]}

    def merge(self, rows: Mapping[str, Row], *, order: Sequence[str] = ()) -> None:
        """Add ``rows`` to the table; a row replaces that of the same name. Safe for concurrent processes.

        Args:
            rows: By name.
            order: Names of images and videos. Their rows, and those of the frames of a video, are last, in this order.

        Raises:
            UserError: The file is not a table of these classes, or it cannot be written.
        """
        places = {name: place for place, name in enumerate(order)}

        def place_of(name: str) -> tuple[int, str]:
            place = places.get(name, places.get(PurePath(name).parent.as_posix(), -1))
            return place, name if place >= 0 else ''

        with file_lock(self.path.with_name(f'.{self.path.name}.lock')):
            merged = {**self.rows(), **rows}
            atomic_write(self.path, _csv([self.head, *(merged[name] for name in sorted(merged, key=place_of))]))


class SharePart:
    """The rows of one process, appended to a file of its own until :meth:`flush` merges them into the table.

    A killed run leaves its parts behind. The next run merges them: that of its own rank, and rank 0 those of ranks that
    it does not have.

    Args:
        out_dir: The output folder.
        rank: Number of this process.
        world_size: Number of processes.
    """

    def __init__(self, out_dir: Path, *, rank: int, world_size: int) -> None:
        own = [out_dir / f'.shares.{other}.csv' for other in range(world_size)]
        self._files = [own[rank]] + ([] if rank else [path for path in _parts(out_dir) if path not in own])
        self.rows = {row[0]: row for path in self._files for row in _read_part(path)}
        self._begun = False
        self._lock = threading.Lock()

    def add(self, row: Row) -> None:
        """Append a row; may be called from several threads.

        Raises:
            WriteError: The part cannot be written.
        """
        with self._lock:
            self.rows[row[0]] = row
            if not self._begun:  # an interrupted write may have left half a row
                atomic_write(self._files[0], _csv(self.rows.values()))
                self._begun = True
                return
            try:
                with self._files[0].open('ab') as file:
                    file.write(_csv([row]))
            except OSError as error:
                raise WriteError(self._files[0], error.strerror) from error

    def flush(self, table: ShareTable, *, order: Sequence[str]) -> None:
        """Merge the rows into ``table`` (see :meth:`ShareTable.merge`), and delete the part."""
        rows = {name: row for name, row in self.rows.items() if len(row) == len(table.head)}
        if rows:
            table.merge(rows, order=order)
        for path in self._files:
            path.unlink(missing_ok=True)


def finished_names(out_dir: Path) -> set[str]:
    """The names of the images with a row in the table or in a part.

    Raises:
        UserError: The table cannot be read.
    """
    table = _read(out_dir / OUTPUT_FORMATS['shares'].folder)[1:]
    return {row[0] for rows in (table, *map(_read_part, _parts(out_dir))) for row in rows}


def _read(path: Path) -> list[Row]:
    try:
        with path.open(encoding='utf-8', newline='') as file:
            rows = [tuple(row) for row in csv.reader(file)]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f'{str(path)!r} cannot be read as a table ({error}); move it away') from error
    if not rows or rows[0][: len(COLUMNS)] != COLUMNS or len({len(row) for row in rows}) > 1:
        raise UserError(f'{str(path)!r} is not a table of class shares; name another --out-dir, or move it away')
    return rows


def _csv(rows: Iterable[Row]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows(rows)
    return text.getvalue().encode()


def _parts(out_dir: Path) -> list[Path]:
    return sorted(out_dir.glob('.shares.*.csv'))


def _read_part(path: Path) -> list[Row]:
    """The rows of a part, without a last one that an interrupted write has cut off."""
    text = path.read_text(encoding='utf-8', errors='replace') if path.exists() else ''
    return [tuple(row) for row in csv.reader(io.StringIO(text[: text.rfind('\n') + 1], newline='')) if row]

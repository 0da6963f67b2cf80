"""The table of class shares: one CSV file below the output folder, one row an image, whoever adds to it."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import numpy as np

from volo_seg.errors import UserError
from volo_seg.inference.batch.sharing import Share
from volo_seg.inference.files import inside
from volo_seg.inference.output_formats import KINDS
from volo_seg.io import atomic_write, file_lock

if TYPE_CHECKING:
    from volo_seg.inference.result import Result

Row = tuple[str, ...]
"""What stands behind the name: source, width, height, and the share of each class in [0, 1]."""


def share_row(result: Result, source: Path | None) -> Row:
    """The row of one image; the shares have six digits."""
    height, width = result.labels.shape
    counts = np.bincount(result.labels.ravel(), minlength=len(result.classes)) / result.labels.size
    return (str(source or ''), str(width), str(height), *(f'{share:.6f}' for share in counts))


class ShareTable:
    """``out_dir/shares.csv``; several processes may add to it, and none loses another's rows.

    Args:
        out_dir: The output folder.
        classes: Names of the columns.
    """

    def __init__(self, out_dir: Path, classes: Sequence[str]) -> None:
        self.path = inside(out_dir, KINDS['shares'].folder)
        self.head = ('name', 'source', 'width', 'height', *classes)

    def rows(self) -> dict[str, Row]:
        """The rows that are there, by name.

        Raises:
            UserError: The file is another table.
        """
        found = read_table(self.path)
        if found and found[0] != self.head:
            raise UserError(f'{str(self.path)!r} is a table of other classes; name another --out-dir, or move it away')
        return {line[0]: line[1:] for line in found[1:]}

    def merge(self, rows: Mapping[str, Row], *, order: Sequence[str] = ()) -> None:
        """Add ``rows``, in place of those with the same name; images of ``order`` stand last and in that order.

        A name of ``order`` stands for the frames below it, too.

        Raises:
            UserError: The file is another table, or it cannot be written.
        """
        with file_lock(self.path.with_name(f'.{self.path.name}.lock')):
            merged = {**self.rows(), **rows}
            places = {name: place for place, name in enumerate(order)}
            names = sorted(merged, key=lambda name: _place_of(name, places))
            text = io.StringIO()
            csv.writer(text, lineterminator='\n').writerows([self.head, *((name, *merged[name]) for name in names)])
            atomic_write(self.path, text.getvalue().encode())


def _place_of(name: str, places: Mapping[str, int]) -> tuple[int, str]:
    """Where a row stands: a frame of a video with its video, and what is not in ``places`` first, as it was."""
    place = places.get(name, places.get(PurePath(name).parent.as_posix(), -1))
    return (place, name if place >= 0 else '')


def read_table(path: Path) -> list[Row]:
    """The lines of the table, its head first; none if there is no such file.

    Raises:
        UserError: It is no table of shares.
    """
    try:
        with path.open(encoding='utf-8', newline='') as file:
            lines = [tuple(line) for line in csv.reader(file)]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f'{str(path)!r} cannot be read as a table ({error}); move it away') from error
    if not lines or lines[0][:4] != ('name', 'source', 'width', 'height') or len({len(line) for line in lines}) > 1:
        raise UserError(f'{str(path)!r} is no table of class shares; name another --out-dir, or move it away')
    return lines


class Journal:
    """Rows that are not in the table yet, one line a row on disk, so that not even a killed process loses one.

    Args:
        out_dir: The output folder.
        share: Which process this is; each has a journal of its own. What an earlier run left in journals that none of
            them has goes to the first.
    """

    def __init__(self, out_dir: Path, share: Share) -> None:
        names = [out_dir / f'.shares.{rank}.jsonl' for rank in range(share.processes)]
        self.own = names[share.rank]
        self.files = [self.own] + ([] if share.rank else [path for path in journals(out_dir) if path not in names])
        self.rows = {name: row for path in self.files for name, row in read_journal(path).items()}
        self.writing = threading.Lock()

    def add(self, name: str, row: Row) -> None:
        """Append one row; threads may."""
        with self.writing, self.own.open('a', encoding='utf-8') as file:
            file.write(json.dumps([name, *row]) + '\n')
            self.rows[name] = row

    def settle(self, table: ShareTable, *, order: Sequence[str] = ()) -> None:
        """Bring the rows into the table (see :meth:`ShareTable.merge`), and end the journal."""
        rows = {name: row for name, row in self.rows.items() if len(row) + 1 == len(table.head)}
        if rows:
            table.merge(rows, order=order)
        for path in self.files:
            path.unlink(missing_ok=True)


def journals(out_dir: Path) -> list[Path]:
    """The journals below ``out_dir``, of running and of killed processes."""
    return sorted(out_dir.glob('.shares.*.jsonl'))


def read_journal(path: Path) -> dict[str, Row]:
    """The rows of a journal; a last line that was cut off does not count."""
    rows = {}
    for line in path.read_text(encoding='utf-8', errors='replace').splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            name, *row = json.loads(line)
            rows[name] = tuple(row)
    return rows

"""Logits of windows that wait for overlapping windows: in memory up to a budget, beyond it in a temporary file."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType
from typing import IO

import torch
from torch import Tensor

from volo_seg.errors import UserError
from volo_seg.models.resize.logit_source import LogitSource, TensorLogits


class WindowStore:
    """Keeps logits (C, h, w) and returns them as row sources.

    Args:
        budget: Bytes of logits in memory.
        folder: Folder of the temporary file for the others. The file has no name, so that nothing is left behind.
    """

    def __init__(self, *, budget: int, folder: Path) -> None:
        self.budget, self.folder = budget, folder
        self.in_memory = self.on_disk = 0
        self._file: IO[bytes] | None = None
        self._free: list[int] = []

    def __enter__(self) -> WindowStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def put(self, logits: Tensor) -> LogitSource:
        """Keep ``logits``; all logits of a store have one shape.

        Raises:
            UserError: The temporary file cannot be written.
        """
        dtype = TensorLogits(logits).dtype
        # a copy, because a view would keep the whole batch in memory
        rows = logits.permute(1, 2, 0).to(dtype, copy=True, memory_format=torch.contiguous_format)
        held = TensorLogits(rows.permute(2, 0, 1))
        if self.in_memory + held.nbytes <= self.budget:
            self.in_memory += held.nbytes
            return held
        return self._write(held)

    def drop(self, rows: LogitSource) -> None:
        """Free logits that :meth:`put` returned."""
        if isinstance(rows, FileLogits):
            self._free.append(rows.place)
        else:
            self.in_memory -= rows.nbytes

    def _write(self, held: TensorLogits) -> LogitSource:
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115
            place = self._free.pop() if self._free else self.on_disk
            self._file.seek(place)
            self._file.write(held.logits.cpu().numpy().data.cast('B'))
            self._file.flush()
        except OSError as error:
            raise UserError(
                f'no room for intermediate results in {str(self.folder)!r} ({error}); free some space, or allow more '
                'memory'
            ) from error
        self.on_disk = max(self.on_disk, place + held.nbytes)
        return FileLogits(held, self._file, place)


class FileLogits(LogitSource):
    """Logits in ``file`` from byte ``place`` on, of which only the requested rows are read."""

    def __init__(self, model: LogitSource, file: IO[bytes], place: int) -> None:
        super().__init__(model.size, model.channels, model.dtype, model.device)
        self.file, self.place = file, place

    def rows(self, start: int, stop: int) -> Tensor:
        data = torch.empty(stop - start, self.size[1], self.channels, dtype=self.dtype)
        self.file.seek(self.place + self.row_bytes(start))
        self.file.readinto(data.numpy().data.cast('B'))  # type: ignore[attr-defined]
        return data.to(self.device)

    def footprint(self, count: int) -> int:
        return self.row_bytes(count)

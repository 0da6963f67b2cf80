"""The finished blocks of a raster segmentation in one file, from which an interrupted run continues."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from io import TextIOWrapper
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from volo_seg import __version__
from volo_seg.errors import UserError
from volo_seg.inference.raster.blending import Area
from volo_seg.io import WriteError, check_regular, open_locked

HEADER = struct.Struct('<5Q')
"""Before each block: its area and the number of compressed bytes."""
MOST_KEY_BYTES = 2**16


def state_path(target: Path) -> Path:
    """The file of the state of a run that writes ``target``."""
    return target.with_name(f'{target.name}.resume')


def model_digest(model: torch.nn.Module) -> str:
    """The SHA-256 of all parameters and buffers, of the class of each module and of its plain attributes."""
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        plain = {k: v for k, v in vars(module).items() if isinstance(v, (bool, int, float, str))}
        digest.update(repr((name, type(module).__name__, sorted(plain.items()))).encode())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        digest.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def source_stamp(source: Path) -> list[list[int]]:
    """Size in bytes and time of the last change (ns) of a raster and of its mask file."""
    files = (path for path in (source, Path(f'{source}.msk')) if path.exists())
    return [[status.st_size, status.st_mtime_ns] for status in map(os.stat, files)]


class RasterState:
    """Finished blocks, appended to a file and synchronised with the disk after each row of blocks.

    The file is created with the first block. It stays after an exception if it has a whole row of blocks. One process
    has it at a time.

    Args:
        target: The file of the labels.
        size: (height, width) of the image in pixels.
        dtypes: NumPy type of each kind.
        key: What results depend on, by name, as JSON values. Blocks are only read if all values are equal.
        resume: Whether blocks of an earlier run are used; otherwise they are removed.

    Attributes:
        rows: Number of finished rows of the image.

    Raises:
        UserError: The state of an earlier run has another key, or is damaged or in use.
        WriteError: The file cannot be written.
    """

    def __init__(
        self,
        target: Path,
        size: tuple[int, int],
        *,
        dtypes: Mapping[str, np.dtype],
        key: Mapping[str, Any],
        resume: bool,
    ) -> None:
        self.path, self.target, self.size, self.dtypes = state_path(target), target, size, dtypes
        self.key = json.loads(json.dumps({'version': __version__, **key}))
        self.rows, self._keep = 0, False
        self._file: TextIOWrapper | None = None
        if self.path.exists():
            self._file = self._open()
            try:
                if resume:
                    self._keep = self._check_key()
                else:
                    self._file.buffer.truncate(0)
            except BaseException:
                self._file.close()
                raise

    def __enter__(self) -> RasterState:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the file after success, or if nothing in it is finished."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # of an unfinished row on a full disk
                if kind is None or not self._keep:
                    self.path.unlink(missing_ok=True)
                self._file.close()

    def blocks(self) -> Iterator[tuple[Area, dict[str, np.ndarray]]]:
        """Yield the blocks of the earlier run; then cut off those of a row that is not whole."""
        if self._file is None:
            return
        with self.path.open('rb') as file:
            end, left = len(file.readline(MOST_KEY_BYTES)), 0
            while block := self._read(file, left):
                yield block
                left = block[0].left + block[0].width
                if left == self.size[1]:
                    self.rows, end, left = self.rows + block[0].height, file.tell(), 0
        self._file.buffer.truncate(end)

    def write(self, area: Area, values: Mapping[str, np.ndarray]) -> None:
        """Append the block ``area``, whose ``values`` have the keys and the types of ``dtypes``.

        Raises:
            WriteError: The file cannot be written.
        """
        data = zlib.compress(b''.join(values[kind].tobytes() for kind in self.dtypes), 1)
        try:
            if self._file is None:
                self._file = self._open()
                if os.fstat(self._file.fileno()).st_size:
                    raise self._in_use()
            file = self._file.buffer
            if not (self.rows or area.left):
                file.truncate(0)
                file.write(json.dumps(self.key).encode() + b'\n')
            file.write(HEADER.pack(*area, len(data)) + data)
            if area.left + area.width == self.size[1]:
                file.flush()
                os.fsync(file.fileno())
                self.rows, self._keep = area.top + area.height, True
        except OSError as error:
            raise WriteError(self.target, error.strerror or error) from error

    def _open(self) -> TextIOWrapper:
        try:
            if self.path.exists():
                check_regular(self.path)
            return open_locked(self.path, wait=False)
        except BlockingIOError as error:
            raise self._in_use() from error
        except OSError as error:
            raise WriteError(self.path, error.strerror or error) from error

    def _in_use(self) -> UserError:
        return UserError(
            f'state {str(self.path)!r} is in use by another run; wait for its end or give another output name'
        )

    def _check_key(self) -> bool:
        """Check that the state is of the same run; return whether it has a key."""
        with self.path.open('rb') as file:
            line = file.readline(MOST_KEY_BYTES)
        if not line:  # the earlier run ended before its first row
            return False
        try:
            found = dict(json.loads(line))
        except (ValueError, TypeError) as error:
            raise UserError(
                f'state {str(self.path)!r} is damaged (it does not begin with a line of JSON); add --overwrite without '
                '--resume to start again'
            ) from error
        different = [name for name, value in self.key.items() if found.get(name) != value]
        if different:
            raise UserError(
                f'state {str(self.path)!r} is of a run with another {" and ".join(different)}; run the same command as '
                'before, add --overwrite without --resume to start again, or give another output name'
            )
        return True

    def _read(self, file: Any, left: int) -> tuple[Area, dict[str, np.ndarray]] | None:
        """The next block, which begins at column ``left``; None if there is none, or not a whole one."""
        header = file.read(HEADER.size)
        if len(header) < HEADER.size:
            return None
        *sides, length = HEADER.unpack(header)
        area = Area(*sides)
        inside = area.top + area.height <= self.size[0] and left + area.width <= self.size[1]
        if area[:2] != (self.rows, left) or not inside:
            return None
        pixels = area.height * area.width
        expected = pixels * sum(dtype.itemsize for dtype in self.dtypes.values())
        try:
            data = zlib.decompressobj().decompress(file.read(min(length, 2 * expected + 1024)), expected + 1)
        except zlib.error:
            return None
        if len(data) != expected:
            return None
        values, start = {}, 0
        for kind, dtype in self.dtypes.items():
            values[kind] = np.frombuffer(data, dtype, pixels, start).reshape(area.height, area.width)
            start += pixels * dtype.itemsize
        return area, values

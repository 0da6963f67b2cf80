"""Read and write videos frame by frame with OpenCV."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

from volo_seg.errors import UserError
from volo_seg.image_files import check_size
from volo_seg.io import WriteError, check_regular, part_path, safe_join

# ffmpeg prints lines about a damaged file; VideoReader raises one sentence
os.environ.setdefault('OPENCV_FFMPEG_LOGLEVEL', '-8')

_STARTS = (b'\x1aE\xdf\xa3', b'\0\0\1\xba', b'\0\0\1\xb3', b'0&\xb2u\x8ef\xcf\x11')
_BOXES = (b'ftyp', b'moov', b'mdat', b'wide', b'free', b'skip', b'pnot')


class VideoReader:
    """Reads the frames of a video file, rotated as the file says.

    Args:
        path: The file. Its format is recognised by its first bytes, so that the decoder never sees a playlist, which
            could name other files.

    Attributes:
        frames: Number of frames that the file states; an estimate in some formats.
        rate: Frames per second.

    Raises:
        UserError: The file is missing, empty, damaged, not a video, or its frames exceed the pixel limit.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        name = f'video {str(path)!r}'
        try:
            check_regular(path)
            with path.open('rb') as file:
                start = file.read(12)
        except OSError as error:
            raise UserError(f'{name} cannot be read ({error.strerror}); correct the path or its permissions') from error
        if not start:
            raise UserError(f'{name} is empty (0 bytes); copy it again')
        if not _is_video(start):
            raise UserError(f'{name} is not an MP4, MOV, AVI, MKV, WebM, MPEG or WMV video; convert it to one')
        self.capture = cv2.VideoCapture(os.path.abspath(path), cv2.CAP_FFMPEG)
        if not self.capture.isOpened():
            raise UserError(f'{name} is damaged, cut off, or has a codec that OpenCV does not know; convert it to MP4')
        width, height, rate, frames = (
            self.capture.get(what)
            for what in (
                cv2.CAP_PROP_FRAME_WIDTH,
                cv2.CAP_PROP_FRAME_HEIGHT,
                cv2.CAP_PROP_FPS,
                cv2.CAP_PROP_FRAME_COUNT,
            )
        )
        check_size(int(width), int(height), name=name)
        self.rate = rate if 0.01 <= rate <= 1000 else 25.0
        self.frames = max(0, int(frames))
        self._count = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the frames; see :meth:`read`."""
        while (frame := self.read()) is not None:
            yield frame

    def read(self) -> np.ndarray | None:
        """The next frame, (H, W, 3) uint8, BGR; None after the last one.

        Raises:
            UserError: The file ends well before the number of frames that it states.
        """
        found, frame = self.capture.read()
        if found:
            self._count += 1
            return frame
        self.capture.release()
        # the stated number may be an estimate, off by a few
        if self._count == 0 or self._count < self.frames - max(3, self.frames // 50):
            raise UserError(
                f'video {str(self.path)!r} is damaged after {self._count} of {self.frames} frames; copy it again'
            )
        return None


def _is_video(start: bytes) -> bool:
    is_riff = start[:4] == b'RIFF' and start[8:12] == b'AVI '
    return is_riff or start[4:8] in _BOXES or start.startswith(_STARTS)


class VideoWriter:
    """Writes an MP4 file (MPEG-4 part 2) atomically.

    As a context manager, it moves the complete file to its place at the end of the block. After an exception nothing is
    left.

    Args:
        folder: The output folder.
        name: The file relative to the folder, which ends in ``.mp4``.
        rate: Frames per second.

    Raises:
        WriteError: The file leads out of the folder, or its folder cannot be created.
    """

    def __init__(self, folder: Path, name: str, *, rate: float) -> None:
        self.path = safe_join(folder, name)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WriteError(self.path, error.strerror) from error
        self.part = part_path(self.path, suffix='.mp4')
        self.rate = rate
        self.frames = 0
        self.writer: cv2.VideoWriter | None = None

    def write(self, frame: np.ndarray) -> None:
        """Append a frame, (H, W, 3) uint8, BGR, of the size of the first; odd sides are padded by one pixel.

        Raises:
            WriteError: The file cannot be written, or OpenCV cannot encode this size.
        """
        frame = cv2.copyMakeBorder(frame, 0, frame.shape[0] % 2, 0, frame.shape[1] % 2, cv2.BORDER_REPLICATE)
        height, width = frame.shape[:2]
        if self.writer is None:
            code = cv2.VideoWriter.fourcc(*'mp4v')
            self.writer = cv2.VideoWriter(str(self.part), cv2.CAP_FFMPEG, code, self.rate, (width, height))
            if not self.writer.isOpened():
                raise WriteError(self.path, f'OpenCV opens no video of {width} x {height} pixels')
        self.writer.write(frame)
        self.frames += 1

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if self.writer is not None:
                self.writer.release()
            if kind is None and self.frames:
                # OpenCV reports no error when the disk is full
                found = count_frames(self.part)
                if found != self.frames:
                    raise WriteError(self.path, f'{found} of {self.frames} frames were written')
                os.replace(self.part, self.path)
        finally:
            with contextlib.suppress(OSError):
                self.part.unlink(missing_ok=True)


def count_frames(path: Path) -> int:
    """The number of frames that an MP4 file states; 0 if it is not one."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    try:
        return max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT))) if capture.isOpened() else 0
    finally:
        capture.release()

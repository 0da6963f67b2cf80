"""Videos: frames in, frames out, through OpenCV."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

from volo_seg.errors import UserError
from volo_seg.imageio import check_size
from volo_seg.inference.files import inside
from volo_seg.inference.writers import OutputError
from volo_seg.io import check_regular, part_path

# what ffmpeg prints about a damaged file is said by us, in one sentence
os.environ.setdefault('OPENCV_FFMPEG_LOGLEVEL', '-8')

_STARTS = (b'\x1aE\xdf\xa3', b'\0\0\1\xba', b'\0\0\1\xb3', b'0&\xb2u\x8ef\xcf\x11')
_BOXES = (b'ftyp', b'moov', b'mdat', b'wide', b'free', b'skip', b'pnot')


class VideoReader:
    """A video file, turned as it says.

    Args:
        path: The file; known by its first bytes, so that no playlist makes the decoder open other files.

    Attributes:
        frames: How many there are, as the file says; some formats estimate it.
        rate: Frames a second.

    Raises:
        UserError: It is missing, empty, no video, damaged, or its frames are above the pixel limit.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        name = f'video {str(path)!r}'
        try:
            check_regular(path)
            with path.open('rb') as file:
                start = file.read(12)
        except OSError as error:
            raise UserError(f'{name} cannot be read ({error.strerror})') from error
        if not start:
            raise UserError(f'{name} is empty (0 bytes)')
        if not _is_video(start):
            raise UserError(f'{name} is no video that is known here (MP4, MOV, AVI, MKV, WebM, MPEG, WMV)')
        self.capture = cv2.VideoCapture(os.path.abspath(path), cv2.CAP_FFMPEG)
        if not self.capture.isOpened():
            raise UserError(f'{name} is damaged, cut off, or in a coding that OpenCV does not know')
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

    def __iter__(self) -> Iterator[np.ndarray]:
        """The frames, (H, W, 3) uint8, BGR.

        Raises:
            UserError: The file ends well before its end.
        """
        count = 0
        try:
            while True:
                there, frame = self.capture.read()
                if not there:
                    break
                count += 1
                yield frame
        finally:
            self.capture.release()
        # the number of frames may be an estimate, off by a few
        if count == 0 or count < self.frames - max(3, self.frames // 50):
            raise UserError(f'video {str(self.path)!r} is damaged after {count} of {self.frames} frames')


def _is_video(start: bytes) -> bool:
    is_riff = start[:4] == b'RIFF' and start[8:12] == b'AVI '
    return is_riff or start[4:8] in _BOXES or start.startswith(_STARTS)


class VideoWriter:
    """An MP4 file (MPEG-4 part 2) that is there when it is whole, and not before.

    As a context: a clean end puts the file into its place, an exception removes it.

    Args:
        folder: The output folder.
        name: The file in it, with subfolders and ``.mp4``.
        rate: Frames a second.
    """

    def __init__(self, folder: Path, name: str, *, rate: float) -> None:
        try:
            self.path = inside(folder, name)
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f'{str(folder / name)!r} cannot be written ({error.strerror})') from error
        except UserError as error:
            raise OutputError(str(error)) from error
        self.part = part_path(self.path, suffix='.mp4')
        self.rate = rate
        self.frames = 0
        self.writer: cv2.VideoWriter | None = None

    def write(self, frame: np.ndarray) -> None:
        """Append a frame, (H, W, 3) uint8, BGR; all have the size of the first. An odd side grows by a pixel.

        Raises:
            UserError: The size cannot be coded.
            OutputError: The file cannot be written.
        """
        frame = cv2.copyMakeBorder(frame, 0, frame.shape[0] % 2, 0, frame.shape[1] % 2, cv2.BORDER_REPLICATE)
        height, width = frame.shape[:2]
        if self.writer is None:
            code = cv2.VideoWriter.fourcc(*'mp4v')
            self.writer = cv2.VideoWriter(str(self.part), cv2.CAP_FFMPEG, code, self.rate, (width, height))
            if not self.writer.isOpened():
                raise OutputError(f'{str(self.path)!r} cannot be written as a video of {width} x {height} pixels')
        self.writer.write(frame)
        self.frames += 1

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if self.writer is not None:
                self.writer.release()
            if kind is None and self.frames:
                # OpenCV does not say when a disk is full
                if count_frames(self.part) != self.frames:
                    raise OutputError(f'{str(self.path)!r} was not written whole; is the disk full?')
                os.replace(self.part, self.path)
        finally:
            with contextlib.suppress(OSError):
                self.part.unlink(missing_ok=True)


def count_frames(path: Path) -> int:
    """Number of frames that an MP4 file says it has; 0 if it is none."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    try:
        return max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT))) if capture.isOpened() else 0
    finally:
        capture.release()

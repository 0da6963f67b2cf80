"""The interface of all predictors: one image or many, read ahead, grouped into batches, results in input order."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, cast, overload

import numpy as np
from PIL import Image

from volo_seg.errors import UserError
from volo_seg.imageio import DEFAULT_READING, Reading, Source, decode_image, read_image
from volo_seg.inference.concurrency import prefetch
from volo_seg.inference.remote import is_url, read_url
from volo_seg.inference.result import Failure, Result


class Prediction(NamedTuple):
    """The arrays predicted for one image; see :class:`Result` for their values.

    ``labels`` (H, W), ``confidence`` (H, W) or None, ``probabilities`` (C, H, W) or None.
    """

    labels: np.ndarray
    confidence: np.ndarray | None = None
    probabilities: np.ndarray | None = None


@dataclass
class _Entry:
    """One input: first read and prepared, then with a result or an error."""

    source: Any
    image: np.ndarray | None = None
    key: Hashable = None
    prepared: Any = None
    result: Result | None = None
    error: UserError | None = None

    @property
    def is_done(self) -> bool:
        return self.result is not None or self.error is not None


class BasePredictor(ABC):
    """Segments images. A subclass implements :meth:`_segment` for a batch of images of one size.

    Called with one image it returns a :class:`Result`, with a list or tuple of images a list of them, and with any
    other iterable an iterator that reads the images lazily (see :meth:`stream`). An image is a path, a URL (``s3://``,
    ``gs://``, ``az://``), an array (BGR) or a PIL image; see :func:`read_image`. Tensors are refused: they do not say
    the order of their axes and colours.

    Args:
        classes: Class names.
        palette: (len(classes), 3), RGB, 0 to 255.
        reading: How image files are read.
        batch_size: Largest number of images in one forward pass.
        confidence: Whether results hold the probability of each label.
        probabilities: Whether results hold the probabilities of all classes.
    """

    def __init__(
        self,
        classes: Sequence[str],
        palette: Any,
        *,
        reading: Reading = DEFAULT_READING,
        batch_size: int = 1,
        confidence: bool = False,
        probabilities: bool = False,
    ) -> None:
        self.classes = tuple(classes)
        self.palette = np.asarray(palette, dtype=np.uint8)
        self.reading = reading
        self.batch_size = _check_count(batch_size, 'batch_size')
        self.confidence, self.probabilities = confidence, probabilities

    @overload
    def __call__(self, source: Source) -> Result: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, source: list[Any] | tuple[Any, ...]) -> list[Result]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, source: Iterable[Any]) -> Iterator[Result]: ...
    def __call__(self, source: Any) -> Result | list[Result] | Iterator[Result]:
        """Segment one image or several.

        Raises:
            UserError: An image cannot be read; see :func:`read_image`.
        """
        one = isinstance(source, (str, bytes, PathLike, Image.Image)) or hasattr(source, '__array__')
        several = isinstance(source, Iterable) and not one
        # without on_error='yield' there are no failures among them
        results = cast(Iterator[Result], self.stream(source if several else [source]))
        if not several:
            return next(results)
        return list(results) if isinstance(source, (list, tuple)) else results

    def stream(
        self,
        items: Iterable[Source],
        *,
        batch_size: int | None = None,
        look_ahead: int | None = None,
        readers: int = 0,
        confidence: bool | None = None,
        probabilities: bool | None = None,
        on_error: str = 'raise',
    ) -> Generator[Result | Failure, None, None]:
        """Segment ``items`` lazily and in order, with a bounded number of them in memory.

        Close the generator if you leave it before its end and ``readers`` is not 0: that ends its threads.

        Images whose network input has the same size share a forward pass.

        Args:
            items: Paths, arrays or PIL images.
            batch_size: Largest number of images in one forward pass; by default that of the predictor.
            look_ahead: Number of images that may wait in memory for others of their size; by default two batches, or
                one image if ``batch_size`` is 1.
            readers: Threads that read and prepare up to ``2 * readers`` further images while the network runs; 0 reads
                in the calling thread.
            confidence: Whether results hold the probability of each label; by default as in the constructor.
            probabilities: Whether results hold the probabilities of all classes; by default as in the constructor.
            on_error: ``'raise'`` raises the error of an image that cannot be segmented, after the results before it;
                ``'yield'`` yields a :class:`Failure` in its place.

        Raises:
            UserError: A number is too small, or ``on_error`` is unknown.
        """
        size = _check_count(self.batch_size if batch_size is None else batch_size, 'batch_size')
        waiting = _check_count((2 * size if size > 1 else 1) if look_ahead is None else look_ahead, 'look_ahead')
        _check_count(readers, 'readers', least=0)
        if on_error not in ('raise', 'yield'):
            raise UserError(f"on_error={on_error!r} is not known; choose 'raise' or 'yield'")
        outputs = {
            'confidence': self.confidence if confidence is None else confidence,
            'probabilities': self.probabilities if probabilities is None else probabilities,
        }
        if readers:
            # the caller may fill the next image into the same array
            copies = (item.copy() if isinstance(item, np.ndarray) else item for item in items)
            entries: Generator[_Entry, None, None] = prefetch(self._read, copies, threads=readers, depth=2 * readers)
        else:
            entries = (self._read(item) for item in items)
        return self._in_order(entries, size=size, waiting=waiting, outputs=outputs, on_error=on_error)

    def _prepare(self, image: np.ndarray) -> tuple[Hashable, Any]:
        """Return (key, input of :meth:`_segment`) for an image; images with equal keys may share a batch.

        By default the key is the size of the image, and the input is the image. May be called from several threads.
        """
        return image.shape[:2], image

    @abstractmethod
    def _segment(self, batch: list[Any], *, confidence: bool, probabilities: bool) -> list[Prediction]:
        """Segment a batch of inputs that :meth:`_prepare` made, all with one key, at the sizes of the images.

        Raises:
            UserError: The batch does not fit into memory; its images are then segmented one by one.
        """

    def _read(self, source: Any) -> _Entry:
        entry = _Entry(source)
        try:
            if is_url(source):
                entry.image = decode_image(read_url(source), name=source, reading=self.reading)
            else:
                entry.image = read_image(source, reading=self.reading)
            entry.key, entry.prepared = self._prepare(entry.image)
        except UserError as error:
            entry.error = error
        return entry

    def _in_order(
        self,
        entries: Generator[_Entry, None, None],
        *,
        size: int,
        waiting: int,
        outputs: dict[str, bool],
        on_error: str,
    ) -> Generator[Result | Failure, None, None]:
        window: deque[_Entry] = deque()
        with contextlib.closing(entries):  # ends the threads that read, also after an error
            for entry in entries:
                window.append(entry)
                batch = _unfinished(window, entry.key)
                if len(batch) >= size:
                    self._finish(batch, outputs)
                yield from _take_finished(window, on_error)
                if len(window) >= waiting:
                    self._finish(_unfinished(window), outputs)
                    yield from _take_finished(window, on_error)
        while window:
            self._finish(_unfinished(window), outputs)
            yield from _take_finished(window, on_error)

    def _finish(self, batch: list[_Entry], outputs: dict[str, bool]) -> None:
        try:
            predictions = self._segment([entry.prepared for entry in batch], **outputs) if batch else []
        except UserError as error:
            if len(batch) == 1:
                batch[0].error = error
                return
            for entry in batch:
                self._finish([entry], outputs)
            return
        for entry, prediction in zip(batch, predictions, strict=True):
            assert entry.image is not None
            name = Path(entry.source).stem if isinstance(entry.source, (str, PathLike)) else None
            labels, label_scores, class_scores = prediction
            entry.result = Result(entry.image, labels, self.classes, self.palette, label_scores, class_scores, name)
            entry.prepared = entry.image = None


def _check_count(value: Any, name: str, *, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f'{name}={value!r} must be a whole number, {least} or more')
    return value


def _unfinished(window: Iterable[_Entry], key: Hashable = None) -> list[_Entry]:
    """The unfinished entries of ``window`` with ``key``; by default the key of the first unfinished entry."""
    unfinished = [entry for entry in window if not entry.is_done]
    if unfinished and key is None:
        key = unfinished[0].key
    return [entry for entry in unfinished if entry.key == key]


def _take_finished(window: deque[_Entry], on_error: str) -> Iterator[Result | Failure]:
    """Remove finished entries from the front of ``window``, and yield their results."""
    while window and window[0].is_done:
        entry = window.popleft()
        if entry.result is not None:
            yield entry.result
        elif on_error == 'raise':
            assert entry.error is not None
            raise entry.error
        else:
            yield Failure(entry.source, str(entry.error))

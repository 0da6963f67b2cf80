"""From many images to many results: reading ahead, batches by size, input order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, cast, overload

import numpy as np
from PIL import Image

from volo_seg.errors import UserError
from volo_seg.imageio import Source, read_image
from volo_seg.inference.result import Failure, Result


class Scores(NamedTuple):
    """What a predictor says of one image: ``labels`` (H, W), ``confidence`` (H, W), ``probabilities`` (C, H, W)."""

    labels: np.ndarray
    confidence: np.ndarray | None = None
    probabilities: np.ndarray | None = None


@dataclass
class _Slot:
    """One input on its way: it waits, prepared, until it has an outcome or an error."""

    source: Any
    image: np.ndarray | None = None
    key: Hashable = None
    prepared: Any = None
    outcome: Result | None = None
    error: UserError | None = None


class BasePredictor(ABC):
    """Segments images; a subclass says how a batch of one size is segmented.

    Calling it with one image gives a :class:`Result`, with a list or tuple of images a list of them, with any other
    iterable an iterator that reads on as it is asked (see :meth:`stream`). An image is a path, an array (BGR) or a PIL
    image, as :func:`read_image` takes it.

    Args:
        classes: Class names.
        palette: (len(classes), 3), RGB, 0 to 255.
        batch_size: Images that go through the network together at most.
        confidence, probabilities: What each result has beside its labels.
    """

    def __init__(
        self,
        classes: Sequence[str],
        palette: Any,
        *,
        batch_size: int = 1,
        confidence: bool = False,
        probabilities: bool = False,
    ) -> None:
        self.classes = tuple(classes)
        self.palette = np.asarray(palette, dtype=np.uint8)
        self.batch_size = check_count(batch_size, 'batch_size')
        self.confidence, self.probabilities = confidence, probabilities

    @overload
    def __call__(self, source: Source) -> Result: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, source: list[Any] | tuple[Any, ...]) -> list[Result]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, source: Iterable[Any]) -> Iterator[Result]: ...
    def __call__(self, source: Any) -> Result | list[Result] | Iterator[Result]:
        """Segment one image, or several.

        Raises:
            UserError: An image cannot be read; see :func:`read_image`.
        """
        several = isinstance(source, Iterable) and not isinstance(source, (str, PathLike, np.ndarray, Image.Image))
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
    ) -> Iterator[Result | Failure]:
        """Segment ``items`` one after the other, in their order, with few of them in memory at a time.

        Images whose network input has the same size go through the network together.

        Args:
            items: Paths, arrays, PIL images; taken from as results are asked for.
            batch_size: Images that go through the network together at most; by default the predictor's own.
            look_ahead: Images that may wait in memory for others of their size; by default two batches, and with
                batches of one image, one.
            readers: Threads that read and prepare up to ``2 * readers`` images more while the network works; 0 reads
                in the calling thread.
            confidence: Whether results have the probability of each label; by default as the predictor was made.
            probabilities: Whether they have those of all classes; by default as the predictor was made.
            on_error: ``'raise'`` stops at an image that cannot be read, after the results before it; ``'yield'`` gives
                a :class:`Failure` in its place and goes on.

        Raises:
            UserError: A number is below 1, or ``on_error`` is none of the two.
        """
        size = check_count(self.batch_size if batch_size is None else batch_size, 'batch_size')
        ahead = check_count((2 * size if size > 1 else 1) if look_ahead is None else look_ahead, 'look_ahead')
        check_count(readers, 'readers', least=0)
        if on_error not in ('raise', 'yield'):
            raise UserError(f"on_error={on_error!r} is not known; choose 'raise' or 'yield'")
        wanted = {
            'confidence': self.confidence if confidence is None else confidence,
            'probabilities': self.probabilities if probabilities is None else probabilities,
        }
        slots = _read_ahead(items, self._read, readers=readers)
        return self._in_order(slots, size=size, ahead=ahead, wanted=wanted, on_error=on_error)

    def _prepare(self, image: np.ndarray) -> tuple[Hashable, Any]:
        """(key, what :meth:`_segment` takes) of an image; images with equal keys may share a batch.

        By default the key is the image's size, and the image itself is handed on. May run in several threads.
        """
        return image.shape[:2], image

    @abstractmethod
    def _segment(self, batch: list[Any], *, confidence: bool, probabilities: bool) -> list[Scores]:
        """Segment a batch of what :meth:`_prepare` made of images, all with one key; at the images' own sizes.

        Raises:
            UserError: The batch is too large for the memory; its images are then tried one by one.
        """

    def _read(self, source: Any) -> _Slot:
        slot = _Slot(source)
        try:
            slot.image = read_image(source)
            slot.key, slot.prepared = self._prepare(slot.image)
        except UserError as error:
            slot.error = error
        return slot

    def _in_order(
        self, slots: Iterator[_Slot], *, size: int, ahead: int, wanted: dict[str, bool], on_error: str
    ) -> Iterator[Result | Failure]:
        window: deque[_Slot] = deque()
        for slot in slots:
            window.append(slot)
            batch = _waiting(window, slot.key)
            if len(batch) >= size:
                self._finish(batch, wanted)
            yield from _finished(window, on_error)
            if len(window) >= ahead:  # the first one has waited long enough
                self._finish(_waiting(window), wanted)
                yield from _finished(window, on_error)
        while window:
            self._finish(_waiting(window), wanted)
            yield from _finished(window, on_error)

    def _finish(self, group: list[_Slot], wanted: dict[str, bool]) -> None:
        try:
            scores = self._segment([slot.prepared for slot in group], **wanted) if group else []
        except UserError as error:
            if len(group) == 1:
                group[0].error = error
                return
            for slot in group:
                self._finish([slot], wanted)
            return
        for slot, score in zip(group, scores, strict=True):
            assert slot.image is not None
            slot.outcome = Result(
                slot.image, score.labels, self.classes, self.palette, *score[1:], name=_name_of(slot.source)
            )
            slot.prepared = slot.image = None


def check_count(value: Any, name: str, *, least: int = 1) -> int:
    """``value``, if it is a whole number from ``least`` up.

    Raises:
        UserError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f'{name}={value!r} must be a whole number, {least} or more')
    return value


def _read_ahead(items: Iterable[Any], read: Callable[[Any], _Slot], *, readers: int) -> Iterator[_Slot]:
    """``read`` of each item, in order; with ``readers``, done in threads for the items to come."""
    if not readers:
        yield from map(read, items)
        return
    pool = ThreadPoolExecutor(readers, thread_name_prefix='volo-seg-read')
    coming: deque[Future[_Slot]] = deque()
    try:
        for item in items:
            # whoever hands out arrays may fill the next image into the same one
            coming.append(pool.submit(read, item.copy() if isinstance(item, np.ndarray) else item))
            if len(coming) > 2 * readers:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _waiting(window: Iterable[_Slot], key: Hashable = None) -> list[_Slot]:
    """The slots of ``window`` that wait and have ``key``, by default that of the first that waits."""
    waiting = [slot for slot in window if not (slot.outcome or slot.error)]
    if waiting and key is None:
        key = waiting[0].key
    return [slot for slot in waiting if slot.key == key]


def _finished(window: deque[_Slot], on_error: str) -> Iterator[Result | Failure]:
    """Take what is finished from the front of ``window``."""
    while window and (window[0].outcome or window[0].error):
        slot = window.popleft()
        if slot.outcome is not None:
            yield slot.outcome
        elif on_error == 'raise':
            assert slot.error is not None
            raise slot.error
        else:
            yield Failure(slot.source, str(slot.error))


def _name_of(source: Any) -> str | None:
    return Path(source).stem if isinstance(source, (str, PathLike)) else None

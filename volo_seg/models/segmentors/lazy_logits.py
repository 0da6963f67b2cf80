"""``seg_logits`` of a result, computed on access."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.structures import PixelData
from torch import Tensor

from volo_seg.models.resize.logit_source import LogitSource, full_logits, row_chunks


class LazyLogits(PixelData):
    """``PixelData`` whose ``data`` (C, H, W) is computed at each access and not stored.

    ``to_dict``, which evaluators call on every result, computes nothing; see :class:`LazyDict`.

    Args:
        source: The logits.
        budget: Bytes that a chunk of rows may take.
        sigmoid: Whether ``data`` is the sigmoid of the logits, as MMSegmentation gives for one channel.
    """

    def __init__(self, source: LogitSource, *, budget: int, sigmoid: bool) -> None:
        super().__init__()
        # PixelData.__setattr__ accepts tensors only
        self.__dict__.update(_source=source, _budget=budget, _sigmoid=sigmoid)

    @property
    def data(self) -> Tensor:
        logits = full_logits(self._source, budget=self._budget)
        return logits.sigmoid() if self._sigmoid else logits

    def rows(self) -> Iterator[tuple[int, int, Tensor]]:
        """Yield (start, stop, logits (stop - start, W, C)) for chunks of rows; no sigmoid is applied."""
        for start, stop in row_chunks(self._source, self._budget):
            yield start, stop, self._source.rows(start, stop)

    @property
    def shape(self) -> tuple[int, int]:
        return self._source.size

    def keys(self) -> list[str]:
        return ['data']

    def __contains__(self, item: str) -> bool:
        return item == 'data' or super().__contains__(item)

    def new(self, *, metainfo: dict[str, Any] | None = None, **fields: Any) -> PixelData:
        """A ``PixelData`` with the logits computed."""
        return PixelData(metainfo=metainfo or self.metainfo, **(fields or {'data': self.data}))

    def clone(self) -> PixelData:
        return self.new()

    def to_dict(self) -> dict[str, Any]:
        return LazyDict(self)


class LazyDict(dict):
    """An empty dictionary that computes the missing key ``'data'`` at each access."""

    def __init__(self, logits: LazyLogits) -> None:
        super().__init__()
        self.logits = logits

    def __missing__(self, key: str) -> Tensor:
        if key != 'data':
            raise KeyError(key)
        return self.logits.data

"""Logits of a result that are computed when they are looked at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.structures import PixelData
from torch import Tensor

from volo_seg.models.resize.logit_source import LogitSource, full_logits, row_chunks


class LazyLogits(PixelData):
    """Stands where a result keeps its logits; ``data`` (C, H, W) is computed at each look, and not kept.

    Turning a result into a dictionary, as evaluators do, computes nothing: the entry is a dictionary whose ``'data'``
    is computed when it is asked for, and which is empty to whoever only lists or stores it.
    """

    def __init__(self, source: LogitSource, *, budget: int, sigmoid: bool) -> None:
        super().__init__()
        self.__dict__.update(_source=source, _budget=budget, _sigmoid=sigmoid)

    @property
    def data(self) -> Tensor:
        logits = full_logits(self._source, budget=self._budget)
        return logits.sigmoid() if self._sigmoid else logits

    def rows(self) -> Iterator[tuple[int, int, Tensor]]:
        """(first row, row behind the last, their logits (rows, W, C)), a few rows at a time; no sigmoid is applied."""
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
        """A copy with the logits computed."""
        return PixelData(metainfo=metainfo or self.metainfo, **(fields or {'data': self.data}))

    def clone(self) -> PixelData:
        return self.new()

    def to_dict(self) -> dict[str, Any]:
        return _OnDemand(self)


class _OnDemand(dict):
    def __init__(self, owner: LazyLogits) -> None:
        super().__init__()
        self._owner = owner

    def __missing__(self, key: str) -> Tensor:
        if key != 'data':
            raise KeyError(key)
        return self._owner.data

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return dict, ()

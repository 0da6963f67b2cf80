"""``seg_logits`` of a result, computed at the first access."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from functools import cached_property
from typing import Any

from mmengine.structures import PixelData
from torch import Tensor

from volo_seg.models.resize.logit_source import LogitSource, full_logits, row_chunks


class LogitMap:
    """Logits (C, H, W) whose ``data`` is computed at the first access.

    Args:
        source: The logits.
        budget: Bytes that a chunk of rows may take.
        sigmoid: Whether ``data`` is the sigmoid of the logits, as MMSegmentation gives for one channel.
    """

    def __init__(self, source: LogitSource, *, budget: int, sigmoid: bool) -> None:
        self.source, self.budget, self.sigmoid = source, budget, sigmoid

    @cached_property
    def data(self) -> Tensor:
        logits = full_logits(self.source, budget=self.budget)
        return logits.sigmoid() if self.sigmoid else logits


class LazyLogits(PixelData):
    """``PixelData`` whose field ``data`` (C, H, W) is not computed yet.

    An operation that needs the field computes it and turns the object into an ordinary ``PixelData``. ``shape``,
    ``keys``, ``in`` and ``to_dict``, which evaluators call on every result, compute nothing; see :class:`LazyDict`.
    """

    @classmethod
    def from_map(cls, logits: LogitMap) -> LazyLogits:
        """The field ``data`` is that of ``logits``."""
        new = cls()
        new._data_fields.add('data')
        new.__dict__['_map'] = logits  # __setattr__ would make it a field
        return new

    def rows(self) -> Iterator[tuple[int, int, Tensor]]:
        """Yield (start, stop, logits (stop - start, W, C)) for chunks of rows; no sigmoid is applied."""
        logits: LogitMap = self.__dict__['_map']
        for start, stop in row_chunks(logits.source, logits.budget):
            yield start, stop, logits.source.rows(start, stop)

    def _computed(self) -> PixelData:
        """Compute the field; the object becomes a ``PixelData``."""
        self.__dict__['data'] = self.__dict__.pop('_map').data
        object.__setattr__(self, '__class__', PixelData)
        return self

    def __getattr__(self, name: str) -> Any:
        if name != 'data':
            raise AttributeError(f'{type(self).__name__!r} object has no attribute {name!r}')
        return self._computed().data

    def __getitem__(self, item: Any) -> PixelData:
        return self._computed()[item]

    def __delattr__(self, item: str) -> None:
        delattr(self._computed(), item)

    __delitem__ = __delattr__

    def set_field(self, value: Any, name: str, *args: Any, **kwargs: Any) -> None:
        if name == 'data':
            self._computed()
        PixelData.set_field(self, value, name, *args, **kwargs)

    def pop(self, *args: Any) -> Any:
        return self._computed().pop(*args)

    def new(self, **kwargs: Any) -> PixelData:
        return self._computed().new(**kwargs)

    def clone(self) -> PixelData:
        return self._computed().clone()

    def __repr__(self) -> str:
        return repr(self._computed())

    def __reduce_ex__(self, protocol: Any) -> Any:
        """For ``copy``, ``deepcopy`` and ``pickle``."""
        return self._computed().__reduce_ex__(protocol)

    @property
    def shape(self) -> tuple[int, int]:
        return self.__dict__['_map'].source.size

    def to_dict(self) -> dict[str, Any]:
        return LazyDict({key: self.__dict__['_map'] if key == 'data' else self.get(key) for key in self.all_keys()})


class LazyDict(dict):
    """A dictionary in which a :class:`LogitMap` is replaced by its ``data`` when it is read."""

    def __getitem__(self, key: str) -> Any:
        return _read(super().__getitem__(key))

    def __iter__(self) -> Iterator[str]:
        return super().__iter__()  # since it is overridden, dict(self) and {**self} call __getitem__

    # the methods of dict read its entries without __getitem__
    get: Any = MutableMapping.get
    items: Any = MutableMapping.items
    values: Any = MutableMapping.values
    setdefault: Any = MutableMapping.setdefault
    __eq__: Any = MutableMapping.__eq__
    __ne__: Any = object.__ne__

    def pop(self, *args: Any) -> Any:
        return _read(super().pop(*args))

    def popitem(self) -> tuple[str, Any]:
        key, value = super().popitem()
        return key, _read(value)

    def copy(self) -> dict[str, Any]:
        return dict(self)

    def __repr__(self) -> str:
        return repr(dict(self))

    def __or__(self, other: Any) -> Any:
        return dict(self) | other

    def __ror__(self, other: Any) -> Any:
        return other | dict(self)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """An ordinary dictionary for ``copy``, ``deepcopy`` and ``pickle``."""
        return dict, (dict(self),)


def _read(value: Any) -> Any:
    return value.data if isinstance(value, LogitMap) else value

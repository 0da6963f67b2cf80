"""What a checkpoint may contain besides tensors and plain Python values.

torch's own unpickler (``weights_only=True``) refuses everything else. Every entry is data: calling it with
arguments of an attacker's choice builds a value and does nothing more.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module
from pickle import UnpicklingError
from typing import Any

HISTORY = 'mmengine.logging.history_buffer.HistoryBuffer'
_STATISTICS = ('min', 'max', 'current', 'mean')
_DTYPES = ('float16', 'float32', 'float64', 'int32', 'int64', 'uint8', 'uint32', 'bool')


def allowed_globals() -> list[Any]:
    """List what any file may hold: numpy arrays and numbers, slices, and a namespace of plain settings.

    ``argparse.Namespace`` is what training scripts pickle their arguments as: attributes and no behaviour.
    """
    try:
        import numpy as np
    except ImportError:  # torch alone reads tensors
        return [slice, argparse.Namespace]
    core = import_module('numpy._core.multiarray')
    dtypes = [type(np.dtype(name)) for name in _DTYPES]
    # files written under numpy 1 say numpy.core where numpy 2 says numpy._core
    builders = [
        (getattr(core, name), f'numpy.{package}.multiarray.{name}')
        for name in ('_reconstruct', 'scalar')
        for package in ('core', '_core')
    ]
    return [slice, argparse.Namespace, np.ndarray, np.dtype, *dtypes, *builders]


def history_globals() -> list[Any]:
    """List what the log of a training run holds: mmengine's HistoryBuffer, and its own statistics by name.

    A buffer is pickled with the methods it computes statistics with, as ``getattr(HistoryBuffer, 'mean')``.
    The real ``getattr`` would let a file walk from any class to ``os.system``; ours answers those four calls
    alone.

    Raises:
        ImportError: mmengine is not installed.
    """
    from mmengine.logging import HistoryBuffer

    def statistic(owner: object, name: str) -> Callable[..., Any]:
        if owner is not HistoryBuffer or name not in _STATISTICS:
            raise UnpicklingError(f'GLOBAL builtins.getattr was asked for {name!r}')
        return HistoryBuffer.__dict__[name]

    return [(HistoryBuffer, HISTORY), (statistic, 'builtins.getattr')]

"""Import MMSegmentation without its noise, and also where an optional part of it is broken."""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
import warnings


def import_mmseg() -> None:
    """Import mmseg's models and data sets; what they print about parts that nothing here uses is dropped."""
    hide_if_broken('torchvision')
    hide_if_broken('timm')
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='Fail to import ``MultiScaleDeformableAttention``')
        importlib.import_module('mmseg.models')
        importlib.import_module('mmseg.datasets')


def hide_if_broken(name: str) -> None:
    """Let the optional module ``name`` count as absent if importing it fails in any way.

    MMSegmentation imports timm, and MMEngine torchvision, when they are there; a torchvision built for another torch
    (a CUDA build beside a CPU build, say) raises RuntimeError, and would take every model down with it.
    """
    try:
        importlib.import_module(name)
    except ImportError:
        pass
    except Exception as error:
        warnings.warn(f'{name} is installed but broken, and is left out: {error}', stacklevel=2)
        sys.modules[name] = None  # type: ignore[assignment]

"""Import MMSegmentation quietly, also where an optional dependency of it is broken."""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
import warnings


def import_mmseg() -> None:
    """Import mmseg's models and data sets without the messages about optional parts that nothing here uses."""
    for name in ('torchvision', 'timm'):
        hide_if_broken(name)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='Fail to import ``MultiScaleDeformableAttention``')
        importlib.import_module('mmseg.models')
        importlib.import_module('mmseg.datasets')


def hide_if_broken(name: str) -> None:
    """Make the optional module ``name`` count as absent if its import fails with anything but an ImportError.

    MMSegmentation imports timm, and MMEngine torchvision, where they are installed. A torchvision built for another
    torch (a CUDA build beside a CPU build) raises RuntimeError, and no model could be imported.
    """
    try:
        importlib.import_module(name)
    except ImportError:
        pass
    except Exception as error:
        warnings.warn(f'{name} is installed but broken, and is ignored: {error}', stacklevel=2)
        sys.modules[name] = None  # type: ignore[assignment]

"""torch.compile for the backbone, where it can run."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from torch import nn

from volo_seg.errors import UserError


def check_compilation(config: Config, *, asked: bool) -> None:
    """Refuse MMEngine's own switch, and ``--compile`` where nothing can be compiled.

    Raises:
        UserError: With what is missing.
    """
    if config.get('compile'):
        raise UserError(
            'compile=True in the config compiles the optimizer step too, which fails; take it out and use --compile'
        )
    reason = why_not_compiled() if asked else None
    if reason is not None:
        raise UserError(f'--compile: {reason}')


def why_not_compiled() -> str | None:
    """What keeps torch.compile from running here, and the way out; None if nothing is known to."""
    from torch._dynamo import is_dynamo_supported

    if not is_dynamo_supported():
        return (
            f'torch {torch.__version__} does not compile on Python {platform.python_version()} ({platform.system()}); '
            'use another Python, or train without it'
        )
    if torch.cuda.is_available():
        if importlib.util.find_spec('triton') is None:
            return 'compiling for a GPU needs the package triton; install the one of your torch, or train without it'
        return None
    compiler = os.environ.get('CXX') or 'g++'
    if shutil.which(compiler) is None and (os.environ.get('CXX') or shutil.which('clang++') is None):
        return f'compiling for a CPU needs a C++ compiler, and {compiler!r} is not there; install g++ or set CXX'
    return None


def compile_backbone(model: nn.Module, *, backend: str = 'inductor') -> None:
    """Compile the backbone of ``model`` in place; names in its state dict stay.

    It compiles at the first batch, for a minute or two, and again for images of other sizes.
    """
    network: Any = model.module if is_model_wrapper(model) else model
    network.backbone.compile(backend=backend)
    print_log('--compile: the first iterations compile the backbone, for a minute or two', 'current')

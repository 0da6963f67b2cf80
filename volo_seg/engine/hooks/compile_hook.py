"""torch.compile for the backbone, where it can run."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmseg.registry import HOOKS
from torch import nn

from volo_seg.errors import UserError

KIND = 'CompiledBackboneHook'


@HOOKS.register_module()
class CompiledBackboneHook(Hook):
    """Train with a compiled backbone, and evaluate with the plain one: images of every size would compile anew.

    Args:
        backend: Of ``torch.compile``.
    """

    def __init__(self, *, backend: str = 'inductor') -> None:
        self.backend = backend
        self.compiled: Any = None

    def before_train(self, runner: Any) -> None:
        """Compile, at the first batch."""
        compile_backbone(runner.model, backend=self.backend)
        print_log('--compile: the first iteration compiles the backbone, for a minute or more', 'current')

    def before_val_epoch(self, runner: Any) -> None:
        """Put the compiled call aside."""
        backbone = backbone_of(runner.model)
        self.compiled, backbone._compiled_call_impl = backbone._compiled_call_impl, None

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Take it up again."""
        backbone_of(runner.model)._compiled_call_impl = self.compiled


def use_compiled_backbone(config: Config) -> None:
    """Compile the backbone of the run of ``config``.

    Raises:
        UserError: Nothing can be compiled here, with what is missing.
    """
    check_compilation(config, asked=True)
    hooks = [hook for hook in config.get('custom_hooks') or [] if hook.get('type') != KIND]
    config.custom_hooks = [*hooks, dict(type=KIND)]


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
    """Compile the backbone of ``model`` in place, at its next call; names in its state dict stay."""
    backbone_of(model).compile(backend=backend)


def backbone_of(model: nn.Module) -> Any:
    """The backbone of a segmentor, which may be wrapped."""
    network: Any = model.module if is_model_wrapper(model) else model
    return network.backbone

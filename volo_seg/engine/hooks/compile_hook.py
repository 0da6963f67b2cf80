"""Compilation of the backbone by ``torch.compile``."""

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
from mmseg.registry import HOOKS
from torch import nn

from volo_seg.engine.resume import unwrap_model
from volo_seg.errors import UserError

KIND = 'CompiledBackboneHook'


@HOOKS.register_module()
class CompiledBackboneHook(Hook):
    """Compiles the backbone for training; validation runs it without, since each image size would compile again.

    Args:
        backend: Backend of ``torch.compile``.
    """

    def __init__(self, *, backend: str = 'inductor') -> None:
        self.backend = backend
        self.compiled: Any = None

    def before_train(self, runner: Any) -> None:
        """Compile the backbone at its first call."""
        compile_backbone(runner.model, backend=self.backend)
        print_log('--compile: the first iteration compiles the backbone, which takes a minute or more', 'current')

    def before_val_epoch(self, runner: Any) -> None:
        """Disable the compiled forward pass."""
        backbone = backbone_of(runner.model)
        self.compiled, backbone._compiled_call_impl = backbone._compiled_call_impl, None

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Enable the compiled forward pass."""
        backbone_of(runner.model)._compiled_call_impl = self.compiled


def use_compiled_backbone(config: Config) -> None:
    """Compile the backbone of the run of ``config``.

    Raises:
        UserError: torch.compile cannot run here.
    """
    check_compilation(config, asked=True)
    hooks = [hook for hook in config.get('custom_hooks') or [] if hook.get('type') != KIND]
    config.custom_hooks = [*hooks, dict(type=KIND)]


def check_compilation(config: Config, *, asked: bool) -> None:
    """Refuse ``compile=True`` of MMEngine, and, if ``asked``, ``--compile`` where torch.compile cannot run.

    Raises:
        UserError: The config has ``compile=True``, or torch.compile cannot run here.
    """
    if config.get('compile'):
        raise UserError(
            'compile=True in the config compiles the optimizer step too, which fails; remove it and use --compile'
        )
    reason = why_not_compiled() if asked else None
    if reason is not None:
        raise UserError(f'--compile: {reason}')


def why_not_compiled() -> str | None:
    """Return why torch.compile cannot run here and what to do; None if no reason is known."""
    from torch._dynamo import is_dynamo_supported

    if not is_dynamo_supported():
        return (
            f'torch {torch.__version__} does not compile on Python {platform.python_version()} ({platform.system()}); '
            'use another Python version, or remove the flag'
        )
    if torch.cuda.is_available():
        if importlib.util.find_spec('triton') is None:
            return 'compiling for a GPU needs the package triton; install the version of your torch, or remove the flag'
        return None
    compiler = os.environ.get('CXX') or 'g++'
    if shutil.which(compiler) is None and (os.environ.get('CXX') or shutil.which('clang++') is None):
        return f'compiling for a CPU needs a C++ compiler, and {compiler!r} was not found; install g++ or set CXX'
    return None


def compile_backbone(model: nn.Module, *, backend: str = 'inductor') -> None:
    """Compile the backbone of ``model`` in place at its next call; the names of its state dict are unchanged."""
    backbone_of(model).compile(backend=backend)


def backbone_of(model: nn.Module) -> Any:
    """Return the backbone of a segmentor, wrapped for distributed training or not."""
    return unwrap_model(model).backbone

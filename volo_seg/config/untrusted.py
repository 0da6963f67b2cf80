"""Build networks from configs inside checkpoints without running code that such a config names.

MMEngine builds any class that a config names: ``type='subprocess.Popen'`` runs a program, ``custom_imports`` imports
any module, ``init_cfg`` reads any file, and a loss unpickles the file in ``class_weight``. A config that the user did
not choose is therefore reduced to the allow-list of :mod:`.untrusted_parts`, and built under :func:`refuse_access`.
"""

from __future__ import annotations

import os
import reprlib
import sys
import sysconfig
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from mmengine.config import Config
from torch.nn.modules.module import register_module_parameter_registration_hook

from volo_seg.config.untrusted_parts import LABEL_STEPS, MODEL, STEP, Refused
from volo_seg.errors import UserError

Node = Mapping[str, Any]

FIX = 'if you trust it, give its config file yourself'
LONGEST_PIPELINE = 16
REFUSED_EVENTS = (
    '_thread.',
    'ctypes.dlopen',
    'ftplib.',
    'glob.',
    'http.',
    'mmap.',
    'os.',
    'pickle.find_class',
    'pty.',
    'shutil.',
    'smtplib.',
    'socket.',
    'sqlite3.',
    'subprocess.',
    'tempfile.',
    'urllib.',
    'webbrowser.',
    'winreg.',
)
"""Audit events (or prefixes of their names) that are refused, because building a network does not need them."""
IMPORTING_EVENTS = ('os.listdir', 'os.scandir')
"""Audit events of Python's import system."""
PACKAGES = frozenset(
    ('cv2', 'jinja2', 'markupsafe', 'mmcv', 'mmengine', 'mmseg', 'mpmath', 'networkx', 'numpy', 'PIL', 'sympy')
    + ('torch', 'triton', 'typing_extensions', 'volo_seg')
)
"""Packages, besides the standard library, that torch and the listed classes may import while they are built."""
CODE_SUFFIXES = ('.py', '.pyc')


def _code_places() -> tuple[str, ...]:
    """Path prefixes of the code of ``PACKAGES`` and of the standard library."""
    specs = [spec for spec in map(find_spec, PACKAGES) if spec is not None]
    folders = [location for spec in specs for location in spec.submodule_search_locations or ()]
    folders += [sysconfig.get_path('stdlib'), sys.pycache_prefix or '']
    files = [spec.origin for spec in specs if spec.origin and not spec.submodule_search_locations]
    return tuple([os.path.join(folder, '') for folder in folders if folder] + files)


CODE_PLACES = _code_places()


def safe_model_config(content: Node, *, name: str) -> Config:
    """The model and the test pipeline of ``content``, the config in the file ``name`` as a dict of plain values.

    Parts that only training needs are removed: losses, samplers, initial weights, the loading of labels.

    Raises:
        UserError: A part is missing, or a class, an argument or a value is not on the allow-list.
    """
    model = _part(content, 'model', name=name)
    pipeline = _part(_part(content, 'test_dataloader', name=name), 'dataset', name=name).get('pipeline')
    if not isinstance(pipeline, (list, tuple)) or not 0 < len(pipeline) <= LONGEST_PIPELINE:
        raise UserError(f'the config in {name} has no test_dataloader.dataset.pipeline: give the config file as well')
    try:
        model = MODEL(model, 'model')
        steps = [
            STEP(step, f'test_dataloader.dataset.pipeline.{index}')
            for index, step in enumerate(pipeline)
            if not (isinstance(step, Mapping) and step.get('type') in LABEL_STEPS)
        ]
    except Refused as refused:
        raise UserError(
            f'the config in {name} asks for {refused.place}={shown(refused.value)}, which is not {refused.wanted}, '
            f'and is refused: {FIX}'
        ) from refused
    dataset = {'type': 'BaseSegDataset', 'pipeline': steps}
    return Config({'default_scope': 'mmseg', 'model': model, 'test_dataloader': {'dataset': dataset}})


def _part(content: Any, key: str, *, name: str) -> Node:
    part = content.get(key) if isinstance(content, Mapping) else None
    if not isinstance(part, Mapping):
        raise UserError(f'the config in {name} has no {key}: give the config file as well')
    return part


def shown(value: Any) -> str:
    """``value`` for a message: one line of at most 60 characters."""
    try:
        text = ascii(value) if isinstance(value, str) else _short.repr(value)
    except (ValueError, RecursionError):  # an int of thousands of digits
        text = f'a {type(value).__name__}'
    return text if len(text) <= 60 else f'{text[:57]}...'


_short = reprlib.Repr()
_short.maxlevel = 2


class _Thread(threading.local):
    """State of the current thread: the calls refused so far, None outside :func:`refuse_access`."""

    tried: list[str] | None = None


_thread = _Thread()
_install = threading.Lock()
_installed = False


@contextmanager
def refuse_access(name: str, *, most_parameters: int) -> Iterator[None]:
    """Refuse access to files, network and processes in this thread while the config in ``name`` is built.

    It is a second defence after the allow-list. Audit events for opening files, connections and processes, for
    unpickling classes and for importing packages that are not in ``PACKAGES`` raise an error, as does a network of more
    than ``most_parameters`` parameters.

    Raises:
        UserError: An event was refused, even if the code that caused it caught the error; or the build failed.
    """
    _install_hook()
    thread, counted = threading.get_ident(), 0

    def count(module: Any, key: str, parameter: Any) -> None:
        nonlocal counted
        if threading.get_ident() == thread and parameter is not None:
            counted += parameter.numel()
            if counted > most_parameters:
                raise UserError(
                    f'the config in {name} describes a network of more than {most_parameters} parameters, which is '
                    'more than its weights have: use the config it was trained with'
                )

    counting = register_module_parameter_registration_hook(count)
    tried = _thread.tried = []
    writes_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    except Exception as error:
        if not tried:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f'the config in {name} cannot be built ({reason_of(error)}): give the config it was trained with'
            ) from error
    finally:
        _thread.tried = None
        sys.dont_write_bytecode = writes_bytecode
        counting.remove()
    if tried:
        raise UserError(f'the config in {name} makes its network {tried[0]} when it is built, which is refused: {FIX}')


def reason_of(error: BaseException) -> str:
    """The first line of ``error``, shortened, or its type."""
    lines = str(error).strip().splitlines()
    return f'{type(error).__name__}: {lines[0][:160]}' if lines else type(error).__name__


def _install_hook() -> None:
    """Install the audit hook once per process; Python cannot remove it."""
    global _installed
    with _install:
        if not _installed:
            sys.addaudithook(_audit)
            _installed = True


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    tried = _thread.tried
    if tried is None:
        return
    if event == 'open':
        refused = not _is_code(*arguments)
    elif event == 'import':
        package = str(arguments[0]).partition('.')[0]
        refused = package not in sys.stdlib_module_names and package not in PACKAGES
    else:
        refused = event.startswith(REFUSED_EVENTS) and event not in IMPORTING_EVENTS
    if refused:
        what = ', '.join(map(shown, arguments[:2]))
        tried.append(f'call {event}({what})')
        raise UserError(f'{tried[-1]} is refused')


def _is_code(path: Any, mode: Any, flags: int) -> bool:
    """Whether a source or bytecode file of ``CODE_PLACES`` is read, for an import or for the text of a warning."""
    return (
        isinstance(path, str)
        and path.endswith(CODE_SUFFIXES)
        and mode in ('r', 'rb')
        and '..' not in path
        and path.startswith(CODE_PLACES)
    )

"""Check that the types and arguments that a config names exist."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import mmseg.registry
from mmengine.config import Config
from mmengine.registry import FUNCTIONS, Registry

from volo_seg.errors import UserError
from volo_seg.windows import WINDOW_WEIGHTS, InferenceConfig

PACKAGE = 'volo_seg'
HOSTS = ('mmseg', 'mmengine', 'mmcv', 'torch', PACKAGE)
"""Packages whose classes build nested dicts through the registries (except for ``Albu``)."""
HOST_KEYS = ('type', '_scope_', 'priority', 'constructor', 'paramwise_cfg')
"""Keys that MMEngine removes from a dict before it builds the class."""
SECTIONS: dict[str, tuple[str, ...]] = {
    'always': ('model', 'default_hooks', 'custom_hooks', 'visualizer', 'log_processor'),
    'train': ('train_dataloader', 'optim_wrapper', 'param_scheduler', 'train_cfg'),
    'val': ('val_dataloader', 'val_evaluator', 'val_cfg'),
    'test': ('test_dataloader', 'test_evaluator', 'test_cfg'),
}
"""The keys of a config that a run builds, by the split that needs them."""

CHECKED = ('default_hooks', 'custom_hooks', 'log_processor', 'val_evaluator', 'test_evaluator')
"""The sections in which keys of the classes of other packages are checked too."""

Node = Mapping[str, Any]
REGISTRIES = [r for r in vars(mmseg.registry).values() if isinstance(r, Registry)] + [FUNCTIONS]


def check_names(config: Config, splits: Sequence[str]) -> None:
    """Check every ``type`` that a run over ``splits`` builds, and every key given to a class of this package.

    Raises:
        UserError: A type is not registered, or a key is unknown; the message names similar ones.
    """
    runner = config.get('runner_type')
    if runner is not None:
        _registered('runner_type', runner, config)
    for section in (*SECTIONS['always'], *(name for split in splits for name in SECTIONS[split])):
        for place, node in walk(config.get(section), section):
            kind = _registered(f'{place}.type', node['type'], config, scope=node.get('_scope_'))
            in_teacher = '.teacher.' in place  # a model inside a hook
            if kind is not None and (is_ours(kind) or (section in CHECKED and not in_teacher)):
                takes_others = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(kind).parameters.values())
                check_keys(place, node, accepted_keys(kind), only_similar=takes_others and not is_ours(kind))
                _check_test_cfg(place, node, kind)
    for name, hook in (config.get('default_hooks') or {}).items():
        if isinstance(hook, Mapping) and 'type' not in hook:
            others = [key for key in config.default_hooks if key != name]
            raise UserError(f'default_hooks.{name} has no type; {suggestion(name, others, otherwise="give it one")}')


def check_keys(place: str, node: Node, accepted: Iterable[str], *, only_similar: bool = False) -> None:
    """Check that all keys of ``node`` are ``accepted``; with ``only_similar``, refuse only keys that resemble one.

    Raises:
        UserError: A key is unknown; the message suggests a similar one.
    """
    accepted = list(accepted)
    for key in node:
        if key in accepted or key in HOST_KEYS:
            continue
        if not only_similar or difflib.get_close_matches(key, accepted, cutoff=0.8):
            otherwise = f'it takes {", ".join(accepted) or "no arguments"}'
            raise UserError(f'{place}: unknown key {key!r}; {suggestion(key, accepted, otherwise=otherwise)}')


def suggestion(name: str, known: Sequence[str], *, otherwise: str) -> str:
    """Return the end of a message about an unknown ``name``: the most similar of ``known``, or ``otherwise``."""
    likeness = {other: difflib.SequenceMatcher(None, name.lower(), other.lower()).ratio() for other in known}
    best = max(known, key=likeness.__getitem__, default='')  # the first of equal ones, in the order of ``known``
    return f'did you mean {best!r}?' if best and likeness[best] > 0.6 else otherwise


def walk(node: Any, place: str) -> Iterator[tuple[str, Node]]:
    """Yield (dotted key, dict) of every dict with a ``type`` at or below ``node``, outer ones first.

    The content of classes outside ``HOSTS`` is skipped, because they may not build it through the registries.
    """
    if isinstance(node, Mapping):
        if isinstance(node.get('type'), str) or callable(node.get('type')):
            yield place, node
            module = getattr(find_type(node['type']), '__module__', HOSTS[0])
            if node['type'] == 'Albu' or module.split('.')[0] not in HOSTS:
                return
        for key, child in node.items():
            yield from walk(child, f'{place}.{key}')
    elif isinstance(node, (list, tuple)):
        for index, child in enumerate(node):
            yield from walk(child, f'{place}.{index}')


def accepted_keys(kind: Callable) -> dict[str, inspect.Parameter]:
    """The named arguments of a function or class, with those that ``**kwargs`` passes to its bases."""
    makers = [vars(c)['__init__'] for c in kind.__mro__ if '__init__' in vars(c)] if inspect.isclass(kind) else [kind]
    found: dict[str, inspect.Parameter] = {}
    for maker in makers:
        parameters = inspect.signature(maker).parameters.values()
        for parameter in parameters:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY) and parameter.name != 'self':
                found.setdefault(parameter.name, parameter)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found


def is_ours(kind: Any) -> bool:
    """Whether ``kind`` is defined in this package."""
    return getattr(kind, '__module__', '').split('.')[0] == PACKAGE


def find_type(name: Any, scope: str | None = 'mmseg') -> Any:
    """The class or function registered as ``name`` for the default scope ``scope``, or None."""
    if not isinstance(name, str):
        return name
    path = name
    if name.count('.') == 1:  # SCOPE.NAME
        scope, name = name.split('.')
        with contextlib.suppress(ImportError):
            importlib.import_module(f'{scope}.registry')
    for registry in REGISTRIES:
        kind = _lookup(registry, name, scope)
        if kind is not None:
            return kind
    if '.' in path:  # PACKAGE.MODULE.NAME
        with contextlib.suppress(Exception):  # its import may fail in any way
            return mmseg.registry.MODELS.get(path)
    return None


def _lookup(registry: Registry, name: str, scope: str | None) -> Any:
    # MMEngine looks functions (collate_fn, worker_init_fn) up in one registry, whatever the scope
    known = registry if registry is FUNCTIONS else _in_scope(registry, scope)
    while known is not None:
        known.import_from_location()
        if name in known.module_dict:
            return known.module_dict[name]
        known = known.parent
    return None


def _in_scope(registry: Registry, scope: str | None) -> Registry | None:
    if scope in (None, 'mmengine'):
        return registry.root
    if registry.scope == scope:
        return registry
    child = registry.children.get(scope)  # an empty registry is false
    return registry.root.children.get(scope) if child is None else child


def _registered(place: str, name: Any, config: Config, scope: str | None = None) -> Any:
    """The class or function registered as ``name``, the value of the key ``place``; UserError if there is none."""
    scope = scope or config.get('default_scope') or 'mmengine'
    with contextlib.suppress(ImportError):
        importlib.import_module(f'{scope}.registry')
    kind = find_type(name, scope)
    if kind is None and not any(_in_scope(registry, scope) for registry in REGISTRIES):
        return None  # the registries of this scope are unknown
    if kind is None:
        raise UserError(_why_missing(place, name, scope))
    return kind


def _why_missing(place: str, name: str, scope: str) -> str:
    package = name.split('.')[0]
    if '.' in name and importlib.util.find_spec(package) is None:
        return f'{place}={name!r}: package {package!r} is not installed; install it, or use a type of MMSegmentation'
    if scope != 'mmseg' and find_type(name) is not None:
        return f"{place}={name!r} is not in scope {scope!r}; set default_scope = 'mmseg' in the config"
    names = {known for registry in REGISTRIES for known in _all_names(registry, scope)}
    close = difflib.get_close_matches(name.split('.')[-1], sorted(names), n=3)
    hint = f' (did you mean {" or ".join(map(repr, close))}?)' if close else ''
    return f'{place}={name!r} is not registered{hint}; a class of your own needs its module in custom_imports'


def _all_names(registry: Registry, scope: str) -> Iterator[str]:
    known = _in_scope(registry, scope)
    while known is not None:
        yield from known.module_dict
        known = known.parent


def _check_test_cfg(place: str, node: Node, kind: Any) -> None:
    if place == 'model' and kind.__name__ == 'VOLOSegmentor':
        test_cfg = node.get('test_cfg') or {}
        check_keys('model.test_cfg', test_cfg, [field.name for field in dataclasses.fields(InferenceConfig)])
        weights = test_cfg.get('window_weights', 'uniform')
        if weights not in WINDOW_WEIGHTS:
            raise UserError(f'model.test_cfg.window_weights={weights!r} is not one of {", ".join(WINDOW_WEIGHTS)}')

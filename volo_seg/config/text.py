"""Parse the text of a config inside a checkpoint without running it.

MMEngine stores the config of a training run in its checkpoints as ``Config.pretty_text``: assignments of plain values
and of ``dict(...)`` with such values.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from volo_seg.errors import UserError

MAX_CHARACTERS = 2**20
"""Largest accepted length of a config."""
_FLOATS = {'inf', '-inf', '+inf', 'nan', 'infinity', '-infinity'}


def parse_config_text(text: str, *, name: str) -> dict[str, Any]:
    """The values that ``text``, from the file ``name``, assigns.

    The accepted expressions are constants, signs before numbers, lists, tuples, sets, dicts, ``dict(key=value)``,
    ``float('inf')``, and ``inf`` and ``nan``, which MMEngine writes.

    Raises:
        UserError: ``text`` contains anything else.
    """
    if len(text) > MAX_CHARACTERS:
        raise UserError(f'the config in {name} has {len(text)} characters, more than any config')
    try:
        found = {}
        for line in ast.parse(text).body:
            if not (isinstance(line, ast.Assign) and len(line.targets) == 1 and isinstance(line.targets[0], ast.Name)):
                raise _refusal(line, name)
            found[line.targets[0].id] = _value(line.value, name)
        return found
    except UserError:
        raise
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:
        reason = getattr(error, 'msg', None) or str(error) or type(error).__name__
        raise UserError(f'the config in {name} does not parse ({reason}): give the config file as well') from error


def _value(node: ast.expr, name: str) -> Any:
    match node:
        case ast.Constant():
            return node.value
        case ast.Name(id='inf' | 'nan'):
            return float(node.id)
        case ast.List() | ast.Tuple() | ast.Set():
            kind = {ast.List: list, ast.Tuple: tuple, ast.Set: set}[type(node)]
            return kind(_value(item, name) for item in node.elts)
        case ast.Dict():
            return _mapping(node, name)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd()):
            value = _value(node.operand, name)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                return -value if isinstance(node.op, ast.USub) else value
        case ast.Call():
            return _call(node, name)
    raise _refusal(node, name)


def _mapping(node: ast.Dict, name: str) -> dict[Any, Any]:
    if None in node.keys:
        raise _refusal(node, name)
    keys = [_value(key, name) for key in node.keys if key is not None]
    if not all(isinstance(key, (str, int, float, bool, tuple, type(None))) for key in keys):
        raise _refusal(node, name)
    return dict(zip(keys, (_value(value, name) for value in node.values), strict=True))


def _call(node: ast.Call, name: str) -> Any:
    called = node.func.id if isinstance(node.func, ast.Name) else None
    if called == 'dict' and not node.args and all(keyword.arg for keyword in node.keywords):
        return {keyword.arg: _value(keyword.value, name) for keyword in node.keywords}
    if called == 'dict' and len(node.args) == 1 and isinstance(node.args[0], ast.Dict) and not node.keywords:
        return _mapping(node.args[0], name)
    if called == 'float' and len(node.args) == 1 and not node.keywords:
        text = _value(node.args[0], name)
        if isinstance(text, str) and text.lower() in _FLOATS:
            return float(text)
    raise _refusal(node, name)


def _refusal(node: ast.AST, name: str) -> UserError:
    text = ast.unparse(node)
    shown = text if len(text) <= 60 else f'{text[:57]}...'
    return UserError(f'the config in {name} holds {shown!r}, which is not a plain value: give the config file as well')


def config_text_of(content: Mapping[str, Any], *, name: str) -> str:
    """The text of the config in ``content``, the checkpoint read from the file ``name``.

    Raises:
        UserError: There is none.
    """
    meta = content.get('meta')
    for key in ('cfg', 'config'):
        text = meta.get(key) if isinstance(meta, Mapping) else None
        if isinstance(text, str) and text.strip():
            return text
    raise UserError(f'{name} contains no config: also give the config with which it was trained')

"""Imports run one way: each room is loaded in a process of its own, which then says what came along."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / 'volo_seg'
FORBIDDEN = {
    'volo_seg': ('torch', 'numpy', 'mmengine', 'mmcv', 'mmseg', 'cv2'),
    'volo_seg.ops': ('mmengine', 'mmcv', 'mmseg', 'cv2', 'triton', 'volo_seg.layers', 'volo_seg.models'),
    'volo_seg.layers': ('mmengine', 'mmcv', 'mmseg', 'cv2', 'triton', 'volo_seg.models', 'volo_seg.checkpoints'),
    'volo_seg.checkpoints': ('mmcv', 'mmseg', 'cv2', 'volo_seg.models', 'volo_seg.datasets', 'volo_seg.engine'),
    'volo_seg.config': ('volo_seg.models', 'volo_seg.datasets', 'volo_seg.engine', 'volo_seg.commands'),
    'volo_seg.models': (
        'mmcv.ops',
        'volo_seg.commands',
        'volo_seg.datasets',
        'volo_seg.evaluation',
        'volo_seg.inference',
    ),
    'volo_seg.datasets': ('volo_seg.models', 'volo_seg.evaluation', 'volo_seg.engine', 'volo_seg.commands'),
    'volo_seg.evaluation': ('volo_seg.models', 'volo_seg.datasets', 'volo_seg.engine', 'volo_seg.commands'),
    'volo_seg.engine': ('volo_seg.models', 'volo_seg.datasets', 'volo_seg.evaluation', 'volo_seg.commands'),
    'volo_seg.reports': (
        'torch',
        'mmengine',
        'mmcv',
        'mmseg',
        'volo_seg.evaluation',
        'volo_seg.engine',
        'volo_seg.commands',
    ),
    'volo_seg.inference': ('torch', 'mmengine', 'mmcv', 'mmseg', 'volo_seg.commands'),
    'volo_seg.serve': ('torch', 'mmengine', 'mmcv', 'mmseg', 'fastapi', 'uvicorn', 'volo_seg.commands'),
    'volo_seg.export': ('torch', 'onnx', 'onnxruntime', 'volo_seg.commands'),
    'volo_seg.commands': ('torch', 'mmengine', 'mmcv', 'mmseg', 'cv2'),
}


@pytest.mark.parametrize('room', FORBIDDEN)
def test_room_imports_only_what_it_may(room):
    code = f'import sys, {room}; print("\\n".join(sys.modules))'
    loaded = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split()
    assert room in loaded
    came_along = [m for m in FORBIDDEN[room] if any(name == m or name.startswith(f'{m}.') for name in loaded)]
    assert not came_along, f'{room} brings {came_along}'


def test_every_room_is_checked():
    rooms = {f'volo_seg.{p.name}' for p in PACKAGE.iterdir() if (p / '__init__.py').is_file()}
    assert rooms <= set(FORBIDDEN)


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module if not node.level else '.' * node.level + node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_commands_do_not_import_each_other():
    shared = {'volo_seg.commands', 'volo_seg.commands.flags'}
    files = [p for p in (PACKAGE / 'commands').glob('*.py') if p.name != '__init__.py']
    assert len(files) > 5
    for path in files:
        others = {m for m in imported(path) if m.startswith('volo_seg.commands')} - shared
        assert not others, f'{path.name} imports {others}'


def test_every_command_is_listed_and_helps_quickly():
    """Each command of the table prints its help without loading torch."""
    from volo_seg.commands import COMMANDS

    modules = {p.stem for p in (PACKAGE / 'commands').glob('*.py')} - {'__init__', 'flags', 'signals'}
    assert modules == set(COMMANDS)
    code = (
        'import contextlib, io, sys\nfrom volo_seg.commands import COMMANDS, run\n'
        'for name in COMMANDS:\n'
        '    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):\n'
        '        run(name, ["--help"])\n'
        '    assert "usage:" in out.getvalue(), name\n'
        'assert "torch" not in sys.modules and "mmengine" not in sys.modules\n'
    )
    subprocess.run([sys.executable, '-c', code], check=True)


def test_every_tool_is_a_door():
    doors = sorted((PACKAGE.parent / 'tools').rglob('*.py'))
    assert len(doors) >= 8
    from volo_seg.commands import COMMANDS

    for path in doors:
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        names = [n.args[0].value for n in calls if getattr(n.func, 'id', '') == 'door']
        assert len(names) == 1 and names[0] in COMMANDS, path

"""The import table of the package, checked in the syntax tree of every file, and what loads at run time."""

import ast
import functools
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'volo_seg'

# package or top-level module -> the parts of volo_seg that it may import, besides itself
NEUTRAL = {
    '': set(),  # volo_seg/__init__.py
    'errors': set(),
    'io': {'errors'},
    'registry': {'errors'},
    'windows': {'errors'},
    'progress': {'errors'},
    'compat': set(),
    'seeding': set(),
    'image_files': {'errors'},
    'imageio': {'errors', 'image_files', 'io'},
    'label_png': {'errors', 'image_files', 'io', 'imageio'},
    'visualization': {'errors', 'image_files', 'io', 'imageio', 'label_png'},
}
MIDDLE = {*NEUTRAL, 'weights', 'ops', 'layers', 'checkpoints', 'config'}
UPPER = {*MIDDLE, 'models', 'datasets', 'evaluation', 'engine', 'register'}
MAY_IMPORT = {
    **NEUTRAL,
    'ops': {'errors', 'io'},
    'layers': {'errors', 'ops'},
    'checkpoints': {*NEUTRAL, 'layers', 'weights'},
    'config': {*NEUTRAL, 'checkpoints'},
    'models': {*NEUTRAL, 'ops', 'layers', 'checkpoints'},
    'datasets': {*NEUTRAL, 'config'},
    'evaluation': {*NEUTRAL, 'config'},
    'engine': {*NEUTRAL, 'checkpoints', 'config'},
    'inference': UPPER,
    'export': {*UPPER, 'inference'},
    'serve': {*UPPER, 'inference'},
    'reports': UPPER,
    'weights': set(),
    'register': {*NEUTRAL, 'config', 'models', 'datasets', 'evaluation', 'engine'},
    'commands': {*UPPER, 'inference', 'export', 'serve', 'reports'},
    '__main__': {'commands'},
}
# what a part may import of other distributions; parts that are not listed may import anything but mmcv.ops and triton
DISTRIBUTIONS = {
    '': set(),
    'errors': set(),
    'io': set(),
    'windows': set(),
    'weights': set(),
    'ops': {'torch', 'triton'},
    'layers': {'torch'},
    'checkpoints': {'torch', 'safetensors', 'mmengine', 'numpy', 'yaml'},
    'config': {'torch', 'safetensors', 'mmengine', 'mmseg', 'numpy'},
}
# modules of volo_seg.commands that its commands share
SHARED = {'volo_seg.commands', *(f'volo_seg.commands.{name}' for name in ('apply_flags', 'flags', 'signals'))}


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob('*.py'))}


@functools.cache
def imported(path):
    """Dotted names that a file imports anywhere: statements, also in functions, and ``import_module`` of a constant."""
    package = module_name(path) if path.name == '__init__.py' else module_name(path).rpartition('.')[0]
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ''
            if node.level:
                above = package.split('.')[: len(package.split('.')) - node.level + 1]
                base = '.'.join([*above, *filter(None, [base])])
            found += [f'{base}.{alias.name}' for alias in node.names]
        elif isinstance(node, ast.Call) and getattr(node.func, 'attr', getattr(node.func, 'id', '')) == 'import_module':
            found += [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
    return found


def part(module):
    """The package or top-level module that ``module`` belongs to; '' for volo_seg/__init__.py."""
    return (module.split('.') + [''])[1]


def graph():
    """The modules of volo_seg that each module imports."""
    edges = defaultdict(set)
    for module, path in FILES.items():
        for name in imported(path):
            while name.startswith('volo_seg') and name not in FILES:  # a function or class of a module
                name = name.rpartition('.')[0]
            if name.startswith('volo_seg') and name != module:
                edges[module].add(name)
    return edges


def test_every_part_stands_in_the_table():
    assert {part(module) for module in FILES} <= set(MAY_IMPORT)
    assert len(FILES) > 100


def test_imports_go_downwards():
    wrong = [
        f'{module} imports {name}'
        for module, names in graph().items()
        for name in names
        if part(name) not in {part(module), '', *MAY_IMPORT[part(module)]}
    ]
    assert not wrong, '\n'.join(sorted(wrong))


def test_no_cycles():
    edges, done, path, found = graph(), set(), [], []

    def visit(module):
        if module in path:
            found.append(' -> '.join([*path[path.index(module) :], module]))
        elif module not in done:
            path.append(module)
            for name in sorted(edges[module]):
                visit(name)
            done.add(path.pop())

    for module in FILES:
        visit(module)
    assert not found, '\n'.join(found)


def test_other_distributions():
    wrong = []
    for module, path in FILES.items():
        allowed = DISTRIBUTIONS.get(part(module))
        for name in imported(path):
            root = name.split('.')[0]
            other = root not in sys.stdlib_module_names and root != 'volo_seg'
            if (
                f'{name}.'.startswith('mmcv.ops.')
                or (root == 'triton' and not module.startswith('volo_seg.ops.triton'))
                or (other and allowed is not None and root not in allowed)
            ):
                wrong.append(f'{module} imports {name}')
    assert not wrong, '\n'.join(sorted(wrong))


def test_commands_do_not_import_each_other():
    commands = {module for module in FILES if part(module) == 'commands'}
    assert len(commands) > 15
    for module, names in graph().items():
        if module in commands and module != 'volo_seg.commands':
            others = {name for name in names if part(name) == 'commands'} - SHARED
            assert not others, f'{module} imports {others}'


@pytest.mark.parametrize(
    ('package', 'forbidden'),
    [
        ('volo_seg', ('torch', 'numpy', 'mmengine', 'mmcv', 'mmseg', 'cv2')),
        ('volo_seg.ops', ('mmengine', 'mmcv', 'mmseg', 'cv2', 'triton')),
        ('volo_seg.layers', ('mmengine', 'mmcv', 'mmseg', 'cv2', 'triton')),
        ('volo_seg.checkpoints', ('mmcv', 'mmseg', 'cv2')),
        ('volo_seg.reports', ('torch', 'mmengine', 'mmcv', 'mmseg')),
        ('volo_seg.inference', ('torch', 'mmengine', 'mmcv', 'mmseg')),
        ('volo_seg.serve', ('torch', 'mmengine', 'mmcv', 'mmseg', 'fastapi', 'uvicorn')),
        ('volo_seg.export', ('torch', 'onnx', 'onnxruntime')),
        ('volo_seg.commands', ('torch', 'mmengine', 'mmcv', 'mmseg', 'cv2')),
    ],
)
def test_what_an_import_loads(package, forbidden):
    code = f'import sys, {package}; print("\\n".join(sys.modules))'
    loaded = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split()
    assert package in loaded
    assert not {name.split('.')[0] for name in loaded} & set(forbidden)


def test_every_command_is_listed_and_prints_its_help_without_torch():
    from volo_seg.commands import COMMANDS

    assert {m.rpartition('.')[2] for m in FILES if part(m) == 'commands' and m not in SHARED} == {
        name.replace('-', '_') for name in COMMANDS
    }
    code = (
        'import contextlib, io, sys\nfrom volo_seg.commands import COMMANDS, run\n'
        'for name in COMMANDS:\n'
        '    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):\n'
        '        run(name, ["--help"])\n'
        '    text = out.getvalue()\n'
        '    assert text.startswith("usage: volo-seg " + name), name\n'
        '    assert "example" in text and "  volo-seg " + name in text, name\n'
        'assert "torch" not in sys.modules and "mmengine" not in sys.modules\n'
    )
    subprocess.run([sys.executable, '-c', code], check=True)


def test_every_tool_only_runs_a_command():
    from volo_seg.commands import COMMANDS

    tools = sorted((ROOT / 'tools').rglob('*.py'))
    assert len(tools) >= 8
    for path in tools:
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        names = [n.args[0].value for n in calls if getattr(n.func, 'id', '') == 'run_tool']
        assert len(names) == len(calls) == 1 and names[0] in COMMANDS, path

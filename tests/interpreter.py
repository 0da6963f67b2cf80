"""Triton's interpreter, which runs kernels on a CPU: test files in a process of it, and what halves its time twice."""

import contextlib
import gc
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace


def run_in_interpreter(*files: Path) -> int:
    """Run the test ``files`` and return how many tests passed; the interpreter must be chosen before triton loads."""
    root = Path(__file__).parents[1]
    environment = {**os.environ, 'TRITON_INTERPRET': '1', 'CUDA_VISIBLE_DEVICES': ''}
    environment['PYTHONPATH'] = os.pathsep.join(filter(None, (str(root), os.environ.get('PYTHONPATH'))))
    command = [sys.executable, '-m', 'pytest', '-p', 'no:cacheprovider', *map(str, files)]
    run = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-2000:]
    passed = re.search(r'(\d+) passed', run.stdout)
    assert passed, run.stdout[-1000:]
    return int(passed[1])


@contextlib.contextmanager
def quick_interpreter() -> Iterator[None]:
    """No garbage collection, no check for integer overflow, and the language patched once instead of in each call."""
    import triton.language as tl
    from triton.runtime import interpreter

    builder, patch = interpreter.interpreter_builder, interpreter._patch_lang
    options = builder.options
    gc.disable()
    builder.options = replace(options, sanitize_overflow=False)
    scope = patch(SimpleNamespace(__globals__={'tl': tl, 'core': tl.core}))
    interpreter._patch_lang = lambda function: SimpleNamespace(restore=lambda: None)
    try:
        yield
    finally:
        interpreter._patch_lang = patch
        scope.restore()
        builder.options = options
        gc.enable()

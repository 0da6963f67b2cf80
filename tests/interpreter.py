"""Run a test file in a process where Triton interprets its kernels on a CPU."""

import os
import re
import subprocess
import sys
from pathlib import Path


def run_in_interpreter(file: str) -> int:
    """Run the test ``file`` and return how many tests passed; the interpreter must be chosen before triton loads."""
    root = Path(__file__).parents[1]
    environment = {**os.environ, 'TRITON_INTERPRET': '1', 'CUDA_VISIBLE_DEVICES': ''}
    environment['PYTHONPATH'] = os.pathsep.join(filter(None, (str(root), os.environ.get('PYTHONPATH'))))
    command = [sys.executable, '-m', 'pytest', '-p', 'no:cacheprovider', str(Path(file).resolve())]
    run = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-2000:]
    passed = re.search(r'(\d+) passed', run.stdout)
    assert passed, run.stdout[-1000:]
    return int(passed[1])
